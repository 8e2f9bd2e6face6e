"""Quantize a layer on given grids by the exact greedy (OBQ)."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64, Int32
from ...core.solution import Grid
from ..gpu import batches
from ..linalg.inverse import Damped, Precision
from ..linalg.threads import RowsDone, over_rows
from .elimination import Workspace
from .greedy import quantize_rows
from .quantize_sparse import SPARSE, quantize_sparse_rows


def quantize(
    weights: Float32,
    damped: Damped,
    grid: Grid,
    mask: Bool | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
    device: str = "cpu",
) -> tuple[Int32, Float64]:
    """The integers of the weights, rounded one at a time with all others of the row making up for it.

    Where `mask` is False the weight is zero already and stays so, its code the zero point: those columns are eliminated
    before all others, or left out from the start where a row has many of them (`quantize_sparse`).

    Returns (codes, losses): (groups, rows, columns) int32, and (groups, rows) the ½ δᵀHδ that the greedy predicts for
    each row δ of weights − dequantized codes. If the weights are the optimum for `mask` (`prune` returns that),
    H Δ_pruning vanishes on K, so the losses of pruning and of quantizing simply add up.
    """
    if device != "cpu" and grid.block is None:  # the engine for GPUs has one step for each row
        codes, each = batches.quantize(weights, damped, grid, device, mask, precision, None, progress)
        return codes, each.reshape(weights.shape[:2])
    groups, rows, columns = weights.shape
    total = groups * rows
    base, floor, unit = damped.scaled(precision)
    flat = np.array(weights.reshape(total, columns), order="C")  # (groups · rows, columns)
    steps, zeros = grid.spread(rows, columns)
    scale, zero = steps.reshape(total, columns), zeros.reshape(total, columns)  # of every weight
    codes, order = np.empty(flat.shape, np.int32), np.empty(flat.shape, np.int32)  # both (groups · rows, columns)
    losses = np.empty(total)  # (groups · rows,)
    low, high = grid.qmin, grid.qmax
    space = Workspace(columns, base.dtype)
    if mask is None:
        kept, cost = np.ones(flat.shape, np.bool_), columns**3 // 6
    else:
        kept = np.array(mask.reshape(flat.shape), order="C")
        most = int(kept.sum(axis=1).max())
        cost = min(columns, most + most // 2) ** 3 // 6  # inverting takes about as long again as the greedy
    hessian = np.ascontiguousarray(damped.hessian)

    def work(start: int, stop: int) -> None:
        room, factor = space.room, space.factor
        if mask is None:
            quantize_rows(
                flat, kept, base, floor, scale, zero, low, high, room, factor, start, stop, codes, order, losses
            )
        else:
            quantize_sparse_rows(
                flat, kept, hessian, unit, base, floor, scale, zero, low, high, SPARSE, room, factor, start, stop,
                codes, order, losses,
            )  # fmt: skip

    over_rows(work, total, cost, threads, progress)
    return codes.reshape(weights.shape), losses.reshape(groups, rows) * unit[:, None]
