"""What is usually done instead of solving, to compare with: rounding to nearest and magnitude pruning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.arrays import Float32
from ...core.level import Level
from ...core.solution import Solution
from ..grid import GridMethod
from ..linalg.inverse import Damped
from ..linalg.loss import layer_loss
from ..solve import check_finite
from .magnitude import magnitude_mask
from .rounding import round_to_nearest


def baseline(
    weights: Float32, damped: Damped, level: Level, *, grid: GridMethod = "mse", shared_scale: bool = False
) -> Solution:
    """The layer at `level` by magnitude pruning, then rounding to nearest on the solver's grids; no compensation.

    weights: (groups, rows, columns) float32. The solution's loss is measured, ½ tr(ΔHΔᵀ) for the damped Hessian.
    Raises ModelError if a weight is NaN or infinite.
    """
    check_finite(weights)
    found = uncompensated(weights, level, grid, shared_scale)
    return replace(found, loss=layer_loss(weights, found.weights, damped.hessian))


def uncompensated(weights: Float32, level: Level, grid: GridMethod, shared_scale: bool = False) -> Solution:
    """The same without a Hessian, and so without a loss: it is 0 here."""
    solved, mask, codes, fitted = weights, None, None, None
    if level.sparsity is not None:
        mask = magnitude_mask(weights, level.sparsity)
        solved = np.where(mask, weights, np.float32(0))
    if level.bits is not None:
        codes, fitted = round_to_nearest(solved, level, grid, shared_scale)
        solved = fitted.dequantize(codes)
    return Solution(level, solved, codes, fitted, mask, 0.0)


__all__ = ["baseline", "uncompensated"]
