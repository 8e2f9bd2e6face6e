"""Bring the weights that a mask keeps close to their optimum, by conjugate gradients on all rows at once."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ..linalg.inverse import Damped, Precision, units
from ..linalg.threads import RowsDone, over_rows

STEPS = 32  # at most; each is one product with H
_GAIN = 1e-3  # a tile of rows is left when a step lowers its loss by less than this fraction
_TILE = 256  # rows of one product of matrices, whatever the threads


def refit(
    weights: Float32,
    solved: Float32,
    mask: Bool,
    damped: Damped,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
) -> float:
    """Lower ½ tr(ΔHΔᵀ), Δ = weights − solved, over the weights that `mask` keeps; `solved` is changed in place.

    Conjugate gradients with the diagonal of H as preconditioner (Hestenes and Stiefel 1952), a row at a time in the
    arithmetic, a tile of rows at a time in the products. No step raises the loss. Returns by how much it fell: step by
    step ½ α rᵀz, as the recurrences have it. weights, solved, mask: (groups, rows, columns).
    """
    groups, rows, _ = weights.shape
    tiles = -(-rows // _TILE)
    gains = np.zeros(groups * tiles)
    done = 0
    for g in range(groups):
        hessian, unit = _scaled(damped, g, precision)

        def work(start: int, stop: int, g: int = g, hessian: np.ndarray = hessian, unit: float = unit) -> None:
            for i in range(start, stop):
                tile = slice(i * _TILE, (i + 1) * _TILE)
                solution, gain = _conjugate_gradients(weights[g, tile], solved[g, tile], mask[g, tile], hessian)
                solved[g, tile] = solution
                gains[g * tiles + i] = gain * unit

        def advance(finished: int, done: int = done) -> None:
            if progress is not None:
                progress(groups * rows * (done + finished) // (groups * tiles))

        over_rows(work, tiles, 2**28, threads, advance)
        done += tiles
    return float(gains.sum())


def _conjugate_gradients(
    weights: Float32, solved: Float32, mask: Bool, hessian: np.ndarray
) -> tuple[np.ndarray, float]:
    """A tile's weights and by how much its loss fell. weights, solved, mask: (rows, columns)."""
    kept = mask.astype(hessian.dtype)
    diagonal = np.diagonal(hessian)  # (columns,)
    x = solved.astype(hessian.dtype)
    residual = (weights - x) @ hessian  # (rows, columns)
    loss = 0.5 * float(_dots(residual, weights - x).sum())
    residual *= kept
    direction = z = residual / diagonal
    rz = _dots(residual, z)  # (rows,)
    total = 0.0
    for _ in range(STEPS):
        image = direction @ hessian  # (rows, columns)
        image *= kept
        curvature = _dots(direction, image)  # (rows,)
        step = np.divide(rz, curvature, out=np.zeros_like(rz), where=curvature > 0)
        x += step.astype(x.dtype)[:, None] * direction
        residual -= step.astype(x.dtype)[:, None] * image
        gain = 0.5 * float((step * rz).sum())
        total += gain
        if gain <= _GAIN * (loss - total):
            break
        z = residual / diagonal
        rz, before = _dots(residual, z), rz
        turn = np.divide(rz, before, out=np.zeros_like(rz), where=before > 0)  # (rows,)
        direction = z + turn.astype(x.dtype)[:, None] * direction
    return x, total


def inner_product(a: Float32, b: Float32, damped: Damped, threads: int | None = None) -> float:
    """tr(A H Bᵀ), summed over groups. a, b: (groups, rows, columns)."""
    groups, rows, _ = a.shape
    tiles = -(-rows // _TILE)
    sums = np.zeros((groups, tiles))
    for g in range(groups):
        hessian, unit = _scaled(damped, g, "auto")

        def work(start: int, stop: int, g: int = g, hessian: np.ndarray = hessian, unit: float = unit) -> None:
            for i in range(start, stop):
                tile = slice(i * _TILE, (i + 1) * _TILE)
                sums[g, i] = unit * _dots(a[g, tile] @ hessian, b[g, tile]).sum()

        over_rows(work, tiles, 2**28, threads)
    return float(sums.sum())


def _scaled(damped: Damped, g: int, precision: Precision) -> tuple[np.ndarray, float]:
    """A group's Hessian (columns, columns), float32 unless float64 is asked for, and the loss that 1 stands for."""
    hessian = damped.hessian[g]
    unit = float(units(hessian[None])[0])
    scaled = np.empty(hessian.shape, np.float64 if precision == "float64" else np.float32)
    np.multiply(hessian, 1 / unit, out=scaled, casting="same_kind")
    return scaled, unit


def _dots(a: np.ndarray, b: np.ndarray) -> Float64:
    """The rows' inner products, added up in float64. (rows,)"""
    return np.asarray((a * b).sum(axis=1, dtype=np.float64))
