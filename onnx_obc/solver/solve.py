"""Solve a layer at a level: prune, then quantize what remains, each by the greedy and then by refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ..core.arrays import Float32
from ..core.errors import ModelError
from ..core.level import NM, Level, Sparsity
from ..core.solution import Solution
from .bound.bound import lower_bound
from .exact.prune import cut_trace, prune_trace
from .exact.quantize import quantize
from .grid import GridMethod, fit_grid
from .linalg.inverse import Damped, Precision, damp
from .linalg.loss import layer_loss
from .linalg.threads import Progress
from .ordered.ordered import prune_ordered, quantize_ordered
from .ordered.refit import inner_product
from .refine.codes import refine_codes
from .refine.mask import refine_mask
from .traces import Passes, Shared, pattern_of

Refine: TypeAlias = Literal["none", "auto"] | int

_WIDE = 1280  # columns; beyond, exchanging weights takes longer than pruning them
_ROUNDING = 3e-5  # relative; what float32 may cost a predicted loss


@dataclass(frozen=True)
class Method:
    """How layers are solved.

    solver:    exact: the greedy of OBC. ordered: exact within blocks of columns only, for layers too large for that.
    refine:    how long better solutions are looked for after the greedy, in sweeps; auto: where it pays.
    grid:      how quantization grids are fitted, to the weights left by pruning. shared_scale: all rows of a group
               have the same, which is not refined then.
    precision: of the greedy; `auto` solves again in float64 where the loss predicted in float32 is off by more than
               3e-5.
    device:    "cpu", or a GPU that torch sees, "cuda:0"; it is for the exact greedy, the rest runs on the CPU.
    threads:   of the CPU; None for all usable cores. The solution does not depend on it.
    """

    solver: Literal["exact", "ordered"] = "exact"
    refine: Refine = "none"
    grid: GridMethod = "mse"
    shared_scale: bool = False
    precision: Precision = "auto"
    device: str = "cpu"
    threads: int | None = None

    def mask_sweeps(self, level: Level, columns: int) -> int:
        """How many sweeps of `refine_mask` follow the pruning; 0 for none."""
        if level.sparsity is None or self.solver == "ordered":  # a matrix for every row is what that one cannot afford
            return 0
        if self.refine == "auto":  # other patterns gain 1 to 3 %, for as long as the greedy took
            return int(isinstance(level.sparsity, NM) and columns <= _WIDE)
        return 0 if self.refine == "none" else self.refine

    def code_sweeps(self, level: Level) -> int:
        """How many sweeps of `refine_codes` follow the rounding; 0 for none."""
        if level.bits is None or self.refine == "none" or self.shared_scale:  # it moves each row's scale
            return 0
        if self.refine == "auto":  # a sweep takes a multiple of the ordered solver's time
            return 1 if self.solver == "ordered" else 8
        return self.refine


def solve(
    weights: Float32, damped: Damped, level: Level, method: Method = Method(), progress: Progress | None = None
) -> Solution:
    """The layer's solution at `level`; for a dense float level the weights unchanged.

    weights: (groups, rows, columns) float32. progress: called now and then with how many of the groups · rows rows are
    finished, never less than before. An interrupt stops within one chunk of rows.
    The solution's loss is the solver's own bookkeeping of ½ tr(ΔHΔᵀ) for the damped Hessian. Raises ModelError if a
    weight is NaN or infinite.
    """
    return next(solve_levels(weights, damped, [level], method, progress))


def solve_levels(
    weights: Float32,
    damped: Damped,
    levels: Sequence[Level],
    method: Method = Method(),
    progress: Progress | None = None,
) -> Iterator[Solution]:
    """The layer's solutions at several levels, one by one in their order, each bit for bit what `solve` gives for it.

    What levels share is done once: the trace of the greedy for all fractions of one pattern, and the pruning of what is
    quantized to several widths. It is held for as long as a later level needs it (`Shared`). progress: called with rows
    finished, of groups · rows · levels, never less than before; all of a level's before that is given. Otherwise as
    `solve`.
    """
    check_finite(weights)
    rows = weights.shape[0] * weights.shape[1]
    shared = Shared()
    for number, level in enumerate(levels):
        mask_sweeps, code_sweeps = method.mask_sweeps(level, weights.shape[2]), method.code_sweeps(level)
        pruning = (2 + (mask_sweeps > 0)) * (level.sparsity is not None)
        passes = pruning + (level.bits is not None) + (code_sweeps > 0)
        counted = Passes(max(passes, 1), rows, progress, number * rows)
        solution = Solution(Level(), weights, None, None, None, 0.0)
        if level.sparsity is not None:
            if level.sparsity not in shared.pruned:
                shared.pruned[level.sparsity] = _prune(weights, damped, level.sparsity, method, shared, counted)
            solution = shared.pruned[level.sparsity]
            counted.reach(pruning)
        if level.bits is not None:
            solution = _quantize(solution, weights, damped, level, method, counted)
            if code_sweeps:
                solution = _refine_codes(solution, weights, damped, code_sweeps, method.threads, counted)
        counted.reach(max(passes, 1))
        shared.forget(levels[number + 1 :])
        yield solution


def _trusted(
    step: Callable[[Precision], Solution], weights: Float32, damped: Damped, method: Method, counted: Passes
) -> Solution:
    """The step's solution, in float64 where float32 gets its loss wrong."""
    begun = counted.finished
    found = step(method.precision)
    if method.precision == "auto":
        measured = layer_loss(weights, found.weights, damped.hessian)
        if abs(found.loss - measured) > _ROUNDING * measured:
            counted.finished = begun
            return step("float64")
    return found


