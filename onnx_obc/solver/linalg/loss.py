"""What the solver minimises, measured."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Float32, Float64
from .threads import one_blas_thread, over_rows

_TILE = 256  # rows of one product of matrices, whatever the threads
_SMALL = 2**22  # multiplications of all groups together, up to which one product of all is quickest


def layer_loss(weights: Float32, solved: Float32, hessian: Float64) -> float:
    """½ tr(ΔHΔᵀ), Δ = weights − solved, summed over groups; for H = 2 X Xᵀ / n that is ‖WX − ŴX‖² / n.

    weights, solved: (groups, rows, columns). hessian: (groups, columns, columns), damped or not.
    """
    return float(row_losses(weights, solved, hessian).sum())


def output_energy(weights: Float32, hessian: Float64) -> float:
    """½ tr(WHWᵀ), summed over groups; for H = 2 X Xᵀ / n the mean energy ‖WX‖² / n of the layer's outputs.

    weights: (groups, rows, columns). hessian: (groups, columns, columns).
    """
    return float(row_losses(weights, None, hessian).sum())


def row_losses(weights: Float32, solved: Float32 | None, hessian: Float64) -> Float64:
    """½ δᵀHδ of every row of weights − solved, in float64: (groups, rows). solved: None for zeros.

    A tile of rows at a time over all cores; the result depends on neither. weights, solved: (groups, rows, columns).
    """
    groups, rows, columns = weights.shape
    if groups * rows * columns**2 <= _SMALL:
        with one_blas_thread():
            return _energies(weights, solved, hessian)
    losses = np.empty((groups, rows))
    tiles = -(-rows // _TILE)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            g, tile = i // tiles, slice(i % tiles * _TILE, (i % tiles + 1) * _TILE)
            losses[g, tile] = _energies(weights[g, tile], None if solved is None else solved[g, tile], hessian[g])

    over_rows(work, groups * tiles, min(rows, _TILE) * columns**2, None)
    return losses


def _energies(weights: Float32, solved: Float32 | None, hessian: Float64) -> Float64:
    delta = weights.astype(np.float64)
    if solved is not None:
        delta -= solved
    return 0.5 * np.asarray(((delta @ hessian) * delta).sum(axis=-1))
