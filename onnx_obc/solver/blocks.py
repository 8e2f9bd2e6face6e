"""The exact greedy with blocks of columns as pivots (OBC equation 5); see `greedy` for the arithmetic and arguments.

Numba's cache on disk sees changes of this file, not of the functions that it takes from `greedy`: after changing those,
touch this one.
"""

from __future__ import annotations

import numpy as np

from ..level import Float32, Float64, Int32
from .greedy import EPOCH, append_column, compact_factor, compiled


@compiled
def prune_blocks(
    weights: Float32,
    base: np.ndarray,
    floor: Float64,
    block: int,
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
    room = np.empty(((columns + EPOCH + block) // 2 + 1) ** 2, base.dtype)
    scratch = np.empty((block + 1, block))
    for i in range(start, stop):
        inverse = base[i // rows]
        alive = np.arange(columns)
        gone = np.zeros(columns, np.uint8)
        w = weights[i].astype(np.float64)
        low = floor[i // rows].copy()
        near = np.zeros((columns, block))  # row j: current inverse of column j with the columns of its own block
        for j in range(columns):
            first = j - j % block
            for c in range(min(block, columns - first)):
                near[j, c] = inverse[j, first + c]
        size, k, step = columns, 0, 0
        while size > 0:
            last = min(k + EPOCH + block - 1, columns)
            factor = room[: last * size].reshape(last, size)  # V: (last, size)
            epoch_end = min(k + EPOCH, columns)
            while k < epoch_end:
                best, first = np.inf, -1
                for j in range(0, size, block):  # only the last block is short, and it stays last
                    if gone[j] == 0:
                        score = _block_score(w, near, low, j, min(block, size - j), scratch)
                        if first < 0 or score < best:
                            best, first = score, j
                order[i, step] = alive[first] // block
                losses[i, step] = 0.5 * best
                step += 1
                for q in range(first, min(first + block, size)):
                    pivot = max(near[q, q - first], low[q])
                    append_column(inverse[alive[q]], alive, factor, k, q, pivot)
                    v, shift = factor[k], w[q] / np.sqrt(pivot)
                    for j in range(size):
                        w[j] -= shift * v[j]
                    for head in range(0, size, block):
                        for j in range(head, min(head + block, size)):
                            for c in range(min(block, size - head)):
                                near[j, c] -= np.float64(v[j]) * v[head + c]
                    gone[q] = 1
                    k += 1
            stay = compact_factor(room, k, size, gone)
            alive, w, low, near = alive[stay], w[stay], low[stay], near[stay]
            size = stay.size
            gone[:size] = 0


@compiled
def _block_score(w: Float64, near: Float64, low: Float64, first: int, count: int, scratch: Float64) -> float:
    """wᵀ D⁻¹ w for the block's weights w and its diagonal block D of the current inverse: D = L diag(d) Lᵀ, y = L⁻¹ w.

    scratch: (block + 1, block); holds L below and d on its diagonal, y in its last row.
    """
    score = 0.0
    y = scratch[scratch.shape[0] - 1]
    for r in range(count):
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
        score += y[r] * y[r] / scratch[r, r]
    return score