def _prune(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    method: Method,
    shared: Shared,
    counted: Passes,
) -> Solution:
    """The layer pruned, and its mask refined, from a trace in `shared` if it has one; a new one is added to it."""
    level = Level(sparsity)

    def step(precision: Precision) -> Solution:
        if method.solver == "ordered":
            found = prune_ordered(weights, damped, sparsity, method.threads, precision, counted)
        else:
            key = (pattern_of(sparsity), precision)
            if key not in shared.traces:
                shared.traces[key] = prune_trace(
                    weights, damped, sparsity, method.threads, precision, counted, method.device
                )
            trace = shared.traces[key]
            found = cut_trace(weights, damped, sparsity, trace, method.threads, counted, method.device)
        solved, mask, loss = found
        return Solution(level, solved, None, None, mask, loss)

    solution = _trusted(step, weights, damped, method, counted)
    sweeps = method.mask_sweeps(level, weights.shape[2])
    return _refine_mask(solution, weights, damped, sweeps, method.threads, counted) if sweeps else solution


def _quantize(
    pruned: Solution, weights: Float32, damped: Damped, level: Level, method: Method, counted: Passes
) -> Solution:
    assert level.bits is not None
    start, mask = pruned.weights, pruned.mask
    grid = fit_grid(start, level.bits, level.symmetric, method.grid, method.threads, method.shared_scale, level.block)

    def step(precision: Precision) -> Solution:
        if method.solver == "ordered":
            codes, loss = quantize_ordered(start, damped, grid, mask, method.threads, precision, counted)
            if mask is not None:  # the kept weights are not quite their optimum, so the two losses do not just add up
                loss += inner_product(weights - start, start - grid.dequantize(codes), damped, method.threads)
        else:
            codes, loss = quantize(start, damped, grid, mask, method.threads, precision, counted, method.device)
        greedy = None if pruned.loss_greedy is None else pruned.loss_greedy + loss
        return Solution(level, grid.dequantize(codes), codes, grid, mask, pruned.loss + loss, greedy)

    return _trusted(step, weights, damped, method, counted)


def _refine_mask(
    start: Solution, weights: Float32, damped: Damped, sweeps: int, threads: int | None, progress: Progress
) -> Solution:
    assert start.mask is not None and start.level.sparsity is not None
    found = refine_mask(weights, start.weights, start.mask, damped, start.level.sparsity, sweeps, threads, progress)
    solved, mask, loss = found
    return Solution(start.level, solved, None, None, mask, loss, loss_greedy=start.loss)


def _refine_codes(
    start: Solution, weights: Float32, damped: Damped, sweeps: int, threads: int | None, progress: Progress
) -> Solution:
    assert start.codes is not None and start.grid is not None
    found = refine_codes(weights, damped.hessian, start.codes, start.grid, start.mask, sweeps, threads, progress)
    codes, grid, loss = found
    greedy = start.loss if start.loss_greedy is None else start.loss_greedy
    return Solution(start.level, grid.dequantize(codes), codes, grid, start.mask, loss, greedy)


def warm_up(levels: Sequence[Level], method: Method, progress: Callable[[str, int, int], None]) -> None:
    """Have the kernels for these levels, and for their bounds, compiled on tiny layers.

    That takes seconds, once for every installation.
    progress: called with "compile", 1 and how many kinds of level there are.
    """
    kinds = {(type(level.sparsity), level.bits is None): level for level in levels}
    for level in kinds.values():
        columns = 2 * (level.sparsity.m if isinstance(level.sparsity, NM) else 4)
        weights, damped = np.ones((1, 1, columns), np.float32), damp(np.eye(columns)[None])
        level = replace(level, block=None)  # the kernels are the same
        solution = solve(weights, damped, level, replace(method, device="cpu"))
        lower_bound(weights, damped, level, solution.grid)
        progress("compile", 1, len(kinds))


def check_finite(weights: Float32) -> None:
    """Raises ModelError if a weight is NaN or infinite."""
    if not np.isfinite(weights).all():
        raise ModelError(
            "the layer's weights hold NaN or infinity: the model is damaged; export it again, or skip the layer"
        )
