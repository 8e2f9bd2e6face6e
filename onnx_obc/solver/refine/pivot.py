"""The principal pivot transform of a row: what any change of its mask costs, the rest refitted.

For the kept columns K and the pruned ones P of a row, the principal pivot transform of H (Tucker 1960; the sweep
operator of least squares) and the row's state are

    M = ⎡ −H_KK⁻¹        H_KK⁻¹ H_KP             ⎤     b = ⎡ ŵ_K, the kept weights at their optimum ⎤
        ⎣ H_PK H_KK⁻¹    H_PP − H_PK H_KK⁻¹ H_KP ⎦         ⎣ (Hδ)_P, for δ = w − ŵ                  ⎦

To move columns J between K and P, in either direction and with all others refitted, changes the loss by
−½ b_Jᵀ M_JJ⁻¹ b_J. For one kept column that is OBC equation 1, for a block equation 5, for a pair the cost of an
exchange. The move of one column j takes m mᵀ / M_jj from M and m b_j / M_jj from b, m = M[:, j]; so M is formed once
for a row, and two vectors for every exchange correct it.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from ...core.arrays import Bool, Float64
from ..linalg.compiled import compiled


def transform(hessian: np.ndarray, kept: int) -> np.ndarray:
    """M, for the first `kept` columns as K. hessian, result: (columns, columns), of one dtype."""
    inverse = _inverse(hessian[:kept, :kept])
    cross = inverse @ hessian[:kept, kept:]  # (kept, pruned)
    tableau = np.empty_like(hessian)
    tableau[:kept, :kept] = -inverse
    tableau[:kept, kept:] = cross
    tableau[kept:, :kept] = cross.T
    tableau[kept:, kept:] = hessian[kept:, kept:] - hessian[kept:, :kept] @ cross
    return tableau


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a positive definite matrix, by halves: nearly all of it is products, at the full rate of BLAS."""
    n = len(matrix)
    if n <= 64:
        potrf, potri = lapack.get_lapack_funcs(("potrf", "potri"), (matrix,))
        lower, fault = potrf(matrix, lower=True)
        if fault:
            raise np.linalg.LinAlgError("singular to rounding")
        half = np.tril(potri(lower, lower=True)[0])
        return np.asarray(half + np.tril(half, -1).T)
    h = n // 2
    first = _inverse(matrix[:h, :h])
    cross = first @ matrix[:h, h:]  # (h, n − h)
    second = _inverse(matrix[h:, h:] - matrix[h:, :h] @ cross)
    corner = cross @ second  # (h, n − h)
    inverse = np.empty_like(matrix)
    inverse[:h, :h] = first + corner @ cross.T
    inverse[:h, h:] = -corner
    inverse[h:, :h] = -corner.T
    inverse[h:, h:] = second
    return inverse


@compiled
def cost(
    tableau: np.ndarray,
    across: Float64,
    sign: Float64,
    diagonal: Float64,
    b: Float64,
    chosen: np.ndarray,
    scratch: Float64,
) -> float:
    """What moving the chosen columns J changes: −½ b_Jᵀ M_JJ⁻¹ b_J, by M_JJ = L D Lᵀ and y = L⁻¹ b_J, enterers first.

    scratch: holds L below and D on its diagonal, y in its last row.
    """
    total = 0.0
    y = scratch[scratch.shape[0] - 1]
    for r in range(chosen.size):
        i = chosen[r]
        y[r] = b[i]
        pivot = diagonal[i]
        for c in range(r):
            j = chosen[c]
            value = np.float64(tableau[i, j])
            for t in range(sign.size):
                value -= sign[t] * across[i, t] * across[j, t]
            for t in range(c):
                value -= scratch[r, t] * scratch[c, t] * scratch[t, t]
            scratch[r, c] = value / scratch[c, c]
            y[r] -= scratch[r, c] * y[c]
            pivot -= scratch[r, c] * scratch[r, c] * scratch[c, c]
        if pivot * diagonal[i] <= 0:
            return np.inf  # rounding: M is positive definite on what enters, and negative on what leaves
        scratch[r, r] = pivot
        total -= 0.5 * y[r] * y[r] / pivot
    return total


@compiled
def move(
    tableau: np.ndarray, moved: Float64, across: Float64, sign: Float64, diagonal: Float64, b: Float64, q: int
) -> None:
    """Move column q into K if the last sign is 1, out of it if it is −1; the other signs are those of earlier moves."""
    last = sign.size - 1
    pivot, m = diagonal[q], moved[last]
    for i in range(b.size):
        m[i] = tableau[q, i]
    for t in range(last):
        factor = sign[t] * moved[t, q]
        for i in range(b.size):
            m[i] -= factor * moved[t, i]
    shift = b[q] / pivot
    root = np.sqrt(abs(pivot))
    for i in range(b.size):
        b[i] -= m[i] * shift
        diagonal[i] -= m[i] * m[i] / pivot
        m[i] /= root
    m[q] = (pivot - sign[last]) / root  # column q of M becomes sign · m / pivot
    b[q] = sign[last] * shift
    diagonal[q] = -1 / pivot
    across[:, last] = m


@compiled
def correct(
    hessian: np.ndarray,
    tableau: np.ndarray,
    moved: Float64,
    sign: Float64,
    diagonal: Float64,
    w: Float64,
    b: Float64,
    kept: Bool,
) -> None:
    """One step of iterative refinement of the kept weights in b: they gain H_KK⁻¹ (Hδ)_K, which would be zero."""
    columns = b.size
    gradient, step = np.zeros(columns), np.zeros(columns)
    for j in range(columns):
        delta = w[j] - b[j] if kept[j] else w[j]
        for i in range(columns):
            gradient[i] += delta * hessian[j, i]
    for j in range(columns):
        if kept[j]:
            own = np.float64(tableau[j, j])
            for t in range(len(moved)):
                own -= sign[t] * moved[t, j] * moved[t, j]
            step[j] += (diagonal[j] - own) * gradient[j]  # the diagonal of M is kept apart
            for i in range(columns):
                step[i] += gradient[j] * tableau[j, i]
    for t in range(len(moved)):
        product = 0.0
        for j in range(columns):
            if kept[j]:
                product += moved[t, j] * gradient[j]
        for i in range(columns):
            step[i] -= sign[t] * product * moved[t, i]
    for j in range(columns):
        if kept[j]:
            b[j] -= step[j]
