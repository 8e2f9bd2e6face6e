"""Better masks than the greedy's: exchanges of a kept against a pruned weight, each with the exact refit of the rest.

Exchanges are found in sweeps over what is pruned; each is exact, on the principal pivot transform of the row (see
`refine_pivot`). Numba's cache on disk sees changes of this file, not of that one: after changing it, touch this.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ...core.level import NM, Block, Sparsity
from ..linalg.compiled import compiled
from ..linalg.inverse import Damped, units
from ..linalg.loss import row_losses
from ..linalg.threads import RowsDone, one_blas_thread, over_rows
from .pivot import correct, cost, move, transform

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
    progress: RowsDone | None = None,
) -> tuple[Float32, Bool, float]:
    """Exchange kept against pruned weights as long as the loss falls, row by row.

    N:M: within each group. Block(size): whole blocks within a row. Unstructured: within a row. Every row keeps as many
    weights as it had.

    weights: (groups, rows, columns) float32, the dense ones; solved, mask: what `prune` made of them. sweeps: how
    often to go over a row's pruned weights; each is exchanged for the best kept one if that gains 1e-4 of the row's
    loss. A sweep without an exchange is the last. There are at most min(sweeps, 8) · (units / 8 + 1) exchanges, a unit
    being a weight or a block: each adds two vectors per column of a unit, which would outgrow the tableau.

    Returns (solved, mask, loss): weights that are the minimum of ½ tr(ΔHΔᵀ) for the mask, and that loss, computed from
    them in float64. No row's loss exceeds that of the weights given. The result does not depend on `threads`.
    """
    groups, rows, columns = weights.shape
    unit = units(damped.hessian)  # (groups,)
    hessian = (damped.hessian / unit[:, None, None]).astype(damped.dtype("auto"))
    per = sparsity.m if isinstance(sparsity, NM) else 0
    size = sparsity.size if isinstance(sparsity, Block) else 1
    found, again = mask.copy(), solved.copy()
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
                own = hessian[g].take(place, axis=0).take(place, axis=1)
                try:
                    tableau = transform(own, kept)
                except np.linalg.LinAlgError:  # in float32; the Hessian is positive definite
                    own = (damped.hessian[g] / unit[g]).take(place, axis=0).take(place, axis=1)
                    tableau = transform(own, kept)
                b, w = state[g, r, place], weights[g, r, place].astype(np.float64)
                if _exchange(own, tableau, w, b, place, per, size, sweeps, least[g, r], found[g, r]):
                    again[g, r, place] = np.where(found[g, r, place], b, 0)

    over_rows(work, groups * rows, columns**3 // 2, threads, progress)
    after = row_losses(weights, again, damped.hessian)  # (groups, rows)
    better = (after < before)[:, :, None]
    loss = float(np.minimum(before, after).sum())
    return np.where(better, again, solved), np.where(better, found, mask), loss


@compiled
def _exchange(
    hessian: np.ndarray,
    tableau: np.ndarray,
    w: Float64,
    b: Float64,
    place: np.ndarray,
    per: int,
    size: int,
    sweeps: int,
    least: float,
    mask: Bool,
) -> bool:
    """Sweep over what is pruned; whatever exchanges at a gain of more than `least` does, with the best partner.

    hessian, tableau, w, b: of the row, columns in the order of `place`. per: single weights are exchanged within groups
    of so many columns; 0: blocks of `size` columns anywhere in the row. Changes `mask`, and b to the state it leads to.
    Returns whether anything changed.
    """
    columns = b.size
    where = np.empty(columns, np.int64)  # the position of each column
    diagonal = np.empty(columns)
    for i in range(columns):
        where[place[i]] = i
        diagonal[i] = tableau[i, i]
    units = columns // size  # a last, shorter block stays as it is
    most = min(sweeps, 8) * (units // 8 + 1)  # exchanges in all, or the vectors would outgrow the tableau
    # M = tableau − Σ sign v vᵀ off the diagonal, a row of `moved` for every column moved; `across` is its transpose.
    moved, across = np.empty((2 * most * size, columns)), np.empty((columns, 2 * most * size))
    sign = np.array(([1.0] * size + [-1.0] * size) * most)
    alone = np.empty(units)
    pair = np.empty(2 * size, np.int64)  # positions: those that enter K, then those that leave it
    enter, leave = pair[:size], pair[size:]
    scratch = np.empty((2 * size + 1, 2 * size))
    count, seen = 0, -1
    for _ in range(sweeps):
        if count == seen:
            break
        seen = count
        for u in range(units):
            enter[:] = where[u * size : (u + 1) * size]
            alone[u] = cost(tableau, across, sign[:count], diagonal, b, enter, scratch)
        order = np.arange(units) if per > 0 else np.argsort(alone)  # what is pruned comes first, at a gain
        pruned = units - np.sum(mask[: units * size : size])
        for p in order if per > 0 else order[: min(pruned, NEAR)]:
            if mask[p * size] or count == sign.size:
                continue
            enter[:] = where[p * size : (p + 1) * size]
            if cost(tableau, across, sign[:count], diagonal, b, enter, scratch) >= -least:
                continue
            best, partner = -least, -1
            for k in order[p - p % per : p - p % per + per] if per > 0 else order[pruned : pruned + NEAR]:
                if mask[k * size]:
                    leave[:] = where[k * size : (k + 1) * size]
                    change = cost(tableau, across, sign[:count], diagonal, b, pair, scratch)
                    if change < best:
                        best, partner = change, k
            if partner < 0:
                continue
            for u in (p, partner):
                for c in range(u * size, (u + 1) * size):
                    count += 1
                    move(tableau, moved, across, sign[:count], diagonal, b, where[c])
                    mask[c] = u == p
    if count > 0:
        correct(hessian, tableau, moved[:count], sign, diagonal, w, b, mask[place])
    return count > 0
