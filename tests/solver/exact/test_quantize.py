from __future__ import annotations

import numpy as np
import pytest
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.level import NM, Unstructured
from onnx_obc.core.solution import Grid
from onnx_obc.solver.exact.prune import prune
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.grid import fit_grid, round_to_grid
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.linalg.loss import layer_loss


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from([1, 9, 35]))
def test_masked_rows_are_the_textbook_on_their_kept_columns(seed, bits, symmetric, columns):
    weights, hessian = layer(2, 3, columns, seed=seed)
    mask = np.random.default_rng(seed).random(weights.shape) < 0.6
    mask[0, 0] = True
    mask[1, 1] = False
    weights[~mask] = 0
    damped = damp(hessian)
    grid = fit_grid(weights, bits, symmetric)
    codes, losses_of_rows = quantize(weights, damped, grid, mask, precision="float64")
    loss = losses_of_rows.sum()
    total = 0.0
    for g, r in np.ndindex(2, 3):
        kept = np.flatnonzero(mask[g, r])
        inverse = np.linalg.inv(damped.hessian[g][np.ix_(kept, kept)])
        zero = grid.zero_point[g, r]
        wanted, _, losses = textbook.quantize(
            weights[g, r, kept], inverse, grid.scale[g, r], zero, grid.qmin, grid.qmax
        )
        assert codes[g, r, kept].tolist() == wanted.tolist()
        assert (codes[g, r, ~mask[g, r]] == zero).all()
        total += sum(losses)
    np.testing.assert_allclose(loss, total, rtol=1e-8, atol=1e-30)
    np.testing.assert_allclose(loss, layer_loss(weights, grid.dequantize(codes), damped.hessian), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("sparsity", [Unstructured(0.6), NM(2, 4)])
def test_losses_of_pruning_and_quantizing_add_up(sparsity):
    weights, hessian = layer(2, 4, 60)
    damped = damp(hessian)
    sparse, mask, pruning = prune(weights, damped, sparsity)
    grid = fit_grid(sparse, 3)
    codes, losses = quantize(sparse, damped, grid, mask)
    quantization = losses.sum()
    assert quantization > 0.01 * pruning > 0
    measured = layer_loss(weights, grid.dequantize(codes), damped.hessian)
    np.testing.assert_allclose(pruning + quantization, measured, rtol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_on_the_grid_stay(symmetric):
    random = np.random.default_rng(0)
    scale = random.random((2, 3)).astype(np.float32) + 0.1
    zero = np.zeros((2, 3), np.int32) if symmetric else random.integers(0, 16, (2, 3)).astype(np.int32)
    grid = Grid(scale, zero, 4, symmetric)
    codes = random.integers(grid.qmin, grid.qmax + 1, (2, 3, 20)).astype(np.int32)
    weights = grid.dequantize(codes)
    got, loss = quantize(weights, damp(layer(2, 3, 20)[1]), grid)
    assert (got == codes).all()
    assert (loss == 0).all()


def test_zero_hessian_rounds():
    weights, hessian = layer(2, 3, 20)
    grid = fit_grid(weights, 4)
    codes, _ = quantize(weights, damp(hessian * 0), grid)
    assert (codes == round_to_grid(weights, grid)).all()


def test_codes_lie_on_the_grid_even_when_weights_run_away():
    weights, hessian = layer(rows=8, columns=64, samples=8, decay=2.0)
    grid = fit_grid(weights, 2, False)
    codes, losses = quantize(weights, damped := damp(hessian, 1e-4), grid)
    loss = losses.sum()
    assert codes.min() == 0 and codes.max() == 3
    np.testing.assert_allclose(loss, layer_loss(weights, grid.dequantize(codes), damped.hessian), rtol=1e-4)
