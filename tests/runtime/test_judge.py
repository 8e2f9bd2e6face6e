"""The judge: the output loss of models against one dense model, over the same feeds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.helper import make_node as node
from small_graphs import build, random, run

from onnx_obc.core.errors import ModelError
from onnx_obc.runtime.judge import Judge, Loss, less
from onnx_obc.runtime.session import Execution

W = random(4, 3)
FEEDS = [{"x": random(5, 4, seed=1)}, {"x": random(2, 4, seed=2)}]


def doubled_tanh(weight: np.ndarray) -> ir.Model:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Tanh", ["h"], ["y"])]
    return ir.from_proto(build(nodes, {"x": ("N", 4)}, {"y": ("N", 3)}, {"w": weight}))


def test_the_dense_model_loses_nothing_and_others_what_their_outputs_say() -> None:
    dense, other = doubled_tanh(W), doubled_tanh(W + 0.1 * random(4, 3, seed=3))
    told: list[int] = []
    judge = Judge(dense, FEEDS, Execution("cpu", 1), told.append)
    assert told == [1, 1]
    assert judge.loss(dense) == 0
    y, z = (np.concatenate([run(model, feed)[0] for feed in FEEDS]) for model in (dense, other))  # (7, 3) each
    assert judge.loss(other) == pytest.approx(((y - z) ** 2).sum() / (y**2).sum(), rel=1e-5)


def test_a_model_that_does_not_run_is_an_error() -> None:
    judge = Judge(doubled_tanh(W), FEEDS, Execution("cpu", 1))
    with pytest.raises(ModelError):
        judge.loss(doubled_tanh(random(5, 3)))


def test_a_clear_fall_is_larger_than_its_standard_error() -> None:
    before = Loss(2.0, np.array([1.0, 2.0, 3.0]))
    steady, scattered = (Loss(1.9, before.by_sample - falls) for falls in ([0.1, 0.1, 0.1], [1.0, -0.7, 0.0]))
    assert less(steady, before, clearly=True) == (True, pytest.approx(0, abs=1e-15))
    assert less(scattered, before, clearly=True) == (False, pytest.approx(np.std([1.0, -0.7, 0.0], ddof=1) / 3**0.5))
    assert less(scattered, before, clearly=False)[0]
    assert not less(before, steady, clearly=False)[0]
    assert less(Loss(1.0, np.array([1.0])), Loss(2.0, np.array([2.0])), clearly=True) == (True, None)
