"""A layer at equal size: quantized, pruned and both, as this tool solves it, with what no solution can exceed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from ..core.arrays import Float32
from ..core.level import Block, Level, Unstructured
from ..core.solution import Solution
from ..solver import Damped, Method, baseline, layer_loss, output_energy, solve_levels
from ..solver.bound.bound import lower_bound
from .distributions import sample
from .levels import Candidate, Size, candidates, compressed_bits, measure_prices, pruned
from .record import BudgetRow, Verdict, Way
from .tensors import study_tensor, thinned, thinned_values
from .theory import snr

WHOLE = 64  # rows up to which a layer is solved whole
SAMPLED, UP_TO = 40, 1152  # rows of a larger one, fewer where it has more columns: the time is their cube
_FEWEST = 8
ROUNDS = 4  # of solving, to come to equal sizes of compressed files
_ABOVE, _BELOW = 0.02, 0.04  # how far from the budget a size may stay
_NOTHING = 1e-12  # of the energy: a loss below it is rounding
_CHOOSING = 2**14  # weights by which the width of what is pruned and quantized is chosen

Recall = Callable[[Level], Solution | None]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a layer, with what they are solved from. weight: (groups, rows, columns) float32. channels: what
    patterns must divide. whole: whether they are all rows of the layer. recall: a level's solution of these rows, if it
    was solved before."""

    weight: Float32
    damped: Damped
    channels: int
    whole: bool = True
    recall: Recall = lambda level: None


