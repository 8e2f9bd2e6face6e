"""The loss between two models' outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import build, random

from onnx_obc.runtime.output_loss import OutputLoss, class_scores


def loss(dense: np.ndarray, compressed: np.ndarray, scores: bool) -> float:
    total = OutputLoss(["y"] if scores else [])
    total.add({"y": dense}, {"y": compressed})
    return total.value


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64))
    return e / e.sum(axis=-1, keepdims=True)


def test_scores_are_compared_by_their_divergence() -> None:
    a, b = random(16, 10), random(16, 10, seed=1)
    p, q = softmax(a), softmax(b)
    expected = float((p * np.log(p / q)).sum(axis=1).mean())
    assert loss(a, b, True) == pytest.approx(expected, rel=1e-6)
    assert loss(softmax(a), softmax(b), True) == pytest.approx(expected, rel=1e-6)  # logits or probabilities
    assert loss(np.log(softmax(a)), b + 3, True) == pytest.approx(expected, rel=1e-6)  # a constant says nothing
    assert loss(a, a, True) == 0


def test_other_outputs_are_compared_by_their_squared_error() -> None:
    a, b = random(16, 10), random(16, 10, seed=1)
    assert loss(a, b, False) == pytest.approx(float(((a - b) ** 2).sum() / (a**2).sum()), rel=1e-6)
    assert loss(a, 0 * a, False) == pytest.approx(1)


def test_it_is_a_mean_over_samples_whatever_the_batches() -> None:
    a, b = random(16, 10), random(16, 10, seed=1)
    for scores in (["y"], []):
        total = OutputLoss(scores)
        for part in (slice(0, 3), slice(3, 16)):
            total.add({"y": a[part]}, {"y": b[part]})
        assert total.value == pytest.approx(loss(a, b, bool(scores)), rel=1e-12)


def test_integers_do_not_count_and_nan_is_infinite() -> None:
    total = OutputLoss([])
    total.add({"k": np.arange(3)}, {"k": np.zeros(3, np.int64)})
    assert total.value == 0
    assert loss(random(2, 3), np.full((2, 3), np.nan), True) == np.inf
    assert loss(random(2, 3), np.full((2, 3), np.nan), False) == np.inf


def test_class_scores_come_straight_from_a_product() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["scores"]),
        helper.make_node("ReduceL2", ["h"], ["n"], axes=[1]),
        helper.make_node("Div", ["h", "n"], ["embedding"]),
    ]
    model = ir.from_proto(
        build(
            nodes,
            {"x": ["N", 4]},
            {"scores": ["N", 3], "embedding": ["N", 3]},
            {"w": random(4, 3), "b": random(3)},
        )
    )
    assert class_scores(model) == {"scores"}
