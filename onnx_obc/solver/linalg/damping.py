"""Chooses the damping of a layer's Hessian by samples that were held out of it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...core.arrays import Float64

CANDIDATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # of the mean diagonal; more than that cost EfficientNet-Lite0 output
CONSTANT = 0.01  # where no samples could be held out
TOLERANCE = 0.01  # a loss so little above the least is as good: then less damping changes the outputs less
_DRAWS, _ROWS = 2, 32
_TOGETHER = 2**22  # numbers of Hessians that are worked on at a time

Index: TypeAlias = npt.NDArray[np.intp]


def choose_damping(fitted: Float64, held_out: Float64) -> float:
    """The least of CANDIDATES whose loss on `held_out` is within TOLERANCE of the least; CONSTANT if that is all zero.

    fitted, held_out: (groups, columns, columns) float64, Hessians of different samples. One damping serves all groups.
    """
    losses = held_out_losses(fitted, held_out)  # (candidates,)
    least = losses.min()
    if not 0 < least < np.inf:
        return CONSTANT
    return CANDIDATES[int(np.argmax(losses <= (1 + TOLERANCE) * least))]


def held_out_losses(fitted: Float64, held_out: Float64) -> Float64:
    """The loss on `held_out` at each of CANDIDATES when half of the columns go, summed over groups: (candidates,).

    What compensates for removed columns r is a ridge regression of them on the kept ones k, whatever chose them:
    Δ_k = −Δ_r H_rk (H_kk + λ)⁻¹. So a random half of the columns is taken from a few random rows, twice, in place of
    what the greedy would do, which takes longer by a factor of thousands.
    """
    groups, columns, _ = fitted.shape
    random = np.random.default_rng(0)
    losses = np.zeros(len(CANDIDATES))
    for _ in range(_DRAWS if columns > 1 else 0):
        order = random.permutation(columns)
        gone, kept = np.sort(order[: columns // 2]), np.sort(order[columns // 2 :])
        rows = random.standard_normal((_ROWS, len(gone)))
        step = max(1, _TOGETHER // columns**2)
        for first in range(0, groups, step):
            some = slice(first, first + step)
            losses += _of_some(fitted[some], held_out[some], rows, gone, kept)
    return losses


def _of_some(fitted: Float64, held_out: Float64, rows: Float64, gone: Index, kept: Index) -> Float64:
    """The losses of some groups. rows: (rows, gone), what is taken from the columns `gone`."""
    means = np.einsum("gii->g", fitted) / fitted.shape[1]  # (groups,)
    means = np.where(means > 0, means, 1.0)  # dead: nothing is compensated, nothing lost
    matrix, across = fitted[:, kept[:, None], kept], fitted[:, kept[:, None], gone] @ rows.T  # (groups, kept, rows)
    diagonal = np.einsum("gii->gi", matrix)  # a view
    plain = diagonal.copy()
    judge, judge_across = held_out[:, kept[:, None], kept], held_out[:, kept[:, None], gone] @ rows.T
    alone = ((rows @ held_out[:, gone[:, None], gone]) * rows).sum()
    losses = np.empty(len(CANDIDATES))
    for i, damping in enumerate(CANDIDATES):
        diagonal[:] = plain + damping * means[:, None]
        change = np.linalg.solve(matrix, across)  # (groups, kept, rows)
        losses[i] = 0.5 * (alone - 2 * (judge_across * change).sum() + ((judge @ change) * change).sum())
    return losses
