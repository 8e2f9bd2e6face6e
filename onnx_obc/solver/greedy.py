"""The exact greedy elimination engine: one column (or block) at a time, all remaining ones re-optimised.

Every step picks the pivot p that costs least, gives the remaining weights their optimal update, and removes p from
the inverse Hessian by a rank-1 downdate (OBC Algorithm 1). Those downdates, one after the other, are a Cholesky
factorisation of H⁻¹ whose pivots depend on the weights. So all rows share one H⁻¹ and a row keeps only its own factor
V, one vector for every step:

    column p of the current inverse = H⁻¹[:, p] − Vᵀ V[:, p]          V: (steps, positions)

That is d³/6 multiply-adds for a row of d columns instead of d³, and no inverse is copied. The diagonal of the current
inverse and the weights are running float64 vectors; H⁻¹ and V have the precision of `base`. Positions are the columns
that can still be chosen, in ascending order; every `EPOCH` columns the others are dropped. Ties go to the lowest
column. A row's result depends on nothing but that row: not on the rows or the threads that it was computed with.

Arguments that all kernels share:
    weights:  (groups · rows, columns) float32
    base:     (groups, columns, columns) float32 or float64, the inverse of the damped Hessian
    floor:    (groups, columns) float64, 1 / diagonal of the damped Hessian. The diagonal of the current inverse never
              falls below it; held there, rounding cannot make it vanish.
    start, stop: the rows to work on; row i belongs to group i // (groups · rows / groups)
Losses are ½ δᵀHδ, for H = 2 X Xᵀ / n the layer loss of that row (OBC equations 1 and 4 with our factor).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

from ..level import Float32, Float64, Int32

EPOCH = 32  # columns removed between two compactions

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile for the types of the first call, keep the result on disk, and release the GIL while it runs."""
    return cast(_Function, numba.njit(cache=True, nogil=True)(function))


def _compiled_fma(function: _Function) -> _Function:
    """The same, and a product may be fused with its addition; the order of operations stays as written."""
    return cast(_Function, numba.njit(cache=True, nogil=True, fastmath={"contract"})(function))


