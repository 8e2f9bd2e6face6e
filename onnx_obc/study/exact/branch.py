"""Branch and bound over the masks of a row: what is pruned, the rest refitted.

With the columns S of a row gone and all others at their optimum the loss is ½ w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S. To take one more
adds ½ xⱼ²/[H⁻¹]ⱼⱼ, where x are the refitted weights and H is that of the columns left (Frantar, Singh and Alistarh,
Optimal Brain Compression, 2022, equations 1 and 4; for a block equation 5). A node is a set of columns that are gone,
with x and H⁻¹, and a set that stays; the rest is free, and `perspective` bounds what it still adds. The branch is on
what costs most: first it stays, then it goes.

Numba's cache on disk does not see changes of kernels in other files: after changing `perspective`, touch this one.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float64
from ...solver.linalg.compiled import compiled
from .pattern import Pattern, removal
from .perspective import cost, least_added, share_of
from .problem import Limit

_KEPT, _GONE = 1, 2  # of a unit; 0 is free
_NEW, _STAYS, _BOTH = 0, 1, 2  # of a node: not looked at; its unit stays; its unit stayed, and now is gone
_FIRST, _STEPS = 200, 2  # of the splitting: at the root, and at every other node


def branch_and_bound(
    pattern: Pattern, hessian: Float64, inverse: Float64, weight: Float64, gone: Bool, limit: Limit
) -> tuple[Bool, float | None, int]:
    """The units (units,) to prune at the least loss, from those of a mask of the pattern, `gone`.

    hessian, inverse: (n, n) float64. weight: (n,) float64. Returns them, twice the least that an open node loses (None
    if there is none: they are the optimum), and how many nodes were looked at. Raises numpy's LinAlgError if the
    Hessian is singular to rounding.
    """
    n, units = len(weight), len(gone)
    inverses, x = np.empty((units + 1, n, n)), np.empty((2, units + 1, n))
    inverses[0], x[:, 0] = inverse, weight
    states = np.zeros((units + 1, units), np.int8)
    left = np.full((units + 1, units // pattern.per), pattern.pruned)  # for each level and set, how many must still go
    path, where, spent = np.zeros((3, units + 1), np.int64), np.zeros(2, np.int64), np.zeros(units + 1)
    share = share_of(hessian, inverse)
    best, least = gone.copy(), np.array([removal(inverse, weight, pattern.columns(gone))])
    for most in limit.slices():
        _search(inverses, x, left, states, spent, path, where, best, least, share, pattern.size, most)
        if where[0] < 0:
            return best, None, int(where[1])
    still = [np.inf]
    for k in range(int(where[0]) + 1):
        stage, unit, home = path[:, k]
        if stage != _BOTH:
            known = (inverses[home], x[0, home], x[1, k].copy(), states[k], left[k], share, pattern.size)
            added = least_added(*known, np.inf, _FIRST)[0]
            if stage == _STAYS:
                own = slice(unit * pattern.size, (unit + 1) * pattern.size)
                added = max(added, float(x[0, home, own] @ np.linalg.solve(inverses[home, own, own], x[0, home, own])))
            still.append(spent[k] + added)
    return best, float(min(still)), int(where[1])


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
    share: Float64,
    size: int,
    most: int,
) -> None:
    """Look at up to `most` nodes more, depth first.

    For each level: inverses (levels, n, n) and xs[0] (levels, n), where the node has its own, and xs[1], the state of
    its splitting; left (levels, sets), how many units of each set must still go; states (levels, units) int8; spent
    (levels,), twice the loss of what is gone; path (3, levels): the stage, the unit branched on, the level that the
    node's inverse and x are at. where: the level, −1 when there is nothing left, and the nodes so far. best, least: the
    best units, and twice their loss. share: D.
    """
    per = states.shape[1] // left.shape[1]
    small = np.empty((size + 1, size))
    k, last = where[0], where[1] + most
    while k >= 0 and where[1] < last:
        stage, home = path[0, k], path[2, k]
        a, x = inverses[home], xs[0, home]
        if stage == _NEW:
            where[1] += 1
            room = least[0] - spent[k]
            if left[k].sum() == 0:
                if room > 0:
                    least[0] = spent[k]
                    for u in range(best.size):
                        best[u] = states[k, u] == _GONE
                k -= 1
                continue
            steps = _FIRST if k == 0 else _STEPS
            added, branch = least_added(a, x, xs[1, k], states[k], left[k], share, size, room, steps)
            if added >= room:
                k -= 1
                continue
            path[0, k], path[1, k] = _STAYS, branch
            _child(xs[1], left, states, spent, path, k)
            k += 1
            states[k, branch] = _KEPT
        elif stage == _STAYS:
            path[0, k], u = _BOTH, path[1, k]
            added = cost(a, x, u * size, size, small)
            if spent[k] + added < least[0]:
                _child(xs[1], left, states, spent, path, k)
                k += 1
                states[k, u] = _GONE
                spent[k] += added
                left[k, u // per] -= 1
                path[2, k] = k
                _remove(a, x, u * size, size, inverses[k], xs[0, k])
        else:
            k -= 1
    where[0] = k


@compiled
def _child(splitting: Float64, left: np.ndarray, states: np.ndarray, spent: Float64, path: np.ndarray, k: int) -> None:
    """Begin level k + 1 as a copy of level k."""
    splitting[k + 1], left[k + 1], states[k + 1], spent[k + 1] = splitting[k], left[k], states[k], spent[k]
    path[0, k + 1], path[2, k + 1] = _NEW, path[2, k]


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
