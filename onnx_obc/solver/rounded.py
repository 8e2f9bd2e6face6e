"""A layer rounded from several starts and on several grids, of which every row takes its best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..core.arrays import Bool, Float32, Float64, Int32
from ..core.level import Level
from ..core.solution import Grid, Solution
from .exact.quantize import quantize
from .grid import fit_grid
from .linalg.inverse import Damped
from .linalg.loss import row_losses
from .linalg.threads import RowsDone
from .method import ROUNDING, Method

_T = TypeVar("_T", bound=np.generic)
Rounding: TypeAlias = Callable[[Float32, Grid, Bool | None], tuple[Int32, Float64]]


@dataclass(frozen=True)
class Rounded:
    """codes: (groups, rows, columns) int32 on `grid`. mask: what was kept, or None. losses: (groups, rows) float64, the
    layer loss predicted for each row, pruning included."""

    codes: Int32
    grid: Grid
    mask: Bool | None
    losses: Float64

    def or_better(self, other: Rounded, shared_scale: bool = False) -> Rounded:
        """Of every row the one that loses less, this one on ties; of every group, if its rows share a scale."""
        better = other.losses < self.losses  # (groups, rows)
        if shared_scale:
            better[:] = (other.losses.sum(axis=1) < self.losses.sum(axis=1))[:, None]
        row = better[:, :, None]
        parts = better.repeat(self.grid.scale.shape[1] // better.shape[1], axis=1)  # (groups, rows · blocks)
        return Rounded(
            np.where(row, other.codes, self.codes),
            replace(
                self.grid,
                scale=np.where(parts, other.grid.scale, self.grid.scale),
                zero_point=np.where(parts, other.grid.zero_point, self.grid.zero_point),
            ),
            self.mask if self.mask is None or other.mask is None else np.where(row, other.mask, self.mask),
            np.where(better, other.losses, self.losses),
        )


def round_layer(
    pruned: Solution, weights: Float32, damped: Damped, level: Level, method: Method, progress: RowsDone | None
) -> Rounded:
    """One start on its grids: that of `Method.grid`, and for symmetric rows the one that OBC's experiments search."""
    assert level.bits is not None
    start = pruned.weights
    grids = [grid_of(start, level, method)]
    if level.symmetric and method.grid == "mse" and not method.shared_scale:
        grids.append(grid_of(start, level, method, whole_span=False))
    pruning = row_losses(weights, start, damped.hessian)  # (groups, rows)

    def rounding(rows: Float32, grid: Grid, mask: Bool | None) -> tuple[Int32, Float64]:
        told = progress if len(rows[0]) == len(start[0]) else None
        codes, losses = quantize(rows, damped, grid, mask, method.threads, method.precision, told, method.device)
        if method.precision == "auto":
            measured = row_losses(rows, grid.dequantize(codes), damped.hessian).sum()
            if abs(losses.sum() - measured) > ROUNDING * (measured + pruning.sum()):
                return quantize(rows, damped, grid, mask, method.threads, "float64", None, method.device)
        return codes, losses

    return _round_on(start, pruned.mask, pruning, grids, rounding)


def _round_on(start: Float32, mask: Bool | None, pruning: Float64, grids: list[Grid], rounding: Rounding) -> Rounded:
    """The start rounded on the first grid, and rows that have another grid among the others on that too.

    start: (groups, rows, columns), the weights left by pruning. pruning: (groups, rows), what that cost.
    """
    codes, losses = rounding(start, grids[0], mask)
    best = Rounded(codes, grids[0], mask, pruning + losses)
    rows = start.shape[1]
    for grid in grids[1:]:
        blocks = grid.scale.shape[1] // rows
        other = (grid.scale != grids[0].scale).reshape(len(start), rows, blocks).any(axis=(0, 2))  # (rows,)
        if not other.any():
            continue
        codes, losses = best.codes.copy(), best.losses.copy()
        own = replace(
            grid,
            scale=_rows(grid.scale, other, blocks),
            zero_point=_rows(grid.zero_point, other, blocks),
        )
        found, each = rounding(start[:, other], own, None if mask is None else mask[:, other])
        codes[:, other], losses[:, other] = found, pruning[:, other] + each
        best = best.or_better(Rounded(codes, grid, mask, losses))
    return best


def grid_of(start: Float32, level: Level, method: Method, whole_span: bool = True) -> Grid:
    """The grid of every row for the weights left by pruning; whole_span as for `fit_grid`."""
    assert level.bits is not None
    shared, threads = method.shared_scale, method.threads
    return fit_grid(start, level.bits, level.symmetric, method.grid, threads, shared, level.block, whole_span)


def _rows(values: npt.NDArray[_T], chosen: Bool, blocks: int) -> npt.NDArray[_T]:
    """Some rows of a grid's (groups, rows · blocks)."""
    return values.reshape(len(values), -1, blocks)[:, chosen].reshape(len(values), -1)
