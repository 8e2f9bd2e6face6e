"""The cut across rows: how many steps of its trace each row takes when the layer as a whole loses so many weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...core.arrays import Float32, Float64
from ..linalg.compiled import compiled


def cut(losses: Float64, count: int, weight: Float64 | None = None) -> npt.NDArray[np.intp]:
    """How many steps each row takes if `count` steps are taken in all and Σ weight · loss is to be small.

    A row's running sum of losses is replaced by its lower convex hull: steps under one edge of it go together, each at
    their mean. Then the cheapest step goes first, ties to the lower row. Where no edge is left unfinished, no other
    depths with the same sum lose less: greed solves a separable convex problem.

    losses: (rows, steps), what each step of a row adds. weight: (rows,), not negative; None: 1 for all rows. Returns
    (rows,) integers that sum to `count`.
    """
    mean = np.empty(losses.shape)
    _pool(losses, mean)
    if weight is not None:
        mean *= weight[:, None]
    first = np.argsort(mean, axis=None, kind="stable")[:count]
    return np.bincount(first // losses.shape[1], minlength=len(losses))


def row_weights(weights: Float32, hessian: Float64) -> Float64:
    """What a row's loss counts for in the cut: 1 / √(Σ_j H_jj w_j²), which is 0 for a row that puts out nothing.

    A row's loss grows with the square of its scale, and rows of a matrix with BatchNorm folded in differ in scale by
    orders of magnitude. Compared as they are, rows of large scale keep nearly all their weights; relative to the row's
    own energy, no more than those of small scale. Network outputs lose least in between, at the geometric mean
    (docs/method.md has the figures). H_jj in place of H: the mean that inputs behind a ReLU share would otherwise
    make up most of the energy.

    weights: (groups, rows, columns). hessian: (groups, columns, columns). Returns (groups · rows,).
    """
    diagonals = np.diagonal(hessian, axis1=1, axis2=2)[:, :, None]  # (groups, columns, 1)
    energy = (np.square(np.ascontiguousarray(weights), dtype=np.float64) @ diagonals).reshape(-1)
    with np.errstate(divide="ignore"):
        return np.where(energy > 0, 1 / np.sqrt(energy), 0.0)


@compiled
def _pool(losses: Float64, mean: Float64) -> None:
    """mean: the slopes of the lower convex hull of each row's running sum, by pooling what does not increase."""
    steps = losses.shape[1]
    total, length = np.empty(steps), np.empty(steps, np.int64)  # of the pools so far
    for i in range(losses.shape[0]):
        pools = 0
        for j in range(steps):
            total[pools], length[pools] = losses[i, j], 1
            pools += 1
            while pools > 1 and total[pools - 2] * length[pools - 1] >= total[pools - 1] * length[pools - 2]:
                pools -= 1
                total[pools - 1] += total[pools]
                length[pools - 1] += length[pools]
        j, last = 0, -np.inf
        for p in range(pools):
            last = max(last, total[p] / length[p])  # rounding must not put a later pool before an earlier one
            mean[i, j : j + length[p]] = last
            j += length[p]
