"""The exact greedy for single weights: which pivot goes next. `elimination` says what becomes of the others.

Arguments that all kernels share:
    weights: (groups · rows, columns) float32
    base:    (groups, columns, columns) float32 or float64, the inverse of the damped Hessian
    floor:   (groups, columns) float64, 1 / diagonal of the damped Hessian. The diagonal of the current inverse never
             falls below it; held there, rounding cannot make it vanish.
    room, factor: the thread's `Workspace`
    start, stop: the rows to work on; row i belongs to group i // (groups · rows / groups)
Losses are ½ δᵀHδ, for H = 2 X Xᵀ / n the layer loss of that row (OBC equations 1 and 4 with our factor). Ties go to the
lowest column.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64, Int32
from ..linalg.compiled import compiled
from .elimination import append_column, eliminate, epoch, lowest, rebase


@compiled
def prune_rows(
    weights: Float32,
    base: np.ndarray,
    floor: Float64,
    keep: int,
    per: int,
    room: np.ndarray,
    factor: np.ndarray,
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
    left = np.empty((columns + per - 1) // per, np.int64)
    for i in range(start, stop):
        a = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        diagonal = np.empty(columns)
        score = np.empty(columns)
        for j in range(columns):
            diagonal[j] = a[j, j]
        for b in range(left.size):
            left[b] = min(per, columns - b * per) - keep
            if left[b] <= 0:  # a short last group that may keep all it has
                gone[b * per : columns] = 1
        _score(w, diagonal, gone, columns, score)
        size, step = columns, 0
        while step < steps:
            k, last = 0, min(epoch(size), steps - step)
            while k < last:
                q = lowest(score, size)
                order[i, step] = alive[q]
                losses[i, step] = 0.5 * score[q]
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
                append_column(a, factor, k, q, size, diagonal[q])
                eliminate(factor[k], w[q] / np.sqrt(diagonal[q]), w, diagonal, low, size)
                _score(w, diagonal, gone, size, score)
                k, step = k + 1, step + 1
            if step < steps:
                stay = rebase(a, room, factor, k, gone, size)
                a, size = room, stay.size
                alive, w, low, diagonal, score = alive[stay], w[stay], low[stay], diagonal[stay], score[stay]
                gone[:size] = 0


@compiled
def quantize_rows(
    weights: Float32,
    kept: Bool,
    base: np.ndarray,
    floor: Float64,
    scale: Float32,
    zero_point: Int32,
    qmin: int,
    qmax: int,
    room: np.ndarray,
    factor: np.ndarray,
    start: int,
    stop: int,
    codes: Int32,
    order: Int32,
    losses: Float64,
) -> None:
    """Round one weight at a time to its row's grid, the cheapest first (OBQ: OBC section 5, Algorithm 3).

    A weight that is more than half a step from its nearest grid value lies outside the grid's range. It is rounded as
    soon as it appears, the farthest first, while there are others left to make up for it. A weight that is not `kept`
    is zero and stays so: it goes before all others, which leaves the inverse of the kept columns' Hessian to those.

    kept: (groups · rows, columns). scale, zero_point: the same. codes, order: (groups · rows, columns) int32,
    written: the integers, and the columns as they were rounded. losses: (groups · rows,) float64, written.
    """
    columns = weights.shape[1]
    rows = weights.shape[0] // base.shape[0]
    for i in range(start, stop):
        a = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        first = kept[i] == 0
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        step, zero = scale[i].copy(), zero_point[i].copy()
        diagonal = np.empty(columns)
        error = np.empty(columns)
        key = np.empty(columns)
        for j in range(columns):
            diagonal[j] = a[j, j]
        _round(w, diagonal, first, gone, columns, step, zero, qmin, qmax, error, key)
        size, done, loss = columns, 0, 0.0
        while done < columns:
            k, last = 0, min(epoch(size), columns - done)
            while k < last:
                q = lowest(key, size)
                order[i, done] = alive[q]
                codes[i, alive[q]] = np.int32(min(max(np.rint(w[q] / np.float64(step[q])) + zero[q], qmin), qmax))
                loss += 0.5 * error[q] * error[q] / diagonal[q]
                gone[q] = 1
                append_column(a, factor, k, q, size, diagonal[q])
                eliminate(factor[k], error[q] / np.sqrt(diagonal[q]), w, diagonal, low, size)
                _round(w, diagonal, first, gone, size, step, zero, qmin, qmax, error, key)
                k, done = k + 1, done + 1
            if done < columns:
                stay = rebase(a, room, factor, k, gone, size)
                a, size = room, stay.size
                alive, w, low, diagonal, first = alive[stay], w[stay], low[stay], diagonal[stay], first[stay]
                error, key, step, zero = error[stay], key[stay], step[stay], zero[stay]
                gone[:size] = 0
        losses[i] = loss


@compiled
def _score(w: Float64, diagonal: Float64, gone: np.ndarray, size: int, score: Float64) -> None:
    """Twice the loss that pruning each weight adds: w² over its diagonal of the current inverse."""
    for j in range(size):
        value = w[j] * w[j] / diagonal[j]
        score[j] = np.inf if gone[j] else value


@compiled
def _round(
    w: Float64,
    diagonal: Float64,
    first: Bool,
    gone: np.ndarray,
    size: int,
    step: Float32,
    zero: Int32,
    qmin: int,
    qmax: int,
    error: Float64,
    key: Float64,
) -> None:
    """Each weight's distance from its nearest grid value, and the key whose minimum is rounded next."""
    for j in range(size):
        scale, shift = np.float64(step[j]), np.float64(zero[j])
        code = min(max(np.rint(w[j] / scale) + shift, qmin), qmax)
        e = w[j] - np.float64(np.float32(code - shift) * step[j])
        error[j] = e
        value = -abs(e) if abs(e) > 0.5 * scale else e * e / diagonal[j]
        value = -np.inf if first[j] else value
        key[j] = np.inf if gone[j] else value
