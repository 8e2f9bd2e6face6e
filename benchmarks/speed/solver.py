"""How fast the exact solver is on the CPU, against the paper's scheme in torch (textbook_torch.py) in the same run.

    python -m benchmarks.speed.solver
    python -m benchmarks.speed.solver --quick                  # 576 and 1152 columns, under 4 minutes
    python -m benchmarks.speed.solver --columns 1152 --patterns 2:4 unstructured --json figures.jsonl

Random weights, inputs whose spectrum decays as 1/k, 1 % damping, float32. First, in float64 on a small problem, both
must eliminate the same columns in the same order; if not, the script says so and exits with 1.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.common.tables import machine, markdown
from benchmarks.speed import textbook_torch as textbook
from onnx_obc.core.arrays import Float32, Int32
from onnx_obc.core.level import NM, Block, Sparsity, Unstructured
from onnx_obc.core.machine import usable_cores
from onnx_obc.core.solution import Grid
from onnx_obc.solver import Damped, damp, fit_grid
from onnx_obc.solver.exact.prune import greedy_order
from onnx_obc.solver.exact.quantize import quantize
from onnx_obc.solver.linalg.inverse import Precision
from onnx_obc.solver.linalg.threads import one_blas_thread

RESULTS = Path(__file__).parents[1] / "results"
PATTERNS: dict[str, Sparsity | None] = {
    "2:4": NM(2, 4),
    "unstructured": Unstructured(0.5),  # how much is pruned does not matter: every row is pruned to the end
    "4-blocks": Block(4, 0.5),
    "OBQ 4-bit": None,
}
GOALS = {"2:4": 100, "unstructured": 100, "4-blocks": 30, "OBQ 4-bit": 100}
GOAL_THREADS, GOAL_SHARE, GOAL_EXPONENT = 1.8, 0.5, 3.2
COLUMNS = (576, 1152, 2304)
LONGEST = 4608  # for the exponent only: the reference would take minutes for a row
BATCHES = (1, 2, 4, 8, 16, 32)
CONTENDERS = 1.4  # batches that take up to so many times as long as the best are timed again, in turns
WINDOW = 0.05  # seconds of the reference's steps that are timed at a time while its batch is searched
HEADER = (
    "pattern", "columns", "engine ms/row", "reference ms/row", "batch", "ratio", "goal", "in place ms/row", "batch",
    "ratio", "two threads", "flop/row", "of sgemm", "ratio at all of it",
)  # fmt: skip
console = Console(stderr=True)


@dataclass(frozen=True)
class Problem:
    """A layer of one group. weights: (1, rows, columns)."""

    weights: Float32
    damped: Damped

    def first(self, rows: int) -> Float32:
        return self.weights[:, :rows]


@dataclass(frozen=True)
class Reference:
    """The reference at one batch. Steps are run in windows; when the rows are finished it begins again."""

    problem: Problem
    pattern: str
    batch: int
    in_place: bool

    def windows(self, length: int) -> Iterator[float]:
        """CPU seconds per row and step, of `length` steps at a time. What comes before the first step is left out."""
        while True:
            steps = reference_steps(self.problem.first(self.batch), self.problem.damped, self.pattern, self.in_place)
            next(steps)
            for _ in range(1, step_count(self.pattern, self.problem.weights.shape[2]) - length, length):
                began = time.process_time()
                for _ in range(length):
                    next(steps)
                seconds = time.process_time() - began
                yield seconds / length / self.batch


@dataclass(frozen=True)
class Figures:
    """What is known of one pattern at one number of columns; seconds are of CPU time unless it says wall."""

    columns: int
    pattern: str
    seconds_per_row: float
    reference_seconds_per_row: float | None = None
    ratio: float | None = None
    sgemm_share: float | None = None
    reference_batch: int | None = None
    reference_spread: float | None = None  # slowest over fastest window of the reference
    in_place_seconds_per_row: float | None = None
    in_place_batch: int | None = None
    in_place_ratio: float | None = None
    two_threads: float | None = None  # wall time of one thread over that of two
    flops_per_row: float | None = None
    sgemm_flops: float | None = None
    ratio_at_sgemm: float | None = None  # what the ratio would be if the engine ran at the rate of sgemm
    engine_spread: float | None = None  # slowest over fastest repetition of the engine


def keep_freed_memory() -> None:
    """Tell glibc not to return memory, for the reference's sake; other C libraries are left as they are."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def make_problem(columns: int, rows: int, seed: int = 0) -> Problem:
    """Inputs mixed at random from sources whose amplitudes are 1, 1/2, 1/3, …; H is their exact covariance, doubled."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((1, rows, columns), np.float32)
    mix = random.standard_normal((columns, columns)) / np.arange(1, columns + 1)  # (columns, sources)
    return Problem(weights, damp(2 * (mix @ mix.T)[None], 0.01))


def step_count(pattern: str, columns: int) -> int:
    return {"2:4": columns // 2, "4-blocks": columns // 4}.get(pattern, columns)


def grid_of(weights: Float32) -> Grid:
    return fit_grid(weights, 4, symmetric=True)


def engine(
    weights: Float32, damped: Damped, pattern: str, threads: int, precision: Precision = "float32"
) -> Callable[[], Int32]:
    """The call to time: it returns the order (rows, steps), or for OBQ the codes (rows, columns)."""
    sparsity = PATTERNS[pattern]
    if sparsity is None:
        grid = grid_of(weights)
        return lambda: quantize(weights, damped, grid, threads=threads, precision=precision)[0][0]
    return lambda: greedy_order(weights, damped, sparsity, threads, precision, None)[0]


def reference_steps(
    weights: Float32, damped: Damped, pattern: str, in_place: bool, codes: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """The reference's steps: which column or block each row eliminates. codes: (rows, columns) int32, for OBQ."""
    w = torch.tensor(weights[0]).to(dtype)  # (rows, columns)
    inverse = torch.tensor(damped.inverse[0]).to(dtype)  # (columns, columns)
    sparsity = PATTERNS[pattern]
    if isinstance(sparsity, NM):
        return textbook.prune(w, inverse, sparsity.n, sparsity.m, in_place)
    if isinstance(sparsity, Block):
        return textbook.prune_blocks(w, inverse, sparsity.size, in_place)
    if isinstance(sparsity, Unstructured):
        return textbook.prune(w, inverse, in_place=in_place)
    grid = grid_of(weights)
    scale, zero = torch.tensor(grid.scale[0]), torch.tensor(grid.zero_point[0])
    codes = torch.empty(w.shape, dtype=torch.int32) if codes is None else codes
    return textbook.quantize(w, inverse, scale, zero, grid.qmin, grid.qmax, codes, in_place)


