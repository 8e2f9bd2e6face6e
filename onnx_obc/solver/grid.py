"""Quantization grids: one scale and zero point for every row, and rounding to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from ..core.arrays import Float32, Float64, Int32
from ..core.solution import Grid
from .linalg.compiled import compiled
from .linalg.threads import over_rows

GridMethod: TypeAlias = Literal["minmax", "mse"]

_NORM = 2.4  # the exponent and the steps of the search are those of OBC's experiments
_SHRINK = np.arange(100, 20, -1) / 100  # 1, 0.99, … 0.21
_SPREAD = 2**16  # weights that a grid for all rows is fitted to
_SMALLEST = np.finfo(np.float32).tiny  # a scale below it would be denormal, and many runtimes flush those to zero


def fit_grid(
    weights: Float32,
    bits: int,
    symmetric: bool = True,
    method: GridMethod = "mse",
    threads: int | None = None,
    shared: bool = False,
    block: int | None = None,
    whole_span: bool = True,
) -> Grid:
    """A grid for every row, or the same for all rows of a group if they share it.

    `minmax` spans the row; `mse` clips it where that lowers Σ|error|^2.4 (OBC section 6). With `whole_span` it tries
    the scale of `minmax` first, so that its error is never larger; the authors' code does not for symmetric grids.

    Symmetric: zero point 0, range ± the largest magnitude; `minmax` can represent that magnitude with either sign.
    Asymmetric: from the smallest to the largest weight, extended to include 0, which lies on the grid exactly.
    A row of zeros gets scale 1. weights: (groups, rows, columns) float32, finite. A shared grid is that of all weights
    of a group in one row, of which evenly spread ones and the extremes are looked at. block: columns that share a grid,
    of which a row has a whole number.
    """
    if block is not None:
        parts = np.ascontiguousarray(weights).reshape(len(weights), -1, block)  # (groups, rows · blocks, block)
        return replace(fit_grid(parts, bits, symmetric, method, threads, whole_span=whole_span), block=block)
    groups, rows, columns = weights.shape
    if shared:
        together = weights.reshape(groups, rows * columns)
        spread = together[:, :: -(-together.shape[1] // _SPREAD)]
        ends = np.stack([together.min(axis=1), together.max(axis=1)], axis=1)  # (groups, 2)
        one = fit_grid(np.hstack([spread, ends])[None], bits, symmetric, method, threads)  # a row for each group
        scale, zero = one.scale.reshape(groups, 1), one.zero_point.reshape(groups, 1)
        return Grid(np.repeat(scale, rows, axis=1), np.repeat(zero, rows, axis=1), bits, symmetric)
    flat = np.array(weights.reshape(groups * rows, columns), order="C")
    levels = 2**bits - 1
    low, high = flat.min(axis=1).astype(np.float64), flat.max(axis=1).astype(np.float64)  # (groups · rows,)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    span = (high if symmetric else high - low)[:, None]  # (groups · rows, 1)
    candidates = [span / (2 ** (bits - 1) - 1 if symmetric else levels)]
    if method == "mse":
        if symmetric and not whole_span:
            candidates.clear()
        candidates.append(span * _SHRINK / (levels / 2 if symmetric else levels))
    scales = np.hstack(candidates).astype(np.float32)  # (groups · rows, candidates), descending
    scales = np.where(span > 0, np.maximum(scales, _SMALLEST), np.float32(1))
    zeros = np.zeros(len(flat), np.int32)
    if not symmetric:
        zeros = np.clip(np.rint(-low / scales[:, 0]), 0, levels).astype(np.int32)
    grid_low = -(2 ** (bits - 1)) if symmetric else 0
    best = np.empty(len(flat), np.float32)

    def search(start: int, stop: int) -> None:
        _best_scale(flat, scales, zeros, grid_low, grid_low + levels, start, stop, best)

    over_rows(search, len(flat), 20 * columns * scales.shape[1], threads)
    return Grid(best.reshape(groups, rows), zeros.reshape(groups, rows), bits, symmetric)


def round_to_grid(weights: Float32, grid: Grid) -> Int32:
    """The code of the nearest grid value, halves to even. weights, result: (groups, rows, columns)."""
    parts = weights.reshape(*grid.scale.shape, -1).astype(np.float64)  # blocks of a row as rows, if there are any
    codes: Float64 = np.rint(parts / grid.scale[:, :, None]) + grid.zero_point[:, :, None]
    return np.clip(codes, grid.qmin, grid.qmax).astype(np.int32).reshape(weights.shape)


@compiled
def _best_scale(
    weights: Float32,
    scales: Float32,
    zeros: Int32,
    qmin: int,
    qmax: int,
    start: int,
    stop: int,
    best: Float32,
) -> None:
    """best[i]: of row i's scales the first with the smallest Σ|error|^2.4. Scales: (rows, candidates), descending."""
    for i in range(start, stop):
        zero, least = np.float64(zeros[i]), np.inf
        for scale in scales[i]:
            total = 0.0
            for w in weights[i]:
                code = min(max(np.rint(np.float64(w) / scale) + zero, qmin), qmax)
                total += abs(w - np.float64(np.float32(code - zero) * scale)) ** _NORM
                if total >= least:
                    break
            if total < least:
                least = total
                best[i] = scale
