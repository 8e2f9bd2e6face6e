"""Predicts the solve times of a layer, exactly and by the ordered solver, and chooses between the two.

`calibrate` times the solvers themselves on small problems for about a second; the rest is arithmetic.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.level import NM, Block, Level, Sparsity, Unstructured
from ..core.machine import workers
from .exact.prune import prune
from .exact.quantize import quantize
from .grid import fit_grid
from .linalg.inverse import damp
from .linalg.threads import over_rows
from .ordered.ordered import BLOCK, TILE, block_columns, unit_width
from .ordered.refit import STEPS

Kind: TypeAlias = Literal["bits", "unstructured", "nm", "block"]
Solver: TypeAlias = Literal["exact", "ordered"]

LONGEST = 600.0  # seconds: without a time limit, a layer is solved exactly if it takes no longer
_WIDE = 1024  # columns of the wider of the two problems that are timed


@dataclass(frozen=True)
class Job:
    """A layer of (groups, rows, columns) to be solved at a level."""

    groups: int
    rows: int
    columns: int
    level: Level


@dataclass(frozen=True)
class Machine:
    """What this machine takes, all of its threads at work.

    narrow, wide: seconds for a row of `BLOCK` and of 1024 columns, exactly.
    single, double: multiplications with addition per second in a product of float32 and of float64 matrices.
    """

    threads: int
    narrow: Mapping[Kind, float]
    wide: Mapping[Kind, float]
    single: float
    double: float


TYPICAL = Machine(  # to compare layers by, on machines that nobody has timed; from benchmarks/results/solver.md
    threads=1,
    narrow={"bits": 6e-5, "unstructured": 4e-5, "nm": 3e-5, "block": 7e-5},
    wide={"bits": 8e-3, "unstructured": 7e-3, "nm": 4e-3, "block": 1e-2},
    single=5e10,
    double=2.5e10,
)


@dataclass(frozen=True)
class Forecast:
    """The seconds that a layer would take, and the solver it gets."""

    exact: float
    ordered: float
    solver: Solver

    @property
    def seconds(self) -> float:
        """With the solver that it gets."""
        return self.exact if self.solver == "exact" else self.ordered


def calibrate(threads: int | None = None) -> Machine:
    """Time the solvers on this machine. Takes about a second, and longer where kernels have yet to be compiled."""
    threads = workers(threads)
    _row_seconds(BLOCK, threads, threads)  # compiles
    narrow, wide = _row_seconds(BLOCK, 64 * threads, threads), _row_seconds(_WIDE, 6 * threads, threads)
    return Machine(threads, narrow, wide, _rate(np.dtype(np.float32), threads), _rate(np.dtype(np.float64), threads))


def predict(job: Job, machine: Machine) -> tuple[float, float]:
    """The seconds that the layer takes exactly and by the ordered solver, without refinement."""
    d, level = job.columns, job.level
    kinds = kinds_of(level)
    if not kinds:
        return 0.0, 0.0
    rows = max(job.groups * job.rows, machine.threads)  # fewer rows leave threads idle
    factor = job.groups * d**3 / 6 / machine.double
    inverse = job.groups * d**3 * machine.threads / machine.double  # on one thread
    exact = factor + inverse + rows * sum(_row(kind, d, machine) for kind in kinds)
    width = 1 if level.sparsity is None else unit_width(level.sparsity)
    if d <= block_columns(width):
        return exact, exact
    products = rows * d**2 / machine.single  # H times all rows, once
    blocks = list(kinds) + (["nm"] if len(kinds) == 2 else [])  # rows with zeros are solved on their kept columns first
    ordered = factor * (1 if width == 1 else 2) + 0.5 * products * len(kinds)
    ordered += rows * d / BLOCK * sum(machine.narrow[kind] for kind in blocks)
    if level.sparsity is not None:
        ordered += products * STEPS
    return exact, ordered


def choose_solvers(jobs: Sequence[Job], machine: Machine, limit: float | None = None) -> tuple[Forecast, ...]:
    """Which layers are solved exactly.

    Without a limit, those that take at most `LONGEST`: ten minutes are enough for every layer of ResNet-50, BERT or
    EfficientNet on two cores, while one matrix of a large language model takes hours. With a limit in seconds for all
    layers together, as many as fit: exact takes the place of ordered where it adds least, for as long as the total
    stays within the limit. Where even ordered takes longer than the limit, all layers are ordered. A layer that takes
    no longer exactly is solved exactly in any case.
    """
    times = [predict(job, machine) for job in jobs]
    chosen = {i for i, (exact, ordered) in enumerate(times) if exact <= ordered}
    if limit is None:
        chosen |= {i for i, (exact, _) in enumerate(times) if exact <= LONGEST}
    else:
        left = limit - sum(min(pair) for pair in times)
        for i in sorted(set(range(len(times))) - chosen, key=lambda i: times[i][0] - times[i][1]):
            left -= times[i][0] - times[i][1]
            if left < 0:
                break
            chosen.add(i)
    return tuple(Forecast(*pair, "exact" if i in chosen else "ordered") for i, pair in enumerate(times))


def rows_to_compare(job: Job, machine: Machine, seconds: float = 10.0, most: int = 16) -> int:
    """How many rows of a layer can be solved exactly within so many seconds, inverse included; 0 if not even one."""
    d = job.columns
    inverse = job.groups * d**3 * machine.threads / machine.double  # as if every group were met
    one = sum(_row(kind, d, machine) for kind in kinds_of(job.level)) * machine.threads
    return int(min(most, job.groups * job.rows, max(0.0, (seconds - inverse) / one))) if one > 0 else 0


def kinds_of(level: Level) -> tuple[Kind, ...]:
    """What is done to a layer at this level, one after the other."""
    pruning: dict[type, Kind] = {Unstructured: "unstructured", NM: "nm", Block: "block"}
    first: tuple[Kind, ...] = () if level.sparsity is None else (pruning[type(level.sparsity)],)
    return first if level.bits is None else (*first, "bits")


def _row(kind: Kind, columns: int, machine: Machine) -> float:
    """Seconds of a row: linear up to the narrower width that was timed, a power law up to the wider, then cubic."""
    near, far = machine.narrow[kind], machine.wide[kind]
    if columns <= BLOCK:
        return near * columns / BLOCK
    if columns >= _WIDE:
        return far * (columns / _WIDE) ** 3
    return float(near * (far / near) ** (math.log(columns / BLOCK) / math.log(_WIDE / BLOCK)))


def _row_seconds(columns: int, rows: int, threads: int) -> dict[Kind, float]:
    """Seconds that the exact solver takes for a row of so many columns; of two runs the shorter."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((1, rows, columns)).astype(np.float32)
    x = random.standard_normal((columns, columns)) + random.standard_normal((columns, 1))  # (positions, columns)
    damped = damp((2 / columns * x.T @ x)[None], threads=threads)
    grid = fit_grid(weights, 4, method="minmax", threads=threads)
    damped.scaled("float32")  # makes the inverse
    sparsities: dict[Kind, Sparsity] = {"unstructured": Unstructured(0.5), "nm": NM(2, 4), "block": Block(4, 0.5)}
    runs: dict[Kind, Callable[[], object]] = {
        kind: partial(prune, weights, damped, sparsity, threads, "float32") for kind, sparsity in sparsities.items()
    }
    runs["bits"] = partial(quantize, weights, damped, grid, None, threads, "float32")
    return {kind: min(_seconds(run), _seconds(run)) / rows for kind, run in runs.items()}


def _rate(dtype: np.dtype[np.float32] | np.dtype[np.float64], threads: int) -> float:
    """Multiplications with addition per second of a product by tiles, one after the other on every thread."""
    a: npt.NDArray[Any] = np.ones((TILE, _WIDE), dtype)
    b: npt.NDArray[Any] = np.ones((_WIDE, _WIDE), dtype)
    tiles = 4 * threads

    def work(start: int, stop: int) -> None:
        for _ in range(start, stop):
            a @ b

    def run() -> None:
        over_rows(work, tiles, 2**28, threads)

    return tiles * TILE * _WIDE**2 / min(_seconds(run), _seconds(run))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