@compiled
def prune_rows(
    weights: Float32,
    base: np.ndarray,
    floor: Float64,
    keep: int,
    per: int,
    start: int,
    stop: int,
    order: Int32,
    losses: Float64,
) -> None:
    """Prune single weights, keeping at most `keep` of every `per` consecutive columns (0 of 1: prune all).

    order, losses: (groups · rows, steps) int32 and float64, written: the pivots and the loss that each one adds.
    A group of `per` columns that has lost enough is closed: its kept columns are never chosen, so nothing needs to
    be known about them any more.
    """
    columns = weights.shape[1]
    rows = weights.shape[0] // base.shape[0]
    steps = order.shape[1]
    room = np.empty(((columns + EPOCH) // 2 + 1) ** 2, base.dtype)  # (k + epoch)(columns − k) never exceeds it
    left = np.empty((columns + per - 1) // per, np.int64)
    for i in range(start, stop):
        inverse = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        diagonal = np.empty(columns)
        score = np.empty(columns)
        for j in range(columns):
            diagonal[j] = inverse[j, j]
            score[j] = w[j] * w[j] / diagonal[j]
        for b in range(left.size):
            left[b] = min(per, columns - b * per) - keep
            if left[b] <= 0:  # a short last group that may keep all it has
                gone[b * per : columns] = 1
                score[b * per : columns] = np.inf
        size, k = columns, 0
        while k < steps:
            last = min(k + EPOCH, steps)
            factor = room[: last * size].reshape(last, size)  # V: (last, size)
            while k < last:
                q = int(np.argmin(score[:size]))
                order[i, k] = alive[q]
                losses[i, k] = 0.5 * score[q]
                group = alive[q] // per
                gone[q] = 1
                left[group] -= 1
                if left[group] == 0:
                    p = q - 1
                    while p >= 0 and alive[p] // per == group:
                        gone[p] = 1
                        p -= 1
                    p = q + 1
                    while p < size and alive[p] // per == group:
                        gone[p] = 1
                        p += 1
                append_column(inverse[alive[q]], alive, factor, k, q, diagonal[q])
                v, shift = factor[k], w[q] / np.sqrt(diagonal[q])
                for j in range(size):
                    x = w[j] - shift * v[j]
                    d = diagonal[j] - np.float64(v[j]) * v[j]
                    d = d if d > low[j] else low[j]
                    w[j] = x
                    diagonal[j] = d
                    score[j] = np.inf if gone[j] else x * x / d
                k += 1
            stay = compact_factor(room, k, size, gone)
            alive, w, low, diagonal, score = alive[stay], w[stay], low[stay], diagonal[stay], score[stay]
            size = stay.size
            gone[:size] = 0


@compiled
def quantize_rows(
    weights: Float32,
    base: np.ndarray,
    floor: Float64,
    scale: Float32,
    zero_point: Int32,
    qmin: int,
    qmax: int,
    start: int,
    stop: int,
    codes: Int32,
    order: Int32,
    losses: Float64,
) -> None:
    """Round one weight at a time to its row's grid, the cheapest first (OBQ: OBC section 5, Algorithm 3).

    A weight that is more than half a step from its nearest grid value lies outside the grid's range. It is rounded as
    soon as it appears, the farthest first, while there are others left to make up for it.

    scale, zero_point: (groups · rows,). codes, order: (groups · rows, columns) int32, written: the integers, and the
    columns as they were rounded. losses: (groups · rows,) float64, written.
    """
    columns = weights.shape[1]
    rows = weights.shape[0] // base.shape[0]
    room = np.empty(((columns + EPOCH) // 2 + 1) ** 2, base.dtype)
    for i in range(start, stop):
        inverse = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        step, zero = scale[i], np.float64(zero_point[i])
        diagonal = np.empty(columns)
        error = np.empty(columns)
        key = np.empty(columns)
        for j in range(columns):
            diagonal[j] = inverse[j, j]
        _round(w, diagonal, gone, columns, step, zero, qmin, qmax, error, key)
        size, k, loss = columns, 0, 0.0
        while k < columns:
            last = min(k + EPOCH, columns)
            factor = room[: last * size].reshape(last, size)  # V: (last, size)
            while k < last:
                q = int(np.argmin(key[:size]))
                order[i, k] = alive[q]
                code = min(max(np.rint(w[q] / step) + zero, qmin), qmax)
                codes[i, alive[q]] = np.int32(code)
                loss += 0.5 * error[q] * error[q] / diagonal[q]
                gone[q] = 1
                append_column(inverse[alive[q]], alive, factor, k, q, diagonal[q])
                v, shift = factor[k], error[q] / np.sqrt(diagonal[q])
                for j in range(size):
                    d = diagonal[j] - np.float64(v[j]) * v[j]
                    diagonal[j] = d if d > low[j] else low[j]
                    w[j] -= shift * v[j]
                _round(w, diagonal, gone, size, step, zero, qmin, qmax, error, key)
                k += 1
            stay = compact_factor(room, k, size, gone)
            alive, w, low, diagonal = alive[stay], w[stay], low[stay], diagonal[stay]
            error, key = error[stay], key[stay]
            size = stay.size
            gone[:size] = 0
        losses[i] = loss


@_compiled_fma
def append_column(base_row: np.ndarray, alive: np.ndarray, factor: np.ndarray, k: int, q: int, pivot: float) -> None:
    """factor[k] = column q of the current inverse, (H⁻¹ − V[:k]ᵀ V[:k])[q], over the root of its pivot."""
    size = factor.shape[1]
    out = factor[k]
    for j in range(size):
        out[j] = base_row[alive[j]]
    t = 0
    while t + 4 <= k:
        v0, v1, v2, v3 = factor[t], factor[t + 1], factor[t + 2], factor[t + 3]
        c0, c1, c2, c3 = v0[q], v1[q], v2[q], v3[q]
        for j in range(size):
            out[j] -= (c0 * v0[j] + c1 * v1[j]) + (c2 * v2[j] + c3 * v3[j])
        t += 4
    while t < k:
        v0 = factor[t]
        c0 = v0[q]
        for j in range(size):
            out[j] -= c0 * v0[j]
        t += 1
    for j in range(size):
        out[j] /= np.sqrt(pivot)


@compiled
def compact_factor(room: np.ndarray, k: int, size: int, gone: np.ndarray) -> np.ndarray:
    """Drop the positions that are gone from V[:k] (k, size), in place; returns those that stay, ascending."""
    stay = np.flatnonzero(gone[:size] == 0)
    for t in range(k):
        source, target = t * size, t * stay.size  # target ≤ source: nothing is overwritten before it is read
        for j in range(stay.size):
            room[target + j] = room[source + stay[j]]
    return stay


@compiled
def _round(
    w: Float64,
    diagonal: Float64,
    gone: np.ndarray,
    size: int,
    step: np.float32,
    zero: float,
    qmin: int,
    qmax: int,
    error: Float64,
    key: Float64,
) -> None:
    """Each weight's distance from its nearest grid value, and the key whose minimum is rounded next."""
    half = 0.5 * np.float64(step)
    for j in range(size):
        code = min(max(np.rint(w[j] / step) + zero, qmin), qmax)
        e = w[j] - np.float64(np.float32(code - zero) * step)
        error[j] = e
        value = -abs(e) if abs(e) > half else e * e / diagonal[j]
        key[j] = np.inf if gone[j] else value