def draw_rows(groups: int, rows: int, columns: int, most: int | None, generator: np.random.Generator) -> list[int]:
    """The rows of every group that are solved, ascending; most: of all groups together, 0 for all, None for as many as
    can be solved in a second or so."""
    if most is None:
        few = max(_FEWEST, min(SAMPLED, SAMPLED * UP_TO**2 // columns**2))
        most = WHOLE if groups * rows <= WHOLE and columns <= UP_TO else few
    count = min(rows, max(1, most // groups)) if most else rows
    return sorted(int(row) for row in generator.choice(rows, count, replace=False))


def study_weight(weight: Float32, levels: Mapping[int, Level]) -> tuple[float, tuple[BudgetRow, ...]]:
    """The kurtosis of a weight (groups, rows, columns), and a row for each budget, without data.

    levels: what this tool would make of it at each budget, in bits.
    """
    distribution = thinned(weight)
    rows = study_tensor(weight, distribution, levels)
    return distribution.kurtosis, tuple(BudgetRow(row.bits, row) for row in rows)


def plan_layer(weight: Float32, channels: int, levels: Mapping[int, Level]) -> dict[tuple[int, Size], list[Candidate]]:
    """The candidates of a layer at each budget and by each convention. weight: (groups, rows, columns), all of it."""
    values = weight.reshape(-1)
    distribution = sample(thinned_values(values, _CHOOSING))
    prices = measure_prices(weight, levels)
    return {
        (bits, size): candidates(bits, size, levels[bits], channels, distribution, prices if size == "bytes" else None)
        for bits in levels
        for size in get_args(Size)
    }


def study_layer(
    rows: Rows,
    planned: Mapping[tuple[int, Size], Sequence[Candidate]],
    size: Size,
    tensors: Sequence[BudgetRow],
    method: Method,
) -> tuple[BudgetRow, ...]:
    """Solve all candidates of `size`, and those that are pruned anywhere of the other conventions, and judge.

    tensors: the rows of the budgets, without ways. Masks of the other conventions are not refined, which gains them
    a twentieth of a dB.
    """
    wanted = {
        key: [x for x in found if key[1] == size or x.kind == "quantize" or _anywhere(x)]
        for key, found in planned.items()
    }
    solved: dict[Level, _Figures] = {}
    for left in reversed(range(ROUNDS)):
        levels = dict.fromkeys(x.level for found in wanted.values() for x in found)
        missing = [level for level in levels if level not in solved]
        asked = {x.level for key, found in wanted.items() if key[1] == size for x in found}
        for chosen, how in ((True, method), (False, replace(method, refine="none"))):
            those = [level for level in missing if (level in asked) == chosen]
            solved |= {level: _figures(rows, solution, method) for level, solution in _solutions(rows, those, how)}
        if left:
            wanted |= {key: _fitting(found, solved) for key, found in wanted.items() if key[1] == "bytes"}
    made = []
    for row in tensors:
        ways = {x: [(c, _way(c, solved[c.level], x)) for c in wanted[row.bits, x]] for x in get_args(Size)}
        pruned = {x: next((way for c, way in found if _anywhere(c)), None) for x, found in ways.items()}
        verdicts = {x: judge([way for _, way in found], rows.whole) for x, found in ways.items()}
        made.append(replace(row, ways=tuple(way for _, way in ways[size]), pruned=pruned, verdicts=verdicts))
    return tuple(made)


def _fitting(found: Sequence[Candidate], solved: Mapping[Level, _Figures]) -> list[Candidate]:
    """Candidates with as many weights kept as come to the compressed bytes of the quantized layer, by a Newton step."""
    (budget,) = (solved[x.level].compressed for x in found if x.kind == "quantize")
    fitting = []
    for x in found:
        excess, sparsity = solved[x.level].compressed - budget, x.level.sparsity
        if isinstance(sparsity, Unstructured | Block) and not -_BELOW * budget <= excess <= _ABOVE * budget:
            kept = 1 - sparsity.sparsity
            price = (x.level.bits or 32) + max(math.log2((1 - kept) / kept), 0.0)  # of one weight more, with its place
            kept = min(max(kept - excess / price, kept / 3), 1 - (1 - kept) / 3)
            fewer = pruned(1 - kept, sparsity.size if isinstance(sparsity, Block) else 1)
            x = replace(x, level=replace(x.level, sparsity=fewer))
        fitting.append(x)
    return fitting


def take_rows(solution: Solution, picked: Sequence[int]) -> Solution:
    """A solution of these rows of every group alone; its losses are those of all rows. Of one scale for each row."""
    chosen = list(picked)
    codes, grid, mask = solution.codes, solution.grid, solution.mask
    if grid is not None:
        grid = replace(grid, scale=grid.scale[:, chosen], zero_point=grid.zero_point[:, chosen])
    return replace(
        solution,
        weights=solution.weights[:, chosen],
        codes=None if codes is None else codes[:, chosen],
        grid=grid,
        mask=None if mask is None else mask[:, chosen],
    )


def judge(ways: Sequence[Way], whole: bool) -> Verdict:
    """Which of the ways wins. Kuzmin et al. (2023) call a ranking proven if the worse method's bound, too, is worse.

    whole: whether all rows of the layer were solved; a mask that is shared out over others may do better.
    """
    winner = max(ways, key=lambda way: way.snr)
    others = [way for way in ways if way.kind != winner.kind]
    margin = min((winner.snr - way.snr if way.snr < winner.snr else 0.0 for way in others), default=math.inf)
    bounds = [way.bound for way in others if way.kind != "both"]
    on_rows = bool(bounds) and all(bound is not None and winner.snr > bound for bound in bounds)
    return Verdict(winner.kind, margin, on_rows and whole, on_rows)


@dataclass(frozen=True)
class _Figures:
    """What is kept of a solution: SNRs in dB, and bits for each weight in a compressed file."""

    snr: float
    baseline: float
    bound: float | None
    compressed: float


def _solutions(rows: Rows, levels: Sequence[Level], method: Method) -> Iterator[tuple[Level, Solution]]:
    """Every level once: those that were solved before, then the others together, which share what they can."""
    missing = []
    for level in levels:
        if (known := rows.recall(level)) is None:
            missing.append(level)
        else:
            yield level, known
    yield from zip(missing, solve_levels(rows.weight, rows.damped, missing, method), strict=True)


def _figures(rows: Rows, solution: Solution, method: Method) -> _Figures:
    weight, damped, level = rows.weight, rows.damped, solution.level
    energy = output_energy(weight, damped.hessian)
    simple = baseline(weight, damped, level, grid=method.grid, shared_scale=method.shared_scale)
    pure = level.sparsity is None or level.bits is None
    bound = lower_bound(weight, damped, level, solution.grid) if pure else None
    return _Figures(
        snr_above_rounding(energy, layer_loss(weight, solution.weights, damped.hessian)),
        snr_above_rounding(energy, simple.loss),
        None if bound is None else snr_above_rounding(energy, bound),
        compressed_bits(solution),
    )


def snr_above_rounding(energy: float, loss: float) -> float:
    """The SNR in dB, infinite where the loss is rounding."""
    return snr(energy, loss if loss > _NOTHING * energy else 0.0)


def _way(candidate: Candidate, figures: _Figures, size: Size) -> Way:
    bits = figures.compressed if size == "bytes" else candidate.bits
    return Way(candidate.kind, str(candidate.level), bits, figures.snr, figures.baseline, figures.bound)


def _anywhere(candidate: Candidate) -> bool:
    return candidate.kind == "prune" and isinstance(candidate.level.sparsity, Unstructured)
