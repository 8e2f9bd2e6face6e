"""Chooses the damping of a layer's Hessian by samples that were held out of it."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ...core.arrays import Float64

CANDIDATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the mean diagonal
CONSTANT = 0.01  # where no samples could be held out
TOLERANCE = 0.01  # a loss so little above the least is as good: then less damping changes the outputs less
_DRAWS, _ROWS = 2, 32


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
        for g in range(groups):
            losses += _of_one(fitted[g], held_out[g], rows, gone, kept)
    return losses


def _of_one(fitted: Float64, held_out: Float64, rows: Float64, gone: np.ndarray, kept: np.ndarray) -> Float64:
    """The losses of one group. rows: (rows, gone), what is taken from the columns `gone`."""
    mean = float(fitted.trace()) / len(fitted)
    if mean <= 0:
        return np.zeros(len(CANDIDATES))
    wanted = fitted[np.ix_(kept, gone)] @ rows.T  # (kept, rows)
    matrix = fitted[np.ix_(kept, kept)]
    diagonal = matrix.diagonal().copy()
    judge, across = held_out[np.ix_(kept, kept)], held_out[np.ix_(kept, gone)] @ rows.T
    alone = float(((rows @ held_out[np.ix_(gone, gone)]) * rows).sum())
    losses = np.full(len(CANDIDATES), np.inf)
    for i, damping in enumerate(CANDIDATES):
        np.fill_diagonal(matrix, diagonal + damping * mean)
        try:
            change = cho_solve(cho_factor(matrix, check_finite=False), wanted, check_finite=False)  # (kept, rows)
        except np.linalg.LinAlgError:
            continue
        losses[i] = 0.5 * (alone - 2 * (across * change).sum() + ((judge @ change) * change).sum())
    return losses
