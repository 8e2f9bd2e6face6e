from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_obc.core.solution import Grid
from onnx_obc.solver.grid import fit_grid, round_to_grid


def error(weights, grid):
    """Σ|error|^2.4 of every row."""
    rounded = grid.dequantize(round_to_grid(weights, grid)).astype(float)
    return (np.abs(weights - rounded) ** 2.4).sum(axis=2)


def normal(shape=(2, 5, 40), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_minmax_symmetric_represents_the_largest_magnitude_with_either_sign(bits):
    weights = normal()
    for sign in (1, -1):
        grid = fit_grid(sign * weights, bits, True, "minmax")
        largest = np.abs(weights).max(axis=2)
        np.testing.assert_allclose(grid.scale * grid.qmax, largest, rtol=1e-6)
        rounded = grid.dequantize(round_to_grid(sign * weights, grid))
        assert (np.abs(rounded - sign * weights) <= grid.scale[..., None] * 0.50001).all()
        assert (grid.zero_point == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shift", [-5, 0, 5])
def test_minmax_asymmetric_spans_the_row_and_zero(bits, shift):
    weights = normal() + np.float32(shift)
    grid = fit_grid(weights, bits, False, "minmax")
    span = np.maximum(weights.max(axis=2), 0) - np.minimum(weights.min(axis=2), 0)
    np.testing.assert_allclose(grid.scale, span / (2**bits - 1), rtol=1e-6)
    assert grid.zero_point.min() >= 0 and grid.zero_point.max() <= 2**bits - 1
    assert (grid.dequantize(round_to_grid(weights * 0, grid)) == 0).all()
    rounded = grid.dequantize(round_to_grid(weights, grid))
    assert (np.abs(rounded - weights) <= grid.scale[..., None] * 1.00001).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_the_best_of_minmax_and_the_eighty_clippings(bits, symmetric):
    weights = normal()
    grid = fit_grid(weights, bits, symmetric, "mse")
    widest = fit_grid(weights, bits, symmetric, "minmax")
    if symmetric:
        full = np.abs(weights).max(axis=2).astype(float) / ((2**bits - 1) / 2)
    else:
        full = (weights.max(axis=2).astype(float) - weights.min(axis=2)) / (2**bits - 1)
    tried = [error(weights, widest)]
    for i in range(80):
        scale = (full * ((100 - i) / 100)).astype(np.float32)
        tried.append(error(weights, Grid(scale, widest.zero_point, bits, symmetric)))
    np.testing.assert_allclose(error(weights, grid), np.min(tried, axis=0), rtol=1e-12)
    assert (grid.scale < full).any() or bits == 8


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
)
def test_mse_is_never_worse_than_minmax(row, bits, symmetric):
    weights = np.array([[row]], np.float32)
    fitted, widest = (error(weights, fit_grid(weights, bits, symmetric, method)) for method in ("mse", "minmax"))
    assert (fitted <= widest * (1 + 1e-9)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_on_minmax_s_grid_stays_exact(bits):
    top = 2 ** (bits - 1) - 1
    weights = np.arange(-top, top + 1, dtype=np.float32)[None, None] / 8
    assert error(weights, fit_grid(weights, bits, True, "mse")).max() == 0


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-40, 38), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from(["minmax", "mse"]), st.integers(0, 9)
)
def test_scales_are_normal_numbers_and_codes_in_range(exponent, bits, symmetric, method, seed):
    weights = (normal((1, 3, 6), seed) * 0.1 * 10.0**exponent).astype(np.float32)
    weights[0, 1] = 0
    grid = fit_grid(weights, bits, symmetric, method)
    assert grid.scale.dtype == np.float32 and grid.zero_point.dtype == np.int32
    assert np.isfinite(grid.scale).all() and (grid.scale >= np.finfo(np.float32).tiny).all()
    assert grid.scale[0, 1] == 1
    codes = round_to_grid(weights, grid)
    assert codes.min() >= grid.qmin and codes.max() <= grid.qmax
    assert (grid.dequantize(codes)[0, 1] == 0).all()


def test_rows_of_one_sign_keep_zero_on_the_grid():
    weights = np.abs(normal()) + 1
    for signed in (weights, -weights):
        grid = fit_grid(signed, 4, False, "mse")
        assert (grid.zero_point == (0 if signed is weights else 15)).all()
