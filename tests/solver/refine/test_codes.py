from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.core.level import NM, Unstructured
from onnx_obc.solver.exact.prune import prune
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.grid import fit_grid, round_to_grid
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.linalg.loss import layer_loss
from onnx_obc.solver.refine.codes import refine_codes


def row_losses(weights, solved, hessian):
    delta = weights.astype(np.float64) - solved
    return 0.5 * ((delta @ hessian) * delta).sum(axis=2)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([1, 2, 9, 31, 32, 33, 70]),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
    st.booleans(),
)
def test_no_row_is_worse_and_the_loss_is_the_measured_one(seed, groups, rows, columns, bits, symmetric, sparse):
    weights, hessian = layer(groups, rows, columns, seed=seed)
    hessian = damp(hessian * 10.0 ** (seed % 40 - 20)).hessian
    mask = np.random.default_rng(seed).random(weights.shape) < 0.5 if sparse else None
    start = weights if mask is None else weights * mask
    grid = fit_grid(start, bits, symmetric)
    codes = round_to_grid(start, grid)
    refined, fitted, loss = refine_codes(weights, hessian, codes, grid, mask, sweeps=3)
    assert refined.dtype == np.int32 and fitted.scale.dtype == np.float32
    assert refined.min() >= grid.qmin and refined.max() <= grid.qmax
    assert (fitted.zero_point == grid.zero_point).all() and (fitted.scale > 0).all()
    if mask is not None:
        assert (fitted.dequantize(refined)[~mask] == 0).all()
    before, after = (row_losses(weights, g.dequantize(c), hessian) for g, c in ((grid, codes), (fitted, refined)))
    assert (after <= before).all()
    np.testing.assert_allclose(loss, layer_loss(weights, fitted.dequantize(refined), hessian), rtol=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_below_the_greedy(symmetric):
    weights, hessian = layer(rows=16, columns=96, samples=300, seed=3)
    damped = damp(hessian)
    for bits in (2, 3, 4):
        grid = fit_grid(weights, bits, symmetric)
        codes, greedy = quantize(weights, damped, grid)
        loss = refine_codes(weights, damped.hessian, codes, grid)[2]
        assert loss < 0.95 * greedy.sum()


def test_the_optimum_of_small_rows_is_found():
    weights, hessian = layer(rows=6, columns=6, samples=20, seed=7)
    hessian = damp(hessian).hessian
    grid = fit_grid(weights, 2, symmetric=False)
    start = round_to_grid(weights, grid)
    codes, fitted, _ = refine_codes(weights, hessian, start, grid, sweeps=20)
    losses = row_losses(weights, fitted.dequantize(codes), hessian)  # (1, rows)
    every = np.array(list(itertools.product(range(4), repeat=6)), np.int32)  # (4⁶, columns)
    for r in range(6):
        # All codes, each with the scale that is optimal for it.
        x = (every - grid.zero_point[0, r]).astype(np.float64)
        w = weights[0, r].astype(np.float64)
        cross, square = x @ hessian[0] @ w, ((x @ hessian[0]) * x).sum(axis=1)
        gain = np.where(cross > 0, cross, 0) ** 2 / np.maximum(square, 1e-300)
        best = 0.5 * (w @ hessian[0] @ w - gain.max())
        assert best * (1 - 1e-6) <= losses[0, r] <= 1.02 * best


def test_no_single_move_and_no_scale_is_better_at_the_end():
    weights, hessian = layer(rows=5, columns=40, seed=2)
    hessian = damp(hessian).hessian
    grid = fit_grid(weights, 3, symmetric=False)
    codes, fitted, _ = refine_codes(weights, hessian, round_to_grid(weights, grid), grid, sweeps=40)
    found = row_losses(weights, fitted.dequantize(codes), hessian)  # (1, rows)
    for j, step in itertools.product(range(40), (-1, 1)):
        moved = codes.copy()
        moved[0, :, j] = np.clip(moved[0, :, j] + step, grid.qmin, grid.qmax)
        assert (row_losses(weights, fitted.dequantize(moved), hessian) >= found * (1 - 1e-5)).all()
    for factor in (0.999, 1.001):
        other = replace(fitted, scale=fitted.scale * np.float32(factor))
        assert (row_losses(weights, other.dequantize(codes), hessian) >= found).all()


def test_the_result_is_that_of_every_row_alone():
    weights, hessian = layer(groups=2, rows=7, columns=50)
    hessian = damp(hessian).hessian
    grid = fit_grid(weights, 4)
    codes = round_to_grid(weights, grid)
    wanted, fitted, _ = refine_codes(weights, hessian, codes, grid, threads=1)
    found, other, _ = refine_codes(weights, hessian, codes, grid, threads=3)
    assert (found == wanted).all() and (other.scale == fitted.scale).all()
    for g, r in ((0, 0), (1, 4)):
        part = np.s_[g : g + 1, r : r + 1]
        alone = replace(grid, scale=grid.scale[part], zero_point=grid.zero_point[part])
        found, other, _ = refine_codes(weights[part], hessian[g : g + 1], codes[part], alone)
        assert (found == wanted[part]).all() and other.scale == fitted.scale[g, r]


@pytest.mark.parametrize("sparsity", [NM(2, 4), Unstructured(0.6)])
def test_pruned_weights_stay_zero_and_the_rest_gets_better(sparsity):
    weights, hessian = layer(rows=8, columns=64, samples=300, seed=5)
    damped = damp(hessian)
    solved, mask, pruning = prune(weights, damped, sparsity)
    grid = fit_grid(solved, 4, symmetric=False)
    codes, quantization = quantize(solved, damped, grid, mask)
    refined, fitted, loss = refine_codes(weights, damped.hessian, codes, grid, mask)
    assert (fitted.dequantize(refined)[~mask] == 0).all()
    assert pruning < loss < pruning + 0.95 * quantization.sum()


def test_rows_that_are_zero_or_cannot_move_come_back_as_they_are():
    weights, hessian = layer(rows=3, columns=20)
    weights[0, 1] = 0
    hessian = damp(hessian).hessian
    grid = fit_grid(weights, 4)
    codes = round_to_grid(weights, grid)
    mask = np.ones(weights.shape, bool)
    mask[0, 2] = False
    codes[0, 2] = 0
    refined, fitted, _ = refine_codes(weights, hessian, codes, grid, mask)
    assert (refined[0, 1:] == codes[0, 1:]).all() and (fitted.scale[0, 1:] == grid.scale[0, 1:]).all()


def test_dead_inputs_and_a_zero_hessian_do_no_harm():
    weights, hessian = layer(rows=3, columns=20)
    hessian[:, :5] = hessian[:, :, :5] = 0
    for h in (hessian, hessian * 0):
        h = damp(h).hessian
        grid = fit_grid(weights, 3)
        codes = round_to_grid(weights, grid)
        _, fitted, loss = refine_codes(weights, h, codes, grid)
        assert loss <= layer_loss(weights, grid.dequantize(codes), h)
        assert np.isfinite(fitted.scale).all() and np.isfinite(loss)
