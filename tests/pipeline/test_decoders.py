"""Decoders with caches from text to file: compressed, judged by perplexity, and run step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_decoders import HEADS, NAMES, WIDTH, decoder, write_text
from small_graphs import run

from onnx_obc.calibration.options import DataOptions
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.examine import Evaluation
from onnx_obc.pipeline.recipe import Recipe


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["optimum", "stacked"])
def test_a_decoder_is_compressed(naming: str, tmp_path: Path) -> None:
    onnx.save(decoder(NAMES[naming]), tmp_path / "in.onnx")
    text, tokenizer = write_text(tmp_path)
    data = DataOptions(tokenizer=tokenizer, max_tokens=16)
    recipe = Recipe(weights="int4", activations="none", threads=1)
    result = compress(
        tmp_path / "in.onnx", text, recipe, data=data, output=tmp_path / "out.onnx",
        evaluation=Evaluation("perplexity", options=data),
    )  # fmt: skip
    assert {layer.name for layer in result.report.layers} >= {"q_flat", "k_flat", "v_flat", "logits"}
    assert result.report.metric is not None and result.report.metric.compressed > 1
    small = onnx.load(tmp_path / "out.onnx")
    # Its own caches, token by token, give what it gives at once.
    shape = (1, HEADS, 0, WIDTH // HEADS)
    names = [name for name in NAMES[naming] if name]
    half = len(names) // 2
    caches = {name: np.zeros(shape if half == 2 else (2, *shape), np.float32) for name in names[:half]}
    ids = np.array([[3, 1, 4, 1, 5]])
    everything = {"input_ids": ids, "position_ids": np.arange(5)[None], "attention_mask": np.ones_like(ids)}
    at_once = run(small, everything | caches)[0]
    logits = []
    for i in range(5):
        step = {"input_ids": ids[:, i : i + 1], "position_ids": np.array([[i]])}
        out = run(small, step | {"attention_mask": np.ones((1, i + 1), np.int64)} | caches)
        logits.append(out[0])
        caches = dict(zip(caches, out[1:], strict=True))
    np.testing.assert_allclose(np.concatenate(logits, axis=1), at_once, atol=1e-3)
