"""Quantize a layer on given grids by the exact greedy (OBQ)."""

from __future__ import annotations

import numpy as np

from ..level import Bool, Float32, Grid, Int32
from .greedy import quantize_rows
from .inverse import Damped, Precision, invert
from .threads import Progress, over_rows


def quantize(
    weights: Float32,
    damped: Damped,
    grid: Grid,
    mask: Bool | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
) -> tuple[Int32, float]:
    """The integers of the weights, rounded one at a time with all others of the row making up for it.

    Where `mask` is False the weight is zero already and stays so, its code the zero point: such a row is solved on
    its kept columns K alone, with the inverse of H_KK.

    Returns (codes, loss): (groups, rows, columns) int32, and the ½ tr(ΔHΔᵀ) that the greedy predicts for Δ = weights −
    dequantized codes. If the weights are the optimum for `mask` (`prune` returns that), H Δ_pruning vanishes on K, so
    the losses of pruning and of quantizing simply add up.
    """
    groups, rows, columns = weights.shape
    total = groups * rows
    base, floor, unit = damped.scaled(precision)
    flat = np.array(weights.reshape(total, columns), order="C")  # (groups · rows, columns)
    scale = np.array(grid.scale.reshape(total))
    zero = np.array(grid.zero_point.reshape(total))
    codes = np.repeat(zero[:, None], columns, axis=1)  # (groups · rows, columns)
    losses = np.zeros(total)
    order = np.empty((total, columns), np.int32)
    kept_of = np.ones((total, columns), np.bool_) if mask is None else mask.reshape(total, columns)
    full = np.array(kept_of.all(axis=1))  # (groups · rows,)

    def solve_kept_columns(i: int, kept: np.ndarray) -> None:
        g = i // rows
        hessian = damped.hessian[g].take(kept, axis=0).take(kept, axis=1)  # (kept, kept)
        own = (invert(hessian) * unit[g]).astype(base.dtype)[None]  # (1, kept, kept)
        got = np.empty((1, kept.size), np.int32)
        quantize_rows(
            flat[i : i + 1, kept],
            own,
            floor[g : g + 1, kept],
            scale[i : i + 1],
            zero[i : i + 1],
            grid.qmin,
            grid.qmax,
            0,
            1,
            got,
            np.empty_like(got),
            losses[i : i + 1],
        )
        codes[i, kept] = got[0]

    def work(start: int, stop: int) -> None:
        i = start
        while i < stop:
            j = i
            while j < stop and full[j]:
                j += 1
            if j > i:
                quantize_rows(flat, base, floor, scale, zero, grid.qmin, grid.qmax, i, j, codes, order, losses)
            if j < stop:
                kept = np.flatnonzero(kept_of[j])
                if kept.size:
                    solve_kept_columns(j, kept)
            i = j + 1

    over_rows(work, total, columns**3 // 6, threads, progress)
    return codes.reshape(weights.shape), float((losses * unit.repeat(rows)).sum())
