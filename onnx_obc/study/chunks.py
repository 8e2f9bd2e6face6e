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

from ..core.arrays import Float32, Float64
from ..core.level import Level, Unstructured
from ..core.solution import Solution
from ..graph.layers import Layer
from ..pipeline.layer import Prepared
from ..solver import Method, damp, solve_levels
from .exact.integers import solve_integers
from .exact.masks import solve_mask
from .exact.problem import Limit, Rounding
from .exact.relaxation import relax_integers
from .levels import Candidate, Kind, Size
from .record import ChunkRow
from .theory import snr

DRAWN = 8  # chunks of every layer
LONGEST = 2.0  # seconds of one search; a bound takes its place then


@dataclass(frozen=True, eq=False)
class Problem:
    """A chunk. row: of the layer, its groups one after the other. columns: (n,), of the layer's columns. weight: (n,)
    float32. hessian: (n, n) float64, the layer's damped one. levels: quantized and pruned, by the bits of a budget."""

    layer: str
    row: int
    columns: npt.NDArray[np.intp]
    weight: Float32
    hessian: Float64
    levels: Mapping[int, tuple[Level, Level]]


def draw_problems(
    layer: Layer,
    prepared: Prepared,
    planned: Mapping[tuple[int, Size], Sequence[Candidate]],
    size: Size,
    chunk: int,
    generator: np.random.Generator,
) -> list[Problem]:
    """Some chunks of at most `chunk` columns of a layer, of rows drawn at random, at the budgets of one convention."""
    made = []
    for _ in range(min(DRAWN, layer.groups * layer.rows)):
        group, row = int(generator.integers(layer.groups)), int(generator.integers(layer.rows))
        columns = chunk_columns(layer.columns, layer.channels, chunk, generator)
        weight = prepared.weight[group, row, columns]
        if not weight.any():
            continue
        levels = {}
        for (bits, convention), found in planned.items():
            pruned = next((x for x in found if isinstance(x.level.sparsity, Unstructured) and x.kind == "prune"), None)
            if convention == size and pruned is not None and isinstance(pruned.level.sparsity, Unstructured):
                gone = math.ceil(len(columns) * pruned.level.sparsity.sparsity)
                if gone < len(columns):
                    levels[bits] = (found[0].level, Level(Unstructured(gone / len(columns))))
        hessian = prepared.damped.hessian[group][np.ix_(columns, columns)]
        if levels:
            made.append(Problem(layer.name, group * layer.rows + row, columns, weight, hessian, levels))
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
        for bits, levels in problem.levels.items():
            if time.monotonic() < deadline:
                yield _prove(problem, bits, levels, replace(method, threads=1), deadline)
        progress("prove", 1, len(turns))


def _prove(problem: Problem, bits: int, levels: tuple[Level, Level], method: Method, deadline: float) -> ChunkRow:
    weight, hessian = problem.weight.astype(np.float64), problem.hessian
    energy = 0.5 * float(weight @ hessian @ weight)
    solutions = solve_levels(problem.weight[None, None], damp(hessian[None], 0.0), levels, method)
    found: dict[Kind, _Searched] = {}
    kinds: tuple[Kind, Kind] = ("quantize", "prune")
    for kind, solution in zip(kinds, solutions, strict=True):
        limit = Limit(deadline=min(time.monotonic() + LONGEST, deadline))
        found[kind] = (_integers if kind == "quantize" else _mask)(weight, hessian, solution, limit)
    return ChunkRow(
        layer=problem.layer,
        row=problem.row,
        columns=(int(problem.columns[0]), len(problem.columns)),
        bits=bits,
        snr={kind: snr(energy, x.solved) for kind, x in found.items()},
        best={kind: snr(energy, min(x.best, x.solved)) for kind, x in found.items()},
        bound={kind: snr(energy, x.bound) for kind, x in found.items()},
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


def _integers(weight: Float64, hessian: Float64, solution: Solution, limit: Limit) -> _Searched:
    """The best codes on the grid of a solution of one row."""
    began, grid, codes = time.monotonic(), solution.grid, solution.codes
    assert grid is not None and codes is not None
    zero = int(grid.zero_point[0, 0])
    problem = Rounding(weight, hessian, float(grid.scale[0, 0]), grid.qmin, grid.qmax, zero)
    found = solve_integers(problem, codes[0, 0], limit)
    bound = found.bound
    if not found.proven and relaxation_installed():
        bound = max(bound, relax_integers(problem).bound)
    solved = problem.loss(codes[0, 0])
    return _Searched(solved, found.loss, bound, found.proven, time.monotonic() - began)


def _mask(weight: Float64, hessian: Float64, solution: Solution, limit: Limit) -> _Searched:
    """The best mask of the pattern of a solution of one row."""
    began = time.monotonic()
    assert solution.mask is not None and solution.level.sparsity is not None
    found = solve_mask(weight, hessian, solution.level.sparsity, solution.mask[0, 0], limit)
    delta = weight - solution.weights[0, 0]
    solved = 0.5 * float(delta @ hessian @ delta)
    return _Searched(solved, found.loss, found.bound, found.proven, time.monotonic() - began)


def relaxation_installed() -> bool:
    """Whether the semidefinite relaxation can stand in where exact search runs out of time."""
    return find_spec("clarabel") is not None
