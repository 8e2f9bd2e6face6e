from __future__ import annotations

import numpy as np
import pytest
from problems import layer

from onnx_obc.core.level import NM, Block, Unstructured, parse_level
from onnx_obc.solver import Method, baseline, damp, layer_loss, solve
from onnx_obc.solver.baselines.magnitude import magnitude_mask

LEVELS = ["int8", "int3-asym", "2:4", "sparse-0.60", "block4-0.70", "2:4+int4", "block4-0.50+int8"]


@pytest.mark.parametrize("level", LEVELS)
def test_the_loss_is_measured_and_the_pattern_that_of_the_solver(level):
    weights, hessian = layer(groups=2, rows=3, columns=35)
    damped = damp(hessian)
    simple = baseline(weights, damped, parse_level(level))
    assert simple.loss == layer_loss(weights, simple.weights, damped.hessian) > 0
    exact = solve(weights, damped, parse_level(level))
    if simple.mask is not None:
        assert simple.mask.sum() == exact.mask.sum() or "block" in level  # the last block is shorter
        assert (simple.weights[~simple.mask] == 0).all()
    if simple.codes is not None:
        assert (simple.grid.dequantize(simple.codes) == simple.weights).all()
    elif simple.mask is not None:
        assert (simple.weights[simple.mask] == weights[simple.mask]).all()


def test_rounding_uses_the_solvers_grid():
    weights, hessian = layer()
    damped = damp(hessian)
    for method in ("minmax", "mse"):
        simple = baseline(weights, damped, parse_level("int4"), grid=method)
        exact = solve(weights, damped, parse_level("int4"), Method(grid=method))
        assert (simple.grid.scale == exact.grid.scale).all()


def test_magnitude_masks():
    weights = np.array([[[1, -5, 3, 2, 9], [0.5, 4, -8, 7, 6]]], np.float32)
    kept = magnitude_mask(weights, NM(2, 4)).astype(int)[0]
    assert kept.tolist() == [[0, 1, 1, 0, 1], [0, 0, 1, 1, 1]]
    kept = magnitude_mask(weights, Unstructured(0.4)).astype(int)[0]
    assert kept.tolist() == [[0, 1, 0, 0, 1], [0, 1, 1, 1, 1]]
    kept = magnitude_mask(weights, Block(2, 0.5)).astype(int)[0]
    assert kept.tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1]]
