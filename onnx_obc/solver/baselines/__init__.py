"""What others do instead of the exact greedy, to compare with: magnitude and rounding, L-OBS, AdaPrune."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.arrays import Bool, Float32, check_finite
from ...core.level import Level
from ...core.solution import Solution
from ..grid import GridMethod
from ..linalg.inverse import Damped
from ..linalg.loss import layer_loss
from ..linalg.threads import RowsDone
from ..method import Method
from .adaprune import adaprune
from .lobs import prune_lobs
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
    plain = uncompensated(weights, level, grid, shared_scale)
    return replace(plain, loss=layer_loss(weights, plain.weights, damped.hessian))


def solve_as_others(
    weights: Float32, damped: Damped, level: Level, method: Method, progress: RowsDone | None = None
) -> Solution:
    """The layer at `level` by the baseline that the method names; its loss is measured.

    What a method has no way for is done as `baseline` does it: L-OBS and AdaPrune round what they leave to nearest.
    weights: (groups, rows, columns) float32. Raises ModelError if a weight is NaN or infinite.
    """
    if level.sparsity is None or method.solver in ("baseline", "gmp"):
        return baseline(weights, damped, level, grid=method.grid, shared_scale=method.shared_scale)
    check_finite(weights)
    if method.solver == "lobs":
        pruned, mask = prune_lobs(weights, damped.inverse, level.sparsity)
    elif method.solver == "adaprune":
        pruned, mask = adaprune(weights, damped, level.sparsity, method.iterations, method.threads, progress)
    else:
        raise ValueError(f"{method.solver} is not a solver of single layers")
    rounded = _rounded(pruned, mask, level, method.grid, method.shared_scale)
    return replace(rounded, loss=layer_loss(weights, rounded.weights, damped.hessian))


def uncompensated(weights: Float32, level: Level, grid: GridMethod, shared_scale: bool = False) -> Solution:
    """What `baseline` gives, without a Hessian, and so without a loss: it is 0 here."""
    if level.sparsity is None:
        return _rounded(weights, None, level, grid, shared_scale)
    mask = magnitude_mask(weights, level.sparsity)
    return _rounded(np.where(mask, weights, np.float32(0)), mask, level, grid, shared_scale)


def _rounded(pruned: Float32, mask: Bool | None, level: Level, grid: GridMethod, shared_scale: bool) -> Solution:
    """The pruned weights rounded to nearest, if the level has bits."""
    if level.bits is None:
        return Solution(level, pruned, None, None, mask, 0.0)
    codes, fitted = round_to_nearest(pruned, level, grid, shared_scale)
    return Solution(level, fitted.dequantize(codes), codes, fitted, mask, 0.0)


__all__ = ["baseline", "solve_as_others", "uncompensated"]
