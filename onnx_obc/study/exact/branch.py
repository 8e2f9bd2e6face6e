"""Branch and bound over the masks of a row: what is pruned, the rest refitted.

With the columns S of a row gone and all others at their optimum the loss is ½ w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S. To take one more
adds ½ xⱼ²/[H⁻¹]ⱼⱼ, where x are the refitted weights and H is that of the columns left (Frantar, Singh and Alistarh,
Optimal Brain Compression, 2022, equations 1 and 4; for a block equation 5). A node is a set of columns that are gone,
with x and H⁻¹, and a set that stays; the rest is free. If m of it must go, with D the diagonal of H⁻¹ they add at least

    half the m-th smallest xⱼ²/Dⱼ, because a set costs no less than any one of it, and
    half the sum of the m smallest xⱼ²/Dⱼ, over the largest eigenvalue of D^−½ H⁻¹ D^−½ on the free columns.

The branch is on what costs most: first it stays, then it goes. Whether the second bound reaches the loss of the best
solution known is decided by a Cholesky factorisation instead of the eigenvalue. Numba's cache on disk does not see
changes of that function, which is in `minorant`: after changing it, touch this file.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float64
from ...solver.linalg.compiled import compiled
from .minorant import positive_definite
from .pattern import Pattern, costs, removal
from .problem import Limit

_FREE, _KEPT, _GONE = 0, 1, 2  # of a unit
_NEW, _STAYS, _BOTH = 0, 1, 2  # of a node: not looked at; its unit stays; its unit stayed, and now is gone


def branch_and_bound(
    pattern: Pattern, inverse: Float64, weight: Float64, gone: Bool, limit: Limit
) -> tuple[Bool, float | None, int]:
    """The units (units,) to prune at the least loss, from those of a mask of the pattern, `gone`.

    inverse: (n, n) float64, H⁻¹. weight: (n,) float64. Returns them, twice the least that an open node loses (None if
    there is none: they are the optimum), and how many nodes were looked at.
    """
    n, units = len(weight), len(gone)
    inverses, x = np.empty((units + 1, n, n)), np.empty((units + 1, n))
    inverses[0], x[0] = inverse, weight
    left = np.full((units + 1, units // pattern.per), pattern.pruned)  # for each level and set, how many must still go
    states, spent = np.full((units + 1, units), _FREE, np.int8), np.zeros(units + 1)
    path, where = np.zeros((3, units + 1), np.int64), np.zeros(2, np.int64)
    best, least = gone.copy(), np.array([removal(inverse, weight, pattern.columns(gone))])
    for most in limit.slices():
        _search(inverses, x, left, states, spent, path, where, best, least, pattern.size, most)
        if where[0] < 0:
            return best, None, int(where[1])
    still = [np.inf]
    for k in range(int(where[0]) + 1):
        stage, unit, home = path[:, k]
        if stage != _BOTH:
            own = np.arange(n).reshape(units, -1)  # (units, size)
            added = _least_added(inverses[home], x[home], own, states[k] == _FREE, left[k])
            if stage == _STAYS:
                added = max(added, float(costs(inverses[home], x[home], own[unit, None])[0]))
            still.append(spent[k] + added)
    return best, float(min(still)), int(where[1])


def _least_added(inverse: Float64, x: Float64, own: np.ndarray, free: Bool, left: np.ndarray) -> float:
    """Twice the larger of the two bounds on what a node's units still add. own: (units, size). left: (sets,)."""
    part = np.arange(len(free)) // (len(free) // len(left))
    diagonal = np.diagonal(inverse)
    most, total, columns = 0.0, 0.0, []
    for s in np.flatnonzero(left):
        chosen = own[free & (part == s)]  # (free units of the set, size)
        if len(chosen) < left[s]:
            return float("inf")
        columns.append(chosen.ravel())
        share = (x[chosen] ** 2 / diagonal[chosen]).sum(axis=1)
        most = max(most, float(np.sort(costs(inverse, x, chosen))[left[s] - 1]))
        total += float(np.sort(share)[: left[s]].sum())
    if not columns:
        return 0.0
    c = np.concatenate(columns)
    largest = np.linalg.eigvalsh(inverse[np.ix_(c, c)] / np.sqrt(np.outer(diagonal[c], diagonal[c])))[-1]
    return max(most, total / float(largest * (1 + 1e-12 * len(c))))


