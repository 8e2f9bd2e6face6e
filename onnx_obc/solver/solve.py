"""Solve a layer at a level: prune, then quantize what remains, each by the greedy and then by refinement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ..errors import ModelError
from ..level import NM, Float32, Level, Solution
from .bound import lower_bound
from .grid import GridMethod, fit_grid
from .inverse import Damped, Precision, damp
from .loss import layer_loss
from .ordered import prune_ordered, quantize_ordered
from .ordered_refit import inner_product
from .prune import prune
from .quantize import quantize
from .refine_codes import refine_codes
from .refine_mask import refine_mask
from .threads import Progress

Refine: TypeAlias = Literal["none", "auto"] | int

_ROUNDING = 3e-5  # relative; what float32 may cost a predicted loss


@dataclass(frozen=True)
class Method:
    """How layers are solved.

    solver:    exact: the greedy of OBC. ordered: exact within blocks of columns only, for layers too large for that.
    refine:    how long better solutions are looked for after the greedy, in sweeps; auto: where it pays.
    grid:      how quantization grids are fitted, to the weights left by pruning.
    precision: of the greedy; `auto` solves again in float64 where the loss predicted in float32 is off by more than
               3e-5.
    device:    "cpu", or a GPU that torch sees, "cuda:0"; it is for the exact greedy, the rest runs on the CPU.
    threads:   of the CPU; None for all usable cores. The solution does not depend on it.
    """

    solver: Literal["exact", "ordered"] = "exact"
    refine: Refine = "none"
    grid: GridMethod = "mse"
    precision: Precision = "auto"
    device: str = "cpu"
    threads: int | None = None

    @property
    def code_sweeps(self) -> int:
        """How many sweeps of `refine_codes` follow the rounding; 0 for none."""
        if isinstance(self.refine, int):
            return self.refine
        return 8 if self.refine == "auto" else 0

    @property
    def mask_sweeps(self) -> int:
        """How many sweeps of `refine_mask` follow the pruning; 0 for none, as always after the ordered solver."""
        if self.solver == "ordered":  # a matrix for every row is just what cannot be afforded there
            return 0
        if isinstance(self.refine, int):
            return self.refine
        return 1 if self.refine == "auto" else 0


def solve(
    weights: Float32, damped: Damped, level: Level, method: Method = Method(), progress: Progress | None = None
) -> Solution:
    """The layer's solution at `level`; for a dense float level the weights unchanged.

    weights: (groups, rows, columns) float32. progress: called now and then with how many of the groups · rows rows are
    finished, never less than before. An interrupt stops within one chunk of rows.
    The solution's loss is the solver's own bookkeeping of ½ tr(ΔHΔᵀ) for the damped Hessian. Raises ModelError if a
    weight is NaN or infinite.
    """
    check_finite(weights)
    solution = Solution(Level(), weights, None, None, None, 0.0)
    pruning, rounding = 2 + (method.mask_sweeps > 0), 1 + (method.code_sweeps > 0)  # passes over the rows
    passes = (level.sparsity is not None) * pruning + (level.bits is not None) * rounding
    advance = _over_passes(passes, weights.shape[0] * weights.shape[1], progress)

    def trusted(step: Callable[[Precision], Solution]) -> Solution:
        """The step's solution, in float64 where float32 gets its loss wrong."""
        found = step(method.precision)
        if method.precision == "auto":
            measured = layer_loss(weights, found.weights, damped.hessian)
            if abs(found.loss - measured) > _ROUNDING * measured:
                return step("float64")
        return found

    if level.sparsity is not None:
        solution = trusted(lambda precision: _prune(weights, damped, level, method, precision, advance))
        if method.mask_sweeps:
            solution = _refine_mask(solution, weights, damped, method, advance)
    if level.bits is not None:
        pruned = solution
        solution = trusted(lambda precision: _quantize(pruned, weights, damped, level, method, precision, advance))
        if method.code_sweeps:
            solution = _refine_codes(solution, weights, damped, method, advance)
    return solution


