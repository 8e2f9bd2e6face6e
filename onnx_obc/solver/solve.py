"""Solve a layer at a level: prune, then quantize what remains, each by the greedy and then by refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..core.arrays import Float32, check_finite
from ..core.level import NM, Level, Sparsity
from ..core.solution import Solution
from .baselines import solve_as_others
from .bound.bound import lower_bound
from .exact.prune import cut_trace, prune_trace
from .linalg.inverse import Damped, Precision, damp
from .linalg.loss import layer_loss
from .linalg.threads import RowsDone
from .method import ROUNDING, Method
from .ordered.ordered import prune_ordered, quantize_ordered
from .ordered.refit import inner_product
from .refine.codes import refine_codes
from .refine.mask import refine_mask
from .rounded import grid_of, round_layer
from .traces import Passes, Shared, pattern_of


def solve(
    weights: Float32, damped: Damped, level: Level, method: Method = Method(), progress: RowsDone | None = None
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
    progress: RowsDone | None = None,
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
        if not method.greedy:
            counted = Passes(1, rows, progress, number * rows)
            solution = solve_as_others(weights, damped, level, method, counted)
            counted.reach(1)
            yield solution
            continue
        mask_sweeps, code_sweeps = method.mask_sweeps(level, weights.shape[2]), method.code_sweeps(level)
        pruning = (2 + (mask_sweeps > 0)) * (level.sparsity is not None)
        passes = pruning + (level.bits is not None) + (code_sweeps > 0)
        counted = Passes(max(passes, 1), rows, progress, number * rows)
        starts: tuple[Solution, ...] = (Solution(Level(), weights, None, None, None, 0.0),)
        if level.sparsity is not None:
            if level.sparsity not in shared.pruned:
                shared.pruned[level.sparsity] = _prune(weights, damped, level.sparsity, method, shared, counted)
            starts = shared.pruned[level.sparsity]
            counted.reach(pruning)
        solution = starts[-1]
        if level.bits is not None:
            solution = _quantize(starts, weights, damped, level, method, counted)
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
        if abs(found.loss - measured) > ROUNDING * measured:
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
) -> tuple[Solution, ...]:
    """The layer pruned, and behind that with its mask refined, if it is to be.

    From a trace in `shared` if it has one; a new one is added to it.
    """
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
    if not sweeps:
        return (solution,)
    return solution, _refine_mask(solution, weights, damped, sweeps, method.threads, counted)


def _quantize(
    starts: Sequence[Solution], weights: Float32, damped: Damped, level: Level, method: Method, counted: Passes
) -> Solution:
    """Rounded from each start on each grid, of every row the best: a refined mask is never for the worse."""
    if method.solver == "ordered":
        return _quantize_ordered(starts[-1], weights, damped, level, method, counted)
    each = [
        round_layer(start, weights, damped, level, method, counted if start is starts[-1] else None) for start in starts
    ]
    best = each[0] if len(each) == 1 else each[0].or_better(each[1], method.shared_scale)
    greedy = None if len(each) == 1 else float(each[0].losses.sum())
    found = best.grid.dequantize(best.codes)
    return Solution(level, found, best.codes, best.grid, best.mask, float(best.losses.sum()), greedy)


def _quantize_ordered(
    pruned: Solution, weights: Float32, damped: Damped, level: Level, method: Method, counted: Passes
) -> Solution:
    start, mask, grid = pruned.weights, pruned.mask, grid_of(pruned.weights, level, method)

    def step(precision: Precision) -> Solution:
        codes, loss = quantize_ordered(start, damped, grid, mask, method.threads, precision, counted)
        if mask is not None:  # the kept weights are not quite their optimum, so the two losses do not just add up
            loss += inner_product(weights - start, start - grid.dequantize(codes), damped, method.threads)
        return Solution(level, grid.dequantize(codes), codes, grid, mask, pruned.loss + loss)

    return _trusted(step, weights, damped, method, counted)


def _refine_mask(
    start: Solution, weights: Float32, damped: Damped, sweeps: int, threads: int | None, progress: RowsDone
) -> Solution:
    assert start.mask is not None and start.level.sparsity is not None
    found = refine_mask(weights, start.weights, start.mask, damped, start.level.sparsity, sweeps, threads, progress)
    solved, mask, loss = found
    return Solution(start.level, solved, None, None, mask, loss, loss_greedy=start.loss)


def _refine_codes(
    start: Solution, weights: Float32, damped: Damped, sweeps: int, threads: int | None, progress: RowsDone
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