@compiled
def _search(
    inverses: Float64,
    xs: Float64,
    left: np.ndarray,
    states: np.ndarray,
    spent: Float64,
    path: np.ndarray,
    where: np.ndarray,
    best: Bool,
    least: Float64,
    size: int,
    most: int,
) -> None:
    """Look at up to `most` nodes more, depth first.

    For each level: inverses (levels, n, n) and xs (levels, n), where the node has its own; left (levels, sets), how
    many units of each set must still go; states (levels, units) int8; spent (levels,), twice the loss of what is gone;
    path (3, levels): the stage, the unit branched on, the level that the node's inverse and x are at. where: the level,
    −1 when there is nothing left, and the nodes so far. best, least: the best units, and twice their loss.
    """
    units, sets = states.shape[1], left.shape[1]
    per = units // sets
    n = units * size
    score, share = np.empty(units), np.empty(units)
    sorted_ = np.empty(per)
    columns, scratch, small = np.empty(n, np.int64), np.empty((n, n)), np.empty((size + 1, size))
    k, last = where[0], where[1] + most
    while k >= 0 and where[1] < last:
        stage, home = path[0, k], path[2, k]
        a, x = inverses[home], xs[home]
        if stage == _NEW:
            where[1] += 1
            must = 0
            for s in range(sets):
                must += left[k, s]
            if must == 0:
                if spent[k] < least[0]:
                    least[0] = spent[k]
                    for u in range(units):
                        best[u] = states[k, u] == _GONE
                k -= 1
                continue
            room = least[0] - spent[k]
            total, branch, count, possible = 0.0, -1, 0, True
            for s in range(sets):
                if left[k, s] == 0:
                    continue
                free = 0
                for u in range(s * per, (s + 1) * per):
                    if states[k, u] == _FREE:
                        score[u] = _cost(a, x, u * size, size, small)
                        sorted_[free] = score[u]
                        free += 1
                        if branch < 0 or score[u] > score[branch]:
                            branch = u
                        share[u] = 0
                        for j in range(u * size, (u + 1) * size):
                            share[u] += x[j] * x[j] / a[j, j]
                            columns[count] = j
                            count += 1
                if free < left[k, s]:
                    possible = False
                    break
                sorted_[:free].sort()
                if sorted_[left[k, s] - 1] >= room:
                    possible = False
                    break
                if size > 1:
                    free = 0
                    for u in range(s * per, (s + 1) * per):
                        if states[k, u] == _FREE:
                            sorted_[free] = share[u]
                            free += 1
                    sorted_[:free].sort()
                for i in range(left[k, s]):
                    total += sorted_[i]
            if not possible or (total > room and _reaches(a, columns[:count], total / room, scratch)):
                k -= 1
                continue
            path[0, k], path[1, k] = _STAYS, branch
            _child(left, states, spent, path, k)
            states[k + 1, branch] = _KEPT
            k += 1
        elif stage == _STAYS:
            path[0, k], u = _BOTH, path[1, k]
            added = _cost(a, x, u * size, size, small)
            if spent[k] + added < least[0]:
                _child(left, states, spent, path, k)
                k += 1
                states[k, u] = _GONE
                spent[k] += added
                left[k, u // per] -= 1
                path[2, k] = k
                _remove(a, x, u * size, size, inverses[k], xs[k])
        else:
            k -= 1
    where[0] = k


@compiled
def _child(left: np.ndarray, states: np.ndarray, spent: Float64, path: np.ndarray, k: int) -> None:
    """Begin level k + 1 as a copy of level k."""
    left[k + 1], states[k + 1], spent[k + 1] = left[k], states[k], spent[k]
    path[0, k + 1], path[2, k + 1] = _NEW, path[2, k]


@compiled
def _cost(a: Float64, x: Float64, first: int, size: int, small: Float64) -> float:
    """x_Jᵀ (A_JJ)⁻¹ x_J for `size` columns J from `first` on, by their Cholesky factor, in `small`."""
    total = 0.0
    for r in range(size):
        y = x[first + r]
        for c in range(r + 1):
            value = a[first + r, first + c]
            for t in range(c):
                value -= small[r, t] * small[c, t]
            if c < r:
                small[r, c] = value / small[c, c]
                y -= small[r, c] * small[size, c]
            else:
                small[r, r] = np.sqrt(value)
        small[size, r] = y / small[r, r]
        total += small[size, r] ** 2
    return total


@compiled
def _remove(a: Float64, x: Float64, first: int, size: int, to: Float64, to_x: Float64) -> None:
    """The inverse and the weights without `size` columns from `first` on."""
    to[:], to_x[:] = a, x
    for j in range(first, first + size):
        row = to[j].copy()
        shift = to_x[j] / row[j]
        for i in range(row.size):
            to_x[i] -= shift * row[i]
            factor = row[i] / row[j]
            for m in range(row.size):
                to[i, m] -= factor * row[m]


@compiled
def _reaches(a: Float64, columns: np.ndarray, factor: float, scratch: Float64) -> bool:
    """Whether D^−½ A D^−½ has no eigenvalue above `factor` on these columns, D the diagonal of A."""
    if factor <= 1:
        return False  # its mean eigenvalue is 1
    for p in range(columns.size):
        i = columns[p]
        for q in range(p):
            j = columns[q]
            scratch[p, q] = -a[i, j] / np.sqrt(a[i, i] * a[j, j])
        scratch[p, p] = factor - 1
    return positive_definite(scratch, columns.size)
