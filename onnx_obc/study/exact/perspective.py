"""What the free units of a node must still add to the loss of a mask, at least.

A node has taken some columns of a row out of H and refitted the rest, to x, with A the inverse of what is left of H;
some of its columns stay, the others, F, are free. If m of them must go they add at least half the larger of

    the m-th smallest xⱼ²/Aⱼⱼ, because a set costs no less than any one of it, and, for any vector v,
    the sum of the m smallest Dⱼtⱼ², less Σⱼ yⱼ²/Dⱼ + uᵀy, with u = A_FF v, y = v − Du and t = x_F + y/D.

The second is the bound that `solver.bound` derives, for δᵀ(A_FF)⁻¹δ, which is what an error δ on F costs with the rest
refitted. It holds for a diagonal D ⪯ (A_FF)⁻¹. One D ⪯ H serves all nodes: leaving columns out of H, and out of its
inverse, keeps the order. The best v solves the perspective relaxation (Frangioni and Gentile, Perspective cuts for a
class of convex 0-1 mixed integer programs, 2006). A node goes on from its parent's by a few steps of Douglas-Rachford
splitting, as `solver.bound.relax` does.

Numba's cache on disk does not see changes of `fill` there: after changing it, touch this file.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Float64
from ...solver.bound.relax import fill
from ...solver.linalg.compiled import compiled
from .minorant import positive_definite


def share_of(hessian: Float64, inverse: Float64) -> Float64:
    """D, (n,): as H⁻¹ scaled to a diagonal of ones has it. That D ⪯ H is proved by a Cholesky factorisation."""
    diagonal = np.diagonal(inverse)
    largest = float(np.linalg.eigvalsh(inverse / np.sqrt(np.outer(diagonal, diagonal)))[-1])
    share = 0.999 / (largest * diagonal)
    while not positive_definite(hessian - np.diag(share), len(share)):
        share = 0.5 * share
        if not (share > 1e-12 * np.diagonal(hessian)).all():
            raise np.linalg.LinAlgError("singular to rounding")
    return np.asarray(share)


@compiled
def cost(a: Float64, x: Float64, first: int, size: int, small: Float64) -> float:
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
def least_added(
    a: Float64,
    x: Float64,
    splitting: Float64,
    states: np.ndarray,
    left: np.ndarray,
    share: Float64,
    size: int,
    room: float,
    steps: int,
) -> tuple[float, int]:
    """Twice what a node's free units add at least, or some number from `room` on; and the unit that costs most.

    splitting: (n,), changed. states: (units,). left: (sets,). Infinite if a set has not enough free units.
    """
    sets = left.size
    per = states.size // sets
    small, order = np.empty((size + 1, size)), np.empty(per)
    free, ends = np.empty(states.size, np.int64), np.empty(sets + 1, np.int64)  # the free units, set by set
    count, most, highest, branch = 0, 0.0, -1.0, 0
    ends[0] = 0
    for s in range(sets):
        first = count
        for u in range(s * per, (s + 1) * per):
            if left[s] > 0 and states[u] == 0:
                alone = cost(a, x, u * size, size, small)
                order[count - first] = alone
                free[count] = u
                count += 1
                if alone > highest:
                    highest, branch = alone, u
        ends[s + 1] = count
        if count - first < left[s]:
            return np.inf, branch
        if left[s] > 0:
            order[: count - first].sort()
            most = max(most, order[left[s] - 1])
    if most < room and count > 0:
        most = max(most, _relaxed(a, x, splitting, free[:count], ends, left, share, size, room, steps))
    return most, branch


@compiled
def _relaxed(
    a: Float64,
    x: Float64,
    splitting: Float64,
    free: np.ndarray,
    ends: np.ndarray,
    left: np.ndarray,
    share: Float64,
    size: int,
    room: float,
    steps: int,
) -> float:
    """The best of the bounds that the steps meet. Units ends[s] … ends[s + 1] − 1 of `free` are those of set s."""
    count = free.size * size
    columns, unit = np.empty(count, np.int64), np.empty(count, np.int64)
    d, w, state = np.empty(count), np.empty(count), np.empty(count)
    for p in range(count):
        unit[p] = p // size
        j = free[unit[p]] * size + p % size
        columns[p], d[p], w[p], state[p] = j, share[j], x[j], splitting[j]
    near, v, order = np.empty(count), np.empty(count), np.empty(free.size)
    best = 0.0
    for _ in range(steps):
        order[:] = 0
        for p in range(count):
            order[unit[p]] += d[p] * (2 * w[p] - state[p]) ** 2
        order[:] = np.sqrt(order)
        for s in range(left.size):
            if left[s] > 0:
                fill(order[ends[s] : ends[s + 1]].reshape(1, -1), ends[s + 1] - ends[s] - left[s])
        for p in range(count):
            z = order[unit[p]]
            near[p] = w[p] - z / (1 + z) * (2 * w[p] - state[p])
            v[p] = d[p] * (2 * near[p] - state[p])
        price = 0.0
        order[:] = 0
        for p in range(count):
            row, u = a[columns[p]], 0.0
            for q in range(count):
                u += row[columns[q]] * v[q]
            y = v[p] - d[p] * u
            price += y * (y / d[p] + u)
            order[unit[p]] += (d[p] * w[p] + y) ** 2 / d[p]
            state[p] += u - near[p]
        total = -price
        for s in range(left.size):
            part = order[ends[s] : ends[s + 1]]
            part.sort()
            for i in range(left[s]):
                total += part[i]
        best = max(best, total)
        if best >= room:
            break
    for p in range(count):
        splitting[columns[p]] = state[p]
    return best