def different(columns: int = 96, rows: int = 8) -> list[str]:
    """The patterns for which engine and reference do not agree exactly, in float64."""
    problem, wrong = make_problem(columns, rows), []
    for pattern in PATTERNS:
        codes = torch.empty((rows, columns), dtype=torch.int32)
        for in_place in (False, True):
            steps = reference_steps(problem.weights, problem.damped, pattern, in_place, codes, torch.float64)
            order = torch.stack(list(steps), dim=1)  # (rows, steps)
            mine = engine(problem.weights, problem.damped, pattern, 1, "float64")()
            theirs = codes if PATTERNS[pattern] is None else order
            if not np.array_equal(mine, theirs.numpy()) and pattern not in wrong:
                wrong.append(pattern)
    return wrong


def flops(problem: Problem, pattern: str, rows: int) -> float:
    """Floating-point operations that a row needs at least, mean over `rows`.

    Step k takes 2k of them for each column that can still be chosen, so a column that leaves after t steps costs t².
    All leave one by one at full depth: d³/3. For N:M a column leaves when it is pruned or its group is full: at least
    d³/12 for 2:4, where every step would close a column beside its own.
    """
    columns, sparsity = problem.weights.shape[2], PATTERNS[pattern]
    if not isinstance(sparsity, NM):
        return columns**3 / 3
    order = engine(problem.first(rows), problem.damped, pattern, usable_cores())()  # (rows, steps)
    left = np.empty((rows, columns))
    for row, pivots in enumerate(order):
        left[row, pivots] = np.arange(1, len(pivots) + 1)
        pruned = np.zeros(columns, bool)
        pruned[pivots] = True
        full = np.where(pruned, left[row], 0).reshape(-1, sparsity.m).max(axis=1)  # when each group is full
        left[row, ~pruned] = full.repeat(sparsity.m)[~pruned]
    return float((left**2).sum(axis=1).mean())


