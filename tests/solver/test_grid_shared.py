"""One grid for all rows of a group."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obc.core.level import parse_level
from onnx_obc.solver import Method, damp, fit_grid, layer_loss, solve

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 8, 12)).astype(np.float32) * np.array([1.0, 5.0, 0.1], np.float32)[:, None, None]


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_share_it_and_groups_do_not(symmetric: bool) -> None:
    grid = fit_grid(W, 8, symmetric, "minmax", shared=True)
    assert grid.scale.shape == (3, 8) and (grid.scale == grid.scale[:, :1]).all()
    assert (grid.zero_point == grid.zero_point[:, :1]).all() and len(np.unique(grid.scale)) == 3
    flat = fit_grid(W.reshape(3, 1, -1), 8, symmetric, "minmax")
    np.testing.assert_array_equal(grid.scale[:, 0], flat.scale[:, 0])
    np.testing.assert_array_equal(grid.zero_point[:, 0], flat.zero_point[:, 0])


def test_of_many_weights_the_extremes_count() -> None:
    wide = RNG.standard_normal((1, 64, 4096)).astype(np.float32)
    wide[0, 13, 77] = 50
    assert fit_grid(wide, 8, True, "minmax", shared=True).scale[0, 0] == pytest.approx(50 / 127)


def test_the_solver_keeps_it_and_its_books() -> None:
    x = RNG.standard_normal((12, 200))
    damped = damp(np.broadcast_to(2 / 200 * x @ x.T, (3, 12, 12)))
    for refine in ("none", "auto"):
        found = solve(W, damped, parse_level("int4"), Method(refine=refine, shared_scale=True))  # type: ignore[arg-type]
        assert found.grid is not None and (found.grid.scale == found.grid.scale[:, :1]).all()
        assert found.loss == pytest.approx(layer_loss(W, found.weights, damped.hessian), rel=1e-4)
    own = solve(W, damped, parse_level("int4"), Method())
    assert own.loss < found.loss  # what a scale for every row is worth
