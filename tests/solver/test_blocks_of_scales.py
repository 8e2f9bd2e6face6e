"""A scale for every block of a row's columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import textbook
from problems import layer

from onnx_obc.core.level import Level, parse_choice, parse_level
from onnx_obc.solver import Method, damp, fit_grid, layer_loss, round_to_grid, solve
from onnx_obc.solver.baselines import baseline
from onnx_obc.solver.bound.bound import lower_bound
from onnx_obc.solver.exact.quantize import quantize

SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False])


def problem(rows: int = 4, columns: int = 64) -> tuple[np.ndarray, np.ndarray]:
    weights, hessian = layer(rows=rows, columns=columns, samples=300, seed=2)
    return weights * np.geomspace(1, 30, columns, dtype=np.float32), hessian  # blocks of different size


@SYMMETRIC
def test_one_block_is_the_whole_row(symmetric: bool) -> None:
    weights, hessian = problem()
    damped = damp(hessian)
    plain, blocked = (solve(weights, damped, Level(bits=4, symmetric=symmetric, block=b)) for b in (None, 64))
    np.testing.assert_array_equal(plain.codes, blocked.codes)
    np.testing.assert_array_equal(plain.weights, blocked.weights)
    assert plain.loss == blocked.loss


@SYMMETRIC
def test_it_is_the_textbook_with_each_weights_own_step(symmetric: bool) -> None:
    weights, hessian = problem()
    damped = damp(hessian)
    grid = fit_grid(weights, 3, symmetric, block=16)
    assert grid.scale.shape == (1, 16) and grid.zero_point.shape == (1, 16)
    codes, _ = quantize(weights, damped, grid, precision="float64")
    scale, zero = grid.spread(4, 64)
    for row in range(4):
        wanted, _, _ = textbook.quantize(
            weights[0, row], damped.inverse[0], scale[0, row], zero[0, row], grid.qmin, grid.qmax
        )
        np.testing.assert_array_equal(codes[0, row], wanted)


@SYMMETRIC
def test_each_block_is_fitted_as_a_row_of_its_own(symmetric: bool) -> None:
    weights, _ = problem()
    grid = fit_grid(weights, 4, symmetric, block=32)
    own = fit_grid(weights.reshape(1, 8, 32), 4, symmetric)
    np.testing.assert_array_equal(grid.scale, own.scale)
    codes = round_to_grid(weights, grid)
    np.testing.assert_array_equal(codes, round_to_grid(weights.reshape(1, 8, 32), own).reshape(weights.shape))
    scale, zero = grid.spread(4, 64)
    np.testing.assert_array_equal(grid.dequantize(codes), (codes - zero).astype(np.float32) * scale)


@SYMMETRIC
@pytest.mark.parametrize("level", ["int4", "int3", "2:4+int4", "sparse-0.50+int4"])
@pytest.mark.parametrize("method", [Method(), Method(refine="auto"), Method(solver="ordered"), Method("ordered", 2)])
def test_books_are_kept_and_blocks_lose_little(level: str, method: Method, symmetric: bool) -> None:
    weights, hessian = problem(columns=256)
    damped = damp(hessian)
    plain = replace(parse_level(level), symmetric=symmetric)
    found, whole = (solve(weights, damped, one, method) for one in (replace(plain, block=16), plain))
    assert found.grid is not None and found.codes is not None
    np.testing.assert_array_equal(found.grid.dequantize(found.codes), found.weights)
    assert found.loss == pytest.approx(layer_loss(weights, found.weights, damped.hessian), rel=1e-4)
    assert found.loss < 1.1 * whole.loss and found.loss < baseline(weights, damped, plain).loss
    if method.solver == "exact":
        assert lower_bound(weights, damped, found.level, found.grid) <= found.loss * (1 + 1e-9)
    if method.refine != "none":
        assert found.loss_greedy is not None and found.loss <= found.loss_greedy


def test_some_columns_of_a_grid() -> None:
    weights, _ = problem()
    grid = fit_grid(weights, 4, False, block=16)
    chosen = np.array([[[3, 20, 63]]])
    part = grid.take(4, 64, chosen)
    np.testing.assert_array_equal(
        part.dequantize(round_to_grid(weights[:, :, [3, 20, 63]], part)),
        grid.dequantize(round_to_grid(weights, grid))[:, :, [3, 20, 63]],
    )
    plain = fit_grid(weights, 4)
    assert plain.take(4, 64, chosen) is plain


@pytest.mark.parametrize("text", ["int4-b64", "int4-asym-b16", "2:4+int8-b256", "4w8a-b32", "4w8a-asym-b128"])
def test_levels_are_read_as_they_are_written(text: str) -> None:
    assert str(parse_choice(text)) == text
    assert parse_choice(text).level.block is not None
