"""Small problems out of layers, solved as this tool solves them and by exact search, so that rankings can be proven.

As in Kuzmin et al. (2023): some columns of one row, with a target of their own. A chunk of a convolution is a few input
channels at all kernel positions, of a product so many features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from ..core.arrays import Float32, Float64, Int32
from ..core.level import Level, Unstructured, parse_level
from ..core.solution import Grid, Solution
from ..graph.layers import Layer
from ..pipeline.layer import Prepared
from ..solver import Method, damp, fit_grid, solve
from ..solver.exact.quantize import quantize
from .exact.integers import solve_integers
from .exact.masks import solve_mask
from .exact.problem import Limit, Rounding
from .exact.relaxation import relax_integers
from .layers import snr_above_rounding
from .levels import Kind, Size
from .record import BudgetRow, ChunkRow

DRAWN = 8  # chunks of every layer
LONGEST = 2.0  # seconds of one search; a bound takes its place then


@dataclass(frozen=True, eq=False)
class Problem:
    """A chunk. row: of the layer, its groups one after the other. columns: (n,), of the layer's columns. weight: (n,)
    float32. hessian: (n, n) float64, the layer's damped one. budgets: by their bits, the grid of the whole row, and how
    the chunk is pruned."""

    layer: str
    row: int
    columns: npt.NDArray[np.intp]
    weight: Float32
    hessian: Float64
    budgets: Mapping[int, tuple[Grid, Level]]


def draw_problems(
    layer: Layer,
    prepared: Prepared,
    solved: Sequence[BudgetRow],
    size: Size,
    chunk: int,
    generator: np.random.Generator,
) -> list[Problem]:
    """Some chunks of at most `chunk` columns of a layer, each of another row, at the budgets of a solved layer.

    Quantized on the grid that the whole row has, rounded; with as many weights kept as the layer has by the convention
    `size`, rounded up: what is not equal favours pruning.
    """
    made = []
    rows = layer.groups * layer.rows
    for place in generator.choice(rows, min(DRAWN, rows), replace=False):
        group, row = divmod(int(place), layer.rows)
        columns = chunk_columns(layer.columns, layer.channels, chunk, generator)
        weight = prepared.weight[group, row, columns]
        hessian = prepared.damped.hessian[group][np.ix_(columns, columns)]
        budgets = {}
        for found in solved:
            quantized, pruned = found.best("quantize"), found.pruned[size]
            if quantized is not None and pruned is not None:
                level, sparsity = parse_level(quantized.level), parse_level(pruned.level).sparsity
                assert level.bits is not None and isinstance(sparsity, Unstructured)
                grid = fit_grid(prepared.weight[group, row][None, None], level.bits, level.symmetric)
                gone = math.floor(len(columns) * sparsity.sparsity)
                if gone:
                    budgets[found.bits] = (grid, Level(Unstructured(gone / len(columns))))
        if weight.any() and budgets:
            made.append(Problem(layer.name, int(place), columns, weight, hessian, budgets))
    return made


def chunk_columns(columns: int, channels: int, chunk: int, generator: np.random.Generator) -> npt.NDArray[np.intp]:
    """The columns of a chunk, ascending.

    As many whole channels as fit, at all kernel positions, from a channel drawn at random; of larger kernels a run of
    columns; all of a layer that has no more.
    """
    if columns <= chunk:
        return np.arange(columns)
    positions = columns // channels
    width = chunk // positions
    if width == 0:
        return int(generator.integers(columns - chunk + 1)) + np.arange(chunk)
    first = int(generator.integers(channels - width + 1)) if channels > width else 0
    inner = first + np.arange(min(width, channels))  # (channels of the chunk,)
    return np.asarray((np.arange(positions)[:, None] * channels + inner).reshape(-1))


def prove(
    problems: Sequence[Problem], seconds: float, method: Method, progress: Callable[[str, int, int], None]
) -> Iterator[ChunkRow]:
    """Solve and bound chunks for so many seconds, one of each layer before another of any."""
    deadline = time.monotonic() + seconds
    of_layer: dict[str, list[Problem]] = {}
    for problem in problems:
        of_layer.setdefault(problem.layer, []).append(problem)
    turns = [x for turn in zip_longest(*of_layer.values()) for x in turn if x is not None]
    for problem in turns:
        for bits in problem.budgets:
            if time.monotonic() < deadline:
                yield _prove(problem, bits, replace(method, threads=1))
        progress("prove", 1, len(turns))


def _prove(problem: Problem, bits: int, method: Method) -> ChunkRow:
    weight, hessian = problem.weight.astype(np.float64), problem.hessian
    energy = 0.5 * float(weight @ hessian @ weight)
    damped = damp(hessian[None], 0.0)
    grid, pruned = problem.budgets[bits]
    codes, _ = quantize(problem.weight[None, None], damped, grid, threads=1)
    solution = solve(problem.weight[None, None], damped, pruned, method)
    found: dict[Kind, _Searched] = {
        "quantize": _integers(weight, hessian, grid, codes[0, 0]),
        "prune": _mask(weight, hessian, solution),
    }
    return ChunkRow(
        layer=problem.layer,
        row=problem.row,
        columns=(int(problem.columns[0]), len(problem.columns)),
        bits=bits,
        snr={kind: snr_above_rounding(energy, x.solved) for kind, x in found.items()},
        best={kind: snr_above_rounding(energy, min(x.best, x.solved)) for kind, x in found.items()},
        bound={kind: snr_above_rounding(energy, x.bound) for kind, x in found.items()},
        exact={kind: x.exact for kind, x in found.items()},
        seconds={kind: x.seconds for kind, x in found.items()},
    )


@dataclass(frozen=True)
class _Searched:
    """Losses ½ δᵀHδ: as solved, the best known, and what none falls below; whether that is the optimum."""

    solved: float
    best: float
    bound: float
    exact: bool
    seconds: float


def _integers(weight: Float64, hessian: Float64, grid: Grid, codes: Int32) -> _Searched:
    """The best codes on a grid of one row, from those of the greedy, (n,)."""
    began = time.monotonic()
    zero = int(grid.zero_point[0, 0])
    problem = Rounding(weight, hessian, float(grid.scale[0, 0]), grid.qmin, grid.qmax, zero)
    found = solve_integers(problem, codes, Limit(deadline=began + LONGEST))
    best, bound = found.loss, found.bound
    if not found.proven and relaxation_installed():
        relaxed = relax_integers(problem)
        best, bound = min(best, relaxed.loss), max(bound, relaxed.bound)
    return _Searched(problem.loss(codes), best, bound, found.proven, time.monotonic() - began)


def _mask(weight: Float64, hessian: Float64, solution: Solution) -> _Searched:
    """The best mask of the pattern of a solution of one row; none is known to be where the Hessian is singular."""
    began = time.monotonic()
    assert solution.mask is not None and solution.level.sparsity is not None
    delta = weight - solution.weights[0, 0]
    solved = 0.5 * float(delta @ hessian @ delta)
    limit = Limit(deadline=began + LONGEST)
    try:
        found = solve_mask(weight, hessian, solution.level.sparsity, solution.mask[0, 0], limit)
    except np.linalg.LinAlgError:  # singular to rounding
        return _Searched(solved, solved, 0.0, False, time.monotonic() - began)
    return _Searched(solved, found.loss, found.bound, found.proven, time.monotonic() - began)


def relaxation_installed() -> bool:
    """Whether the semidefinite relaxation can stand in where exact search runs out of time."""
    return find_spec("clarabel") is not None
