"""What the solver minimises, measured."""

from __future__ import annotations

import numpy as np

from ..level import Float32, Float64


def layer_loss(weights: Float32, solved: Float32, hessian: Float64) -> float:
    """½ tr(ΔHΔᵀ), Δ = weights − solved, summed over groups; for H = 2 X Xᵀ / n that is ‖WX − ŴX‖² / n.

    weights, solved: (groups, rows, columns). hessian: (groups, columns, columns), damped or not.
    """
    return output_energy(weights.astype(np.float64) - solved, hessian)


def output_energy(weights: Float32 | Float64, hessian: Float64) -> float:
    """½ tr(WHWᵀ), summed over groups; for H = 2 X Xᵀ / n the mean energy ‖WX‖² / n of the layer's outputs.

    weights: (groups, rows, columns). hessian: (groups, columns, columns).
    """
    wide = weights.astype(np.float64)
    return float(0.5 * np.sum((wide @ hessian) * wide))  # (groups, rows, columns) summed
