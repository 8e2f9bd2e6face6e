"""The exact greedy with blocks of columns as pivots (OBC equation 5); see `greedy` for the shared arguments."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Float32, Float64, Int32
from ..linalg.compiled import compiled
from .elimination import append_column, epoch, lowest, rebase


@compiled
def prune_blocks(
    weights: Float32,
    base: np.ndarray,
    floor: Float64,
    block: int,
    room: np.ndarray,
    factor: np.ndarray,
    start: int,
    stop: int,
    order: Int32,
    losses: Float64,
) -> None:
    """Prune blocks of `block` consecutive columns, the last one possibly shorter, to the end (OBC equation 5).

    order, losses: (groups · rows, blocks) int32 and float64, written: the blocks as they go, and the loss of each.
    """
    columns = weights.shape[1]
    rows = weights.shape[0] // base.shape[0]
    scratch = np.empty((block + 1, block))
    score = np.empty(-(-columns // block))
    for i in range(start, stop):
        a = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        near = np.zeros((columns, block))  # row j: current inverse of column j with the columns of its own block
        for j in range(columns):
            first = j - j % block
            for c in range(min(block, columns - first)):
                near[j, c] = a[j, first + c]
        size, step = columns, 0
        _score_blocks(w, near, low, gone, size, block, scratch, score)
        while step < order.shape[1]:
            k, last = 0, min(epoch(size), size)
            while k < last:
                best = lowest(score, -(-size // block))
                first = best * block
                order[i, step] = alive[first] // block
                losses[i, step] = 0.5 * score[best]
                step += 1
                for q in range(first, min(first + block, size)):
                    pivot = max(near[q, q - first], low[q])
                    append_column(a, factor, k, q, size, pivot)
                    v, shift = factor[k], w[q] / np.sqrt(pivot)
                    for j in range(size):
                        w[j] -= shift * v[j]
                    for head in range(0, size, block):  # only the last block is short, and it stays last
                        for j in range(head, min(head + block, size)):
                            for c in range(min(block, size - head)):
                                near[j, c] -= np.float64(v[j]) * v[head + c]
                    gone[q] = 1
                    k += 1
                _score_blocks(w, near, low, gone, size, block, scratch, score)
            if step < order.shape[1]:
                stay = rebase(a, room, factor, k, gone, size)
                a, size = room, stay.size
                alive, w, low, near = alive[stay], w[stay], low[stay], near[stay]
                gone[:size] = 0
                _score_blocks(w, near, low, gone, size, block, scratch, score)


@compiled
def _score_blocks(
    w: Float64, near: Float64, low: Float64, gone: np.ndarray, size: int, block: int, scratch: Float64, score: Float64
) -> None:
    """Twice the loss that each block adds: wᵀ D⁻¹ w, D its diagonal block of the current inverse.

    By D = L diag(d) Lᵀ and y = L⁻¹ w. scratch: (block + 1, block), L with d on its diagonal, and y.
    """
    y = scratch[scratch.shape[0] - 1]
    for b in range(-(-size // block)):
        first = b * block
        score[b] = np.inf
        if gone[first]:
            continue
        total = 0.0
        for r in range(min(block, size - first)):
            y[r] = w[first + r]
            for c in range(r):
                value = near[first + r, c]
                for t in range(c):
                    value -= scratch[r, t] * scratch[c, t] * scratch[t, t]
                scratch[r, c] = value / scratch[c, c]
                y[r] -= scratch[r, c] * y[c]
            pivot = near[first + r, r]
            for c in range(r):
                pivot -= scratch[r, c] * scratch[r, c] * scratch[c, c]
            scratch[r, r] = max(pivot, low[first + r])
            total += y[r] * y[r] / scratch[r, r]
        score[b] = total
