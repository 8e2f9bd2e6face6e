"""How far the ordered solver's loss is from the exact solver's, on a sample of a layer's rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...core.arrays import Bool, Float32
from ...core.level import NM, Block, Level, Unstructured
from ...core.solution import Solution
from ..linalg.inverse import Damped
from ..linalg.loss import layer_loss
from ..linalg.threads import over_rows

Exact = Callable[[Float32, Damped, Level], Solution]


def compare_on_rows(
    weights: Float32, damped: Damped, solution: Solution, exact: Exact, count: int, threads: int | None = None
) -> float | None:
    """The loss of `solution` over that of `exact`, summed over `count` rows spread evenly over the layer.

    Each row is solved on its own. Where the level prunes a fraction of the whole layer (Unstructured, Block), a row is
    held to the number of weights or blocks that the solution took from it: the ratio is then about which weights go and
    what the others make of it, not about how the layer's pruning is shared out between rows. The exact solver, greedy
    as it is, is not an optimum: the ratio may be below 1.

    weights: (groups, rows, columns). count: `predict.rows_to_compare` says how many are affordable. Returns None if
    that is 0 or if the rows lose nothing.
    """
    groups, rows, _ = weights.shape
    if count < 1:
        return None
    picked = np.unique(np.linspace(0, groups * rows - 1, count).round().astype(int))
    hessians = {g: damped.group(g) for g in sorted({int(i) // rows for i in picked})}
    losses = np.zeros((len(picked), 2))  # of the solution, and exact
    for one in hessians.values():
        _ = one.inverse  # before the threads need it

    def work(start: int, stop: int) -> None:
        for k in range(start, stop):
            g, r = divmod(int(picked[k]), rows)
            row = weights[g : g + 1, r : r + 1]  # (1, 1, columns)
            losses[k, 0] = layer_loss(row, solution.weights[g : g + 1, r : r + 1], hessians[g].hessian)
            level = solution.level
            if solution.mask is not None:
                level = _level_of_row(level, solution.mask[g, r])
            if level.sparsity is not None or level.bits is not None:
                losses[k, 1] = exact(row, hessians[g], level).loss

    over_rows(work, len(picked), 2**30, threads)
    ours, theirs = losses.sum(axis=0)
    return float(ours / theirs) if theirs > 0 else None


def _level_of_row(level: Level, mask: Bool) -> Level:
    """The level that takes as much from a single row as `mask` (columns,) does."""
    sparsity = level.sparsity
    if sparsity is None or isinstance(sparsity, NM):
        return level
    width = sparsity.size if isinstance(sparsity, Block) else 1
    lost = ~mask[::width]
    if not lost.any():
        return replace(level, sparsity=None)
    share = float(lost.mean())
    return replace(level, sparsity=Block(width, share) if isinstance(sparsity, Block) else Unstructured(share))