def _prune(
    weights: Float32, damped: Damped, level: Level, method: Method, precision: Precision, progress: Progress
) -> Solution:
    assert level.sparsity is not None
    if method.solver == "ordered":
        found = prune_ordered(weights, damped, level.sparsity, method.threads, precision, progress)
    else:
        found = prune(weights, damped, level.sparsity, method.threads, precision, progress, method.device)
    solved, mask, loss = found
    return Solution(Level(level.sparsity), solved, None, None, mask, loss)


def _quantize(
    pruned: Solution,
    weights: Float32,
    damped: Damped,
    level: Level,
    method: Method,
    precision: Precision,
    progress: Progress,
) -> Solution:
    assert level.bits is not None
    start, mask = pruned.weights, pruned.mask
    grid = fit_grid(start, level.bits, level.symmetric, method.grid, method.threads)
    if method.solver == "ordered":
        codes, loss = quantize_ordered(start, damped, grid, mask, method.threads, precision, progress)
        if mask is not None:  # the kept weights are not quite their optimum, so the two losses do not just add up
            loss += inner_product(weights - start, start - grid.dequantize(codes), damped, method.threads)
    else:
        codes, loss = quantize(start, damped, grid, mask, method.threads, precision, progress, method.device)
    greedy = None if pruned.loss_greedy is None else pruned.loss_greedy + loss
    return Solution(level, grid.dequantize(codes), codes, grid, mask, pruned.loss + loss, greedy)


def _refine_mask(start: Solution, weights: Float32, damped: Damped, method: Method, progress: Progress) -> Solution:
    assert start.mask is not None and start.level.sparsity is not None
    pattern, sweeps = start.level.sparsity, method.mask_sweeps
    found = refine_mask(weights, start.weights, start.mask, damped, pattern, sweeps, method.threads, progress)
    solved, mask, loss = found
    return Solution(start.level, solved, None, None, mask, loss, loss_greedy=start.loss)


def _refine_codes(start: Solution, weights: Float32, damped: Damped, method: Method, progress: Progress) -> Solution:
    assert start.codes is not None and start.grid is not None
    codes, grid, loss = refine_codes(
        weights, damped.hessian, start.codes, start.grid, start.mask, method.code_sweeps, method.threads, progress
    )
    greedy = start.loss if start.loss_greedy is None else start.loss_greedy
    return Solution(start.level, grid.dequantize(codes), codes, grid, start.mask, loss, greedy)


def _over_passes(passes: int, rows: int, progress: Progress | None) -> Progress:
    """A progress over all passes together, each of which counts to `rows`; a pass done again is not counted."""
    finished = last = 0

    def advance(done: int) -> None:
        nonlocal finished, last
        now = min((finished + done) // passes, rows)
        if progress is not None and now >= last:
            progress(now)
            last = now
        finished += rows if done == rows else 0

    return advance


def warm_up(levels: Sequence[Level], method: Method, progress: Callable[[str, int, int], None]) -> None:
    """Have the kernels for these levels, and for their bounds, compiled on tiny layers.

    That takes seconds, once for every installation.
    progress: called with "compile", 1 and how many kinds of level there are.
    """
    kinds = {(type(level.sparsity), level.bits is None): level for level in levels}
    for level in kinds.values():
        columns = 2 * (level.sparsity.m if isinstance(level.sparsity, NM) else 4)
        weights, damped = np.ones((1, 1, columns), np.float32), damp(np.eye(columns)[None])
        solution = solve(weights, damped, level, replace(method, device="cpu"))
        lower_bound(weights, damped, level, solution.grid)
        progress("compile", 1, len(kinds))


def check_finite(weights: Float32) -> None:
    """Raises ModelError if a weight is NaN or infinite."""
    if not np.isfinite(weights).all():
        raise ModelError(
            "the layer's weights hold NaN or infinity: the model is damaged; export it again, or skip the layer"
        )
