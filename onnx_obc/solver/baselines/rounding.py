"""Round-to-nearest: every weight on its own."""

from __future__ import annotations

from ...core.arrays import Float32, Int32
from ...core.level import Level
from ...core.solution import Grid
from ..grid import GridMethod, fit_grid, round_to_grid


def round_to_nearest(
    weights: Float32, level: Level, grid: GridMethod, shared_scale: bool = False
) -> tuple[Int32, Grid]:
    """The nearest codes, (groups, rows, columns), on the same grids that the solver would use for these weights."""
    assert level.bits is not None
    fitted = fit_grid(weights, level.bits, level.symmetric, grid, shared=shared_scale, block=level.block)
    return round_to_grid(weights, fitted), fitted
