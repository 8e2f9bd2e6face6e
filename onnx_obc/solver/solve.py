"""Solve a layer at a level: prune, then quantize what remains."""

from __future__ import annotations

import numpy as np

from ..errors import ModelError
from ..level import Float32, Level, Solution
from .grid import GridMethod, fit_grid
from .inverse import Damped, Precision
from .loss import layer_loss
from .prune import prune
from .quantize import quantize
from .threads import Progress

_ROUNDING = 3e-5  # relative; what float32 may cost a predicted loss


def solve(
    weights: Float32,
    damped: Damped,
    level: Level,
    *,
    grid: GridMethod = "mse",
    threads: int | None = None,
    precision: Precision = "auto",
    progress: Progress | None = None,
) -> Solution:
    """The layer's solution at `level` by the exact greedy; for a dense float level the weights unchanged.

    weights: (groups, rows, columns) float32. grid: how quantization grids are fitted, to the weights left by pruning.
    threads: None for all usable cores; the solution does not depend on it. progress: called now and then with how
    many of the groups · rows rows are finished, never less than before. An interrupt stops within one chunk of rows.
    precision: `auto` solves a layer again in float64 where the loss predicted in float32 is off by more than 3e-5.
    The solution's loss is the greedy's own prediction of ½ tr(ΔHΔᵀ) for the damped Hessian. Raises ModelError if a
    weight is NaN or infinite.
    """
    check_finite(weights)
    solution = _solve(weights, damped, level, grid, threads, precision, progress)
    if precision == "auto":
        measured = layer_loss(weights, solution.weights, damped.hessian)
        if abs(solution.loss - measured) > _ROUNDING * measured:
            return _solve(weights, damped, level, grid, threads, "float64", None)
    return solution


def _solve(
    weights: Float32,
    damped: Damped,
    level: Level,
    grid: GridMethod,
    threads: int | None,
    precision: Precision,
    progress: Progress | None,
) -> Solution:
    rows = weights.shape[0] * weights.shape[1]
    passes = (2 if level.sparsity is not None else 0) + (1 if level.bits is not None else 0)
    finished = 0

    def advance(done: int) -> None:
        nonlocal finished
        if progress is not None:
            progress((finished + done) // passes)
        finished += rows if done == rows else 0

    solved, mask, codes, fitted, loss = weights, None, None, None, 0.0
    if level.sparsity is not None:
        solved, mask, loss = prune(weights, damped, level.sparsity, threads, precision, advance)
    if level.bits is not None:
        fitted = fit_grid(solved, level.bits, level.symmetric, grid, threads)
        codes, quantization = quantize(solved, damped, fitted, mask, threads, precision, advance)
        solved = fitted.dequantize(codes)
        loss += quantization
    return Solution(level, solved, codes, fitted, mask, loss)


def check_finite(weights: Float32) -> None:
    """Raises ModelError if a weight is NaN or infinite."""
    if not np.isfinite(weights).all():
        raise ModelError(
            "the layer's weights hold NaN or infinity: the model is damaged; export it again, or skip the layer"
        )
