"""Better masks than the greedy's: exchanges of a kept against a pruned weight, each with the exact refit of the rest.

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

from ..level import NM, Block, Bool, Float32, Float64, Sparsity
from .compiled import compiled
from .inverse import Damped
from .prune import solve_kept
from .refine_codes import row_losses
from .threads import Progress, one_blas_thread, over_rows

NEAR = 16  # so many of the cheapest to prune and of the best to keep are tried against each other, but for N:M
LEAST = 1e-4  # the fraction of the row's loss that an exchange must gain


def refine_mask(
    weights: Float32,
    solved: Float32,
    mask: Bool,
    damped: Damped,
    sparsity: Sparsity,
    sweeps: int = 1,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Float32, Bool, float]:
    """Exchange kept against pruned weights, the best exchange first, as long as the loss falls; row by row.

    N:M: within each group. Block(size): whole blocks within a row. Unstructured: within a row. Every row keeps as many
    weights as it had.

    weights: (groups, rows, columns) float32, the dense ones; solved, mask: what `prune` made of them. sweeps: a row
    takes at most `sweeps` exchanges for every sixteen columns.

    Returns (solved, mask, loss): weights that are the minimum of ½ tr(ΔHΔᵀ) for the mask, and that loss, computed from
    them in float64. No row's loss exceeds that of the weights given. The result depends on neither threads nor the
    order of rows.
    """
    groups, rows, columns = weights.shape
    base, _, unit = damped.scaled("auto")
    hessian = (damped.hessian / unit[:, None, None]).astype(base.dtype)
    per = sparsity.m if isinstance(sparsity, NM) else 0
    size = sparsity.size if isinstance(sparsity, Block) else 1
    limit = max(1, sweeps * columns // (16 * size))
    found = mask.copy()
    with one_blas_thread():
        delta = weights.astype(np.float64) - solved
        gradient = delta @ damped.hessian  # (groups, rows, columns), Hδ
        before = 0.5 * (delta * gradient).sum(axis=2)  # (groups, rows)
    state = np.where(mask, solved, gradient / unit[:, None, None])
    least = LEAST * before / unit[:, None]

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            g, r = divmod(i, rows)
            kept = int(mask[g, r].sum())
            if 0 < kept < columns and least[g, r] > 0:
                place = np.argsort(~mask[g, r], kind="stable")  # the kept columns, then the pruned ones
                tableau = _tableau(hessian[g].take(place, axis=0).take(place, axis=1), kept)
                b = state[g, r, place]
                _exchange(tableau, b, place, per, size, limit, least[g, r], found[g, r])

    over_rows(work, groups * rows, columns**3 // 2, threads, progress)
    changed = (found != mask).any(axis=2, keepdims=True)  # (groups, rows, 1)
    # Of a row that is kept as a whole nothing is to be solved.
    again = solve_kept(weights, found | ~changed, damped.hessian, damped.inverse, threads)
    with one_blas_thread():
        after = row_losses(weights, np.where(changed, again, solved), damped.hessian)
    better = (after < before)[:, :, None]
    loss = float(np.minimum(before, after).sum())
    return np.where(better, again, solved), np.where(better, found, mask), loss


def _tableau(hessian: np.ndarray, kept: int) -> np.ndarray:
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
def _exchange(
    tableau: np.ndarray,
    b: Float64,
    place: np.ndarray,
    per: int,
    size: int,
    limit: int,
    least: float,
    mask: Bool,
) -> None:
    """Exchange until `limit`, or until no exchange gains more than `least`; changes `mask` (columns,).

    tableau, b: of the row, columns in the order of `place`. per: single weights are exchanged within groups of so many
    columns; 0: blocks of `size` columns anywhere in the row.
    """
    columns = b.size
    where = np.empty(columns, np.int64)  # the position of each column
    diagonal = np.empty(columns)
    for i in range(columns):
        where[place[i]] = i
        diagonal[i] = tableau[i, i]
    # M = tableau − Σ sign v vᵀ off the diagonal, a row of `moved` for every column moved; `across` is its transpose.
    moved, across = np.empty((2 * limit * size, columns)), np.empty((columns, 2 * limit * size))
    sign = np.array(([1.0] * size + [-1.0] * size) * limit)
    units = columns // size  # a last, shorter block stays as it is
    cost = np.empty(units)
    pair = np.empty(2 * size, np.int64)  # positions: those that enter K, then those that leave it
    enter, leave = pair[:size], pair[size:]
    scratch = np.empty((2 * size + 1, 2 * size))
    for turn in range(limit):
        count = 2 * size * turn
        best, entering, leaving = -least, -1, -1
        for u in range(units):
            enter[:] = where[u * size : (u + 1) * size]
            cost[u] = _cost(tableau, across, sign[:count], diagonal, b, enter, scratch)
        order = np.arange(units) if per > 0 else np.argsort(cost)  # what is pruned comes first, at a gain
        pruned = units - np.sum(mask[: units * size : size])
        for p in order if per > 0 else order[: min(pruned, NEAR)]:
            if mask[p * size] or cost[p] >= best:
                continue
            enter[:] = where[p * size : (p + 1) * size]
            for k in order[p - p % per : p - p % per + per] if per > 0 else order[pruned : pruned + NEAR]:
                if mask[k * size]:
                    leave[:] = where[k * size : (k + 1) * size]
                    change = _cost(tableau, across, sign[:count], diagonal, b, pair, scratch)
                    if change < best:
                        best, entering, leaving = change, p, k
        if entering < 0:
            break
        for u in (entering, leaving):
            for c in range(u * size, (u + 1) * size):
                _move(tableau, moved, across, sign[: count + 1], diagonal, b, where[c])
                mask[c] = u == entering
                count += 1


@compiled
def _cost(
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
def _move(
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
