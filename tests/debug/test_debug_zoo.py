"""Every layer of the zoo's graphs is matched in this tool's own files."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the zoo is exported from torch")
pytest.importorskip("transformers", reason="the zoo is exported from transformers")

from zoo.builders import CASES, Case

from onnx_obc import Recipe, compress, debug_models

CHOSEN = ("gemm-alpha-beta", "shared-three-ways", "unranked", "pads", "unet", "transposed-groups", "lstm", "siamese")
SLOW = ("bert", "gpt2-past", "whisper-decoder", "vit")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c.name in SLOW else ()) for c in CASES if c.name in (*CHOSEN, *SLOW)],
    ids=lambda case: case.name,
)
def test_every_layer_is_matched(case: Case, tmp_path: Path) -> None:
    dense, small = tmp_path / "dense.onnx", tmp_path / "small.onnx"
    with contextlib.redirect_stdout(io.StringIO()):  # the exporters talk
        case.build(dense)
    feeds = case.feeds(np.random.default_rng(1))
    report = compress(dense, feeds, Recipe(solver="baseline"), output=small).report
    found = debug_models(dense, small, feeds)
    assert {layer.name for layer in report.layers} <= {layer.name for layer in found.layers}
    assert [(layer.name, layer.reason) for layer in found.layers if layer.value is None] == []
    assert not found.equal and found.tried >= 1