def sgemm_seconds(a: Float32, b: Float32, out: Float32) -> float:
    with one_blas_thread():
        began = time.process_time()
        np.matmul(a, b, out=out)
        return time.process_time() - began


def search(problem: Problem, pattern: str, in_place: bool) -> dict[int, tuple[float, int]]:
    """For each batch the CPU seconds per row and step, and how many steps take about `WINDOW`."""
    found = {}
    most = max(1, step_count(pattern, problem.weights.shape[2]) // 8)
    for batch in BATCHES:
        reference = Reference(problem, pattern, batch, in_place)
        length = min(max(1, round(WINDOW / (next(reference.windows(1)) * batch))), most)
        windows = reference.windows(length)
        found[batch] = median(next(windows) for _ in range(3)), length
    return found


def measure(problem: Problem, pattern: str, repeats: int, seconds: float, with_reference: bool) -> Figures:
    """Time one pattern; engine, reference and sgemm take turns, and every figure is the median of its turns.

    seconds: how long the engine should work in each turn.
    """
    columns = problem.weights.shape[2]
    two = 2 if usable_cores() >= 2 else 1
    engine(problem.first(2), problem.damped, pattern, 1)()  # compile
    began = time.perf_counter()
    engine(problem.first(4), problem.damped, pattern, 1)()
    per_row = (time.perf_counter() - began) / 4
    rows = min(max(round(seconds / per_row / 4) * 4, 4), problem.weights.shape[1])
    single, double = (engine(problem.first(rows), problem.damped, pattern, threads) for threads in (1, two))
    a, b = (np.random.default_rng(s).standard_normal((2048, 2048), np.float32) for s in (0, 1))
    out = np.empty_like(a)
    turns: dict[tuple[bool, int], tuple[Iterator[float], list[float]]] = {}  # the batches that may be the best
    for in_place in (False, True) if with_reference else ():
        found = search(problem, pattern, in_place)
        near = CONTENDERS * min(seconds for seconds, _ in found.values())
        for batch, (seconds, length) in found.items():
            if seconds <= near:
                turns[in_place, batch] = Reference(problem, pattern, batch, in_place).windows(2 * length), []
    cpu, wall, wall_two, sgemm = [], [], [], []
    for _ in range(repeats):
        sgemm.append(sgemm_seconds(a, b, out))
        began, began_cpu = time.perf_counter(), time.process_time()
        single()
        wall.append(time.perf_counter() - began)
        cpu.append((time.process_time() - began_cpu) / rows)
        for windows, taken in turns.values():
            taken.append(next(windows))
        if two == 2:
            began = time.perf_counter()
            double()
            wall_two.append(time.perf_counter() - began)
    own, rate, work = median(cpu), 2 * len(a) ** 3 / median(sgemm), flops(problem, pattern, min(rows, 8))
    reference: dict[str, Any] = {}
    if turns:
        medians = {key: median(taken) * step_count(pattern, columns) for key, (_, taken) in turns.items()}
        formed, placed = (
            min((key for key in medians if key[0] == kind), key=medians.__getitem__) for kind in (False, True)
        )
        spread = max(turns[formed][1]) / min(turns[formed][1])
        reference = {
            "reference_seconds_per_row": medians[formed],
            "reference_batch": formed[1],
            "reference_spread": spread,
            "ratio": medians[formed] / own,
            "in_place_seconds_per_row": medians[placed],
            "in_place_batch": placed[1],
            "in_place_ratio": medians[placed] / own,
            "ratio_at_sgemm": medians[formed] / (work / rate),
        }
    return Figures(
        columns,
        pattern,
        own,
        sgemm_share=work / own / rate,
        two_threads=median(wall) / median(wall_two) if wall_two else None,
        flops_per_row=work,
        sgemm_flops=rate,
        engine_spread=max(cpu) / min(cpu),
        **reference,
    )


def whole_over_windows(problem: Problem, pattern: str, figures: Figures) -> float:
    """The reference run from the first step to the last (median of three), over what its windows predict."""
    batch, predicted = figures.reference_batch or 1, figures.reference_seconds_per_row or math.nan
    seconds = []
    for _ in range(3):
        began = time.process_time()
        for _ in reference_steps(problem.first(batch), problem.damped, pattern, in_place=False):
            pass
        seconds.append((time.process_time() - began) / batch)
    return median(seconds) / predicted


def verdict(value: float | None, goal: float, form: str, most: bool = False) -> str:
    """A figure with whether it meets the goal, which is a minimum, or with `most` a maximum."""
    if value is None:
        return "—"
    met = value <= goal if most else value >= goal
    return f"{value:{form}} {'met' if met else 'missed'}"


def table(measured: Sequence[Figures]) -> str:
    cells = []
    for f in measured:
        share = "—" if f.sgemm_share is None else f"{f.sgemm_share:.0%}"
        if f.pattern != "2:4" and f.columns >= 1152:
            share = verdict(f.sgemm_share, GOAL_SHARE, ".0%")
        cells.append(
            (
                f.pattern,
                str(f.columns),
                _ms(f.seconds_per_row),
                _ms(f.reference_seconds_per_row),
                _text(f.reference_batch, "d"),
                verdict(f.ratio, GOALS[f.pattern], ".1f"),
                f"≥ {GOALS[f.pattern]}" if f.ratio else "—",
                _ms(f.in_place_seconds_per_row),
                _text(f.in_place_batch, "d"),
                _text(f.in_place_ratio, ".1f"),
                verdict(f.two_threads, GOAL_THREADS, ".2f"),
                _text(f.flops_per_row, ".2e"),
                share,
                _text(f.ratio_at_sgemm, ".0f"),
            )
        )
    return markdown(HEADER, cells)


def exponents(measured: Sequence[Figures]) -> str:
    """One line for each pattern that was measured at both ends."""
    seconds = {(f.pattern, f.columns): f.seconds_per_row for f in measured}
    lines = []
    for pattern in PATTERNS:
        low, high = seconds.get((pattern, 1152)), seconds.get((pattern, LONGEST))
        if low and high:
            value = math.log(high / low) / math.log(LONGEST / 1152)
            lines.append((pattern, _ms(low), _ms(high), verdict(value, GOAL_EXPONENT, ".2f", most=True)))
    header = ("pattern", "ms/row at 1152 columns", f"at {LONGEST}", f"exponent (goal ≤ {GOAL_EXPONENT})")
    return markdown(header, lines) if lines else ""


def page(measured: Sequence[Figures], whole: dict[str, float]) -> str:
    """The whole markdown page."""
    rates = [f.sgemm_flops for f in measured if f.sgemm_flops]
    spreads = [f.reference_spread for f in measured if f.reference_spread]
    checked = ", ".join(f"{pattern} {value:.2f}" for pattern, value in whole.items())
    return f"""# The exact solver on the CPU

`python -m benchmarks.speed.solver`, on {machine()}, one thread except where it says two.
Random weights, inputs whose spectrum decays as 1/k, 1 % damping, float32.
In float64, engine and reference eliminated the same columns in the same order.

{table(measured)}

{exponents(measured)}

- *Engine*: `onnx_obc.solver`, the order in which every row's columns are eliminated and the loss of each, or for OBQ
  the codes. CPU time, median of interleaved turns.
- *Reference*: the paper's scheme in torch, one thread: rows in batches, a copy of H⁻¹ for each, outer products formed
  and then subtracted, at the best batch of {", ".join(map(str, BATCHES))}. Each step goes over the full matrices and
  costs the same, so windows of steps were timed and multiplied; slowest over fastest window:
  {_text(max(spreads, default=0.0), ".2f")} at worst. Whole run over that prediction: {checked or "not run"}.
- *In place*: the same reference with the outer product subtracted where it is formed, in one pass over the matrices.
  In both, the C library is told to keep freed memory: fresh pages for every outer product cost more than its flops.
- *Two threads*: wall time of the engine with one thread over that with two. Goal ≥ {GOAL_THREADS}.
- *Of sgemm*: the flops that a row needs (columns³/3 at full depth; for 2:4 the sum over columns of the square of the
  step after which a column can no longer be chosen) over the engine's seconds, as a part of what numpy's BLAS reached
  on 2048 × 2048 matrices in the same run, {_text(median(rates) / 1e9, ".0f")} GFLOP/s. Goal at full depth, from 1152
  columns on: ≥ {GOAL_SHARE:.0%}. *Ratio at all of it*: what the ratio to the reference would be at 100 %.
"""


def _ms(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def _text(value: float | None, form: str) -> str:
    return format(value, form) if value else "—"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="576 and 1152 columns, shorter turns")
    parser.add_argument("--columns", type=int, nargs="+", help=f"these; {LONGEST} is run without the reference")
    parser.add_argument("--patterns", nargs="+", choices=tuple(PATTERNS), default=tuple(PATTERNS))
    parser.add_argument("--json", type=Path, help="write the figures to this file, one object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()

    if wrong := different():
        sys.exit(f"engine and reference differ in float64: {', '.join(wrong)}; no timing is worth anything")
    console.print("engine and reference agree in float64")
    columns = options.columns or (COLUMNS[:2] if options.quick else (*COLUMNS, LONGEST))
    if any(number % 4 for number in columns):
        parser.error("--columns must be multiples of 4")
    repeats, seconds = (5, 0.5) if options.quick else (9, 2.0)
    measured: list[Figures] = []
    whole: dict[str, float] = {}
    for number in columns:
        with console.status(f"{number} columns: the Hessian and its inverse"):
            problem = make_problem(number, 256 if number < LONGEST else 16)
        for pattern in options.patterns:
            with console.status(f"{number} columns, {pattern}"):
                figures = measure(problem, pattern, repeats, seconds, with_reference=number < LONGEST)
                if number == min(columns):
                    whole[pattern] = whole_over_windows(problem, pattern, figures)
            measured.append(figures)
            console.print(
                f"{number} columns, {pattern}: engine {_ms(figures.seconds_per_row)} ms/row, reference "
                f"{_ms(figures.reference_seconds_per_row)}, ratio {_text(figures.ratio, '.1f')} "
                f"(in place {_text(figures.in_place_ratio, '.1f')}), {_text(figures.sgemm_share, '.0%')} of sgemm, "
                f"two threads {_text(figures.two_threads, '.2f')}"
            )
    print(table(measured))
    print(exponents(measured))
    print("reference, whole run over windows:", {pattern: round(value, 2) for pattern, value in whole.items()})
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(figures)) + "\n" for figures in measured))
    if not options.quick and not options.columns and len(options.patterns) == len(PATTERNS):
        (RESULTS / "solver.md").write_text(page(measured, whole))


if __name__ == "__main__":
    main()
