"""Quantize rows that hold zeros: the greedy of `greedy.quantize_rows`, on the columns that a row has kept.

What the greedy needs of a row is (H_KK)⁻¹ for its kept columns K. Of two ways to it a row takes the cheaper:

    few kept    (H_KK)⁻¹ by a Cholesky factorisation of its own, then the greedy on K alone: cubic in what is kept
    many kept   the greedy on all columns, which begins by eliminating the zeros from the shared H⁻¹

With 1152 columns the first takes about 0.65 times as long as the second at a density of 0.5, 0.15 times at 0.25 and
0.04 times at 0.1 in float32, and less in float64 (`benchmarks/speed/sparse_quantize.py`). To correct the shared inverse
for the columns that are lost in one step, G_KK − G_KL (G_LL)⁻¹ G_LK for G = H⁻¹, gains nothing over the second, whose
epochs are such products. The factorisation has the greedy's own precision: its errors are those of a nearby H_KK, and
where `Damped.dtype` allows float32 the predicted losses are as near the measured ones as they are the second way.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64, Int32
from ..linalg.blas import invert_triangle
from ..linalg.compiled import compiled
from .greedy import quantize_rows

SPARSE = 0.55  # of the columns kept, up to which the first way is the quicker one: 0.55 to 0.6 at 128 to 1152 columns


@compiled
def quantize_sparse_rows(
    weights: Float32,
    kept: Bool,
    hessian: Float64,
    unit: Float64,
    base: np.ndarray,
    floor: Float64,
    scale: Float32,
    zero_point: Int32,
    qmin: int,
    qmax: int,
    sparse: float,
    room: np.ndarray,
    factor: np.ndarray,
    start: int,
    stop: int,
    codes: Int32,
    order: Int32,
    losses: Float64,
) -> None:
    """`quantize_rows`, with the columns that are not `kept` left out of rows that keep at most `sparse` of them.

    hessian: (groups, columns, columns) float64, damped; unit: (groups,) float64, what `base` and `floor` are scaled by.
    order: of a row on its kept columns those alone, as they were rounded; the rest is −1. Other arguments as there.
    sparse: `SPARSE`, or 0 for all rows the second way and 1 for all the first. A row whose H_KK is singular at the
    precision of `base`, which `Damped.dtype` all but rules out, takes the second.
    Memory: the inverse of a row's kept columns, besides the `Workspace`.
    """
    columns = weights.shape[1]
    rows = weights.shape[0] // base.shape[0]
    for i in range(start, stop):
        g = i // rows
        own = np.flatnonzero(kept[i])
        size = own.size
        inverse = np.empty((1, size, size), base.dtype)  # the lower triangle
        found = size <= sparse * columns
        if found and size > 0:
            for t in range(size):
                source, target = hessian[g, own[t]], inverse[0, t]
                for j in range(t + 1):
                    target[j] = source[own[j]] / unit[g]
            found = invert_triangle(inverse[0])
        if not found:
            grid = (scale, zero_point, qmin, qmax)
            quantize_rows(weights, kept, base, floor, *grid, room, factor, i, i + 1, codes, order, losses)
            continue
        codes[i], order[i], losses[i] = zero_point[i], -1, 0.0
        if size == 0:
            continue
        w, low = np.empty((1, size), np.float32), np.empty((1, size))
        step, zero = np.empty((1, size), np.float32), np.empty((1, size), np.int32)
        for t in range(size):
            w[0, t], low[0, t] = weights[i, own[t]], floor[g, own[t]]
            step[0, t], zero[0, t] = scale[i, own[t]], zero_point[i, own[t]]
        whole = np.ones((1, size), np.bool_)
        own_grid = (step, zero, qmin, qmax)
        integers, pivots = np.empty((1, size), np.int32), np.empty((1, size), np.int32)
        each = losses[i : i + 1]
        quantize_rows(w, whole, inverse, low, *own_grid, room, factor, 0, 1, integers, pivots, each)
        for t in range(size):
            codes[i, own[t]] = integers[0, t]
            order[i, t] = own[pivots[0, t]]
