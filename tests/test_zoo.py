"""Whole graphs of many kinds: what comes out runs, has the same interface and is close to what went in."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the zoo is exported from torch")
pytest.importorskip("transformers", reason="the zoo is exported from transformers")

from zoo import graphs
from zoo.builders import CASES, Case
from zoo.compressed import check_compressed

from onnx_obc import Recipe, Rule, compress
from onnx_obc.core.errors import RecipeError

pytestmark = pytest.mark.slow

NOTHING_TO_COMPRESS = {"einsum": "Einsum", "no-layers": "nothing to compress"}
REFUSED_BY_TENSORRT = dict.fromkeys(["batched", "experts"], "one scale for each output channel")
REFUSED_BY_TENSORRT["transposed-groups"] = "no layer can take the sparsity"
# Of the graphs written by hand: how many layers there are, and what must be left out, for what reason.
HAND_WRITTEN = {
    "if": (1, ["inside the body of If"] * 2),
    "loop": (1, ["inside the body of Loop"]),
    "scan": (1, ["inside the body of Scan"]),
    "function": (2, []),
    "gemm-alpha-beta": (3, []),
    "auto-pad": (4, []),
    "pads": (1, []),
    "weight-chain": (2, []),
    "quantized-already": (1, ["already quantized"]),
    "integers-already": (1, ["already quantized"]),
    "broken-rows": (1, []),
    "vector": (2, []),
    "shared-three-ways": (2, []),
    "batched": (1, []),
    "left": (2, []),
    "foreign-operators": (2, []),
    "ir3-inputs": (1, ["inside the body of If"] * 2),
    "constant-nodes": (2, []),
    "odd-names": (1, ["inside the body of If"] * 2),
    "unranked": (2, []),
    "exposed-values": (2, []),
    "branches": (1, []),
    "opset-9": (2, []),
    "double": (1, ["float64"]),
    "half": (1, []),
    "flat-activations": (2, []),
    "sequence": (2, []),
    "resize": (2, []),
    "fixed-batch-one": (1, []),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case: Case = request.param
    path = tmp_path_factory.mktemp(case.name) / "dense.onnx"
    with contextlib.redirect_stdout(io.StringIO()):  # the exporters talk
        case.build(path)
    return case, path


@pytest.mark.parametrize(
    ("recipe", "decibels"),
    [
        pytest.param(Recipe(embeddings="int8"), 15, id="int8"),
        pytest.param(Recipe(weights="int4", activations="none"), 5, id="int4"),
        pytest.param(
            Recipe(sparsity="2:4", target="tensorrt", layers=(Rule(match="*"),)),  # or few channels would stay float
            None,
            id="2:4-tensorrt",
        ),
    ],
)
def test_the_compressed_graph_does_the_same(
    built: tuple[Case, Path], recipe: Recipe, decibels: float | None, tmp_path: Path
) -> None:
    case, dense = built
    refusals = NOTHING_TO_COMPRESS | (REFUSED_BY_TENSORRT if recipe.target == "tensorrt" else {})
    if case.name in refusals:
        with pytest.raises(RecipeError, match=refusals[case.name]):
            compress(dense, case.feeds(np.random.default_rng(1)), recipe, output=tmp_path / "small.onnx")
        assert not (tmp_path / "small.onnx").exists()
    else:
        check_compressed(case, dense, recipe, decibels, tmp_path)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("bert", "gpt2-past", "gru-bidirectional", "mixer", "opset-9")],
    ids=lambda case: case.name,
)  # fmt: skip
def test_inputs_on_ranges_of_their_own(case: Case, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        case.build(tmp_path / "dense.onnx")
    recipe = Recipe(activations="dynamic", solver="baseline", measure_speed=False)
    feeds = case.feeds(np.random.default_rng(1))
    report = compress(tmp_path / "dense.onnx", feeds, recipe, tmp_path / "small.onnx").report
    assert any(layer.activations == "dynamic" for layer in report.layers)
    assert all(check.passed for check in report.checks)
    assert report.engine is not None and report.engine["in_integers"] == report.engine["quantized"] > 0
    assert min(output.sqnr_db for output in report.outputs) > 25


@pytest.mark.parametrize(
    "case", [c for c in graphs.CASES if c.name not in NOTHING_TO_COMPRESS], ids=lambda case: case.name
)
def test_every_weight_is_a_layer_or_left_out_for_a_reason(case: Case, tmp_path: Path) -> None:
    layers, reasons = HAND_WRITTEN[case.name]
    case.build(tmp_path / "dense.onnx")
    recipe = Recipe(weights="int4", activations="none")
    report = compress(tmp_path / "dense.onnx", case.feeds(np.random.default_rng(1)), recipe).report
    assert len(report.layers) == layers
    assert len(report.left_out) == len(reasons)
    for left, reason in zip(report.left_out, reasons, strict=True):
        assert reason in left.reason
