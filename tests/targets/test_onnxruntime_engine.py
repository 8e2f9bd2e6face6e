"""onnxruntime as an engine: what it runs for a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper
from small_graphs import build, random

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.runtime.session import open_session
from onnx_obc.targets.registry import TARGETS

ORT = TARGETS["onnxruntime"].engine


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    (name, array), *_ = np.load(CALIBRATION).items()
    return {name: array[:batch]}


def test_every_multiplying_node_is_covered_once(tmp_path: Path) -> None:
    kernels = ORT.load(MODEL, feed(), 1).kernels(feed(), 1)
    nodes = [node.name for node in onnx.load(MODEL).graph.node if node.op_type in ("Conv", "Gemm")]
    owners = {name: [k for k in kernels if name in k.nodes] for name in nodes}
    assert all(len(found) == 1 and found[0].precision == "float32" for found in owners.values())
    assert all(k.seconds >= 0 for k in kernels) and sum(k.seconds for k in kernels) > 0
    assert all(0 <= source < len(kernels) for k in kernels for source in k.sources)


@pytest.mark.slow
def test_quantized_layers_show_as_integers(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline"), out)
    kernels = ORT.load(out, feed(), 1).kernels(feed(), 1)
    assert sum(k.precision == "int8" for k in kernels) == sum(
        node.op_type in ("Conv", "Gemm") for node in onnx.load(out).graph.node
    )


def test_outputs_are_those_of_a_session() -> None:
    loaded = ORT.load(MODEL, feed(), 1)
    expected = open_session(MODEL, device="cpu").run(feed())
    found = loaded.run({**feed(), "not an input": np.zeros(1)})
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert len(loaded.seconds(feed(), 3)) == 3
    loaded.close()


def test_names_that_are_values_of_other_nodes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Add", ["h", "b"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    model = build(nodes, {"x": (2, 8)}, {"y": None}, {"w": random(8, 4), "b": random(4)})
    onnx.save(model, tmp_path / "m.onnx")
    x = {"x": random(2, 8)}
    kernels = ORT.load(tmp_path / "m.onnx", x, 1).kernels(x, 1)
    (owner,) = [k for k in kernels if "product" in k.nodes]
    assert owner.precision == "float32"


def test_what_cannot_be_loaded_or_run(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(MODEL.read_bytes()[:1000])
    with pytest.raises(EngineError, match="cannot load"):
        ORT.load(tmp_path / "bad.onnx", feed(), 1)
    with pytest.raises(EngineError, match="onnxruntime failed"):
        ORT.load(MODEL, feed(), 1).run({next(iter(feed())): np.zeros((1, 3, 3), np.float32)})
