from __future__ import annotations

import sys

import numpy as np
import pytest
import textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import layer

from onnx_obc.solver.exact.elimination import Workspace
from onnx_obc.solver.exact.prune import solve_kept
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.exact.quantize_sparse import quantize_sparse_rows
from onnx_obc.solver.grid import fit_grid
from onnx_obc.solver.linalg.blas import invert_triangle
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.linalg.loss import layer_loss, row_losses

PRECISIONS = ["auto", "float32", "float64"]


def sparse_layer(groups, rows, columns, density, seed=0, decay=1.0):
    """A layer at the optimum for a random mask, rows of different density; the first row of all has lost everything."""
    weights, hessian = layer(groups, rows, columns, decay=decay, seed=seed)
    mask = np.random.default_rng(seed).random(weights.shape) < density
    mask[0, 0] = False
    damped = damp(hessian)
    return solve_kept(weights, mask, damped.hessian), mask, damped


def run(weights, mask, damped, grid, precision, sparse):
    """The kernel on all rows: codes and order (groups · rows, columns), losses (groups · rows,)."""
    flat = weights.reshape(-1, weights.shape[2])
    base, floor, unit = damped.scaled(precision)
    space = Workspace(flat.shape[1], base.dtype)
    codes, order, losses = np.empty(flat.shape, np.int32), np.empty(flat.shape, np.int32), np.empty(len(flat))
    grids = (*(x.reshape(flat.shape) for x in grid.spread(*weights.shape[1:])), grid.qmin, grid.qmax)
    rest = (space.room, space.factor, 0, len(flat), codes, order, losses)
    kept = mask.reshape(flat.shape)
    quantize_sparse_rows(flat, kept, damped.hessian, unit, base, floor, *grids, float(sparse), *rest)
    return codes, order, losses * unit.repeat(weights.shape[1])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.sampled_from([1, 9, 35, 150]),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_both_ways_are_the_textbook_on_the_kept_columns(seed, bits, symmetric, columns, density):
    weights, mask, damped = sparse_layer(2, 2, columns, density, seed)
    grid = fit_grid(weights, bits, symmetric)
    whole = run(weights, mask, damped, grid, "float64", sparse=0)
    kept = run(weights, mask, damped, grid, "float64", sparse=1)
    for i, (g, r) in enumerate(np.ndindex(2, 2)):
        own = np.flatnonzero(mask[g, r])
        inverse = np.linalg.inv(damped.hessian[g][np.ix_(own, own)])
        zero = grid.zero_point[g, r]
        codes, pivots, losses = textbook.quantize(
            weights[g, r, own], inverse, grid.scale[g, r], zero, grid.qmin, grid.qmax
        )
        for found in (whole, kept):
            assert found[0][i, own].tolist() == codes.tolist()
            assert (found[0][i, ~mask[g, r]] == zero).all()
            np.testing.assert_allclose(found[2][i], sum(losses), rtol=1e-8, atol=1e-30)
        wanted = own[pivots].tolist()
        assert whole[1][i, columns - len(own) :].tolist() == wanted
        if len(own) < columns:
            assert kept[1][i].tolist() == wanted + [-1] * (columns - len(own))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("density", [0.1, 0.3, 0.55, 0.8])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_predicted_loss_is_the_measured_one_of_every_row(precision, density, decay):
    weights, mask, damped = sparse_layer(2, 6, 150, density, decay=decay)
    grid = fit_grid(weights, 4)
    for sparse in (0, 1):
        codes, _, losses = run(weights, mask, damped, grid, precision, sparse)
        measured = row_losses(weights, grid.dequantize(codes.reshape(weights.shape)), damped.hessian)
        np.testing.assert_allclose(losses, measured.ravel(), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_groups_and_other_rows_change_nothing(precision):
    weights, mask, damped = sparse_layer(3, 7, 90, 0.5)
    mask[1, :4] = np.random.default_rng(1).random((4, 90)) < 0.9  # rows of both kinds in one group
    weights = solve_kept(weights, mask, damped.hessian)
    grid = fit_grid(weights, 4)
    whole, loss = quantize(weights, damped, grid, mask, 1, precision)
    for threads in (2, 3):
        codes, other = quantize(weights, damped, grid, mask, threads, precision)
        assert (codes == whole).all() and (other == loss).all()
    if precision != "auto":  # which looks at all groups
        for g in range(3):
            own = fit_grid(weights[g : g + 1], 4)
            codes, _ = quantize(weights[g : g + 1], damped.group(g), own, mask[g : g + 1], 1, precision)
            assert (codes == whole[g]).all()


def test_progress_and_an_interrupt():
    weights, mask, damped = sparse_layer(1, 40, 30, 0.4)
    grid, seen = fit_grid(weights, 4), []
    quantize(weights, damped, grid, mask, 2, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 40

    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(weights, damped, grid, mask, 2, progress=stop)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 64, 200])
def test_a_triangle_becomes_that_of_the_inverse(dtype, size):
    _, hessian = layer(columns=size)
    a = np.tril(damp(hessian, 0.1).hessian[0]).astype(dtype)
    a[np.triu_indices(size, 1)] = np.nan  # not looked at
    assert invert_triangle(a)
    wanted = np.linalg.inv(damp(hessian, 0.1).hessian[0])
    tolerance = (1e-3 if dtype == np.float32 else 1e-10) * np.abs(wanted).max()
    np.testing.assert_allclose(np.tril(a), np.tril(wanted), atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_that_is_not_positive_definite_is_found_out(dtype):
    assert not invert_triangle(np.array([[1, 2], [2, 1]], dtype))


def test_a_row_that_float32_cannot_factorise_takes_the_other_way():
    weights, hessian = layer(rows=4, columns=60, samples=10)
    damped, mask = damp(hessian, 1e-9), np.arange(60) < 30
    mask = np.broadcast_to(mask, weights.shape).copy()
    weights[~mask] = 0
    grid = fit_grid(weights, 4)
    half = np.tril(damped.hessian[0, :30, :30] / damped.scaled("float32")[2][0]).astype(np.float32)
    assert not invert_triangle(half)
    kept, whole = (run(weights, mask, damped, grid, "float32", sparse) for sparse in (1, 0))
    assert (kept[0] == whole[0]).all() and (kept[2] == whole[2]).all()
    exact, loss = quantize(weights, damped, grid, mask)  # auto: float64
    np.testing.assert_allclose(loss.sum(), layer_loss(weights, grid.dequantize(exact), damped.hessian), rtol=1e-4)


def test_the_way_is_chosen_by_density(monkeypatch):
    weights, mask, damped = sparse_layer(1, 4, 100, 0.5)
    mask[:, 1:] = np.arange(100) < np.array([[20], [55], [56]])
    weights = solve_kept(weights, mask, damped.hessian)
    orders = []

    def spy(*arguments):
        quantize_sparse_rows(*arguments)
        orders.append(arguments[-2].copy())

    monkeypatch.setattr(sys.modules["onnx_obc.solver.exact.quantize"], "quantize_sparse_rows", spy)
    quantize(weights, damped, fit_grid(weights, 4), mask, threads=1)
    assert (orders[0] >= 0).sum(axis=1).tolist() == [0, 20, 55, 100]
