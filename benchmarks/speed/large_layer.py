"""The ordered solver: one very large layer within little memory, and how far its loss is from the exact solver's.

    python -m benchmarks.speed.large_layer
    python -m benchmarks.speed.large_layer --quick   # the losses of layers with 1152 columns only, under two minutes

The large layer has 4096 rows and 14336 columns (a feed-forward layer of an 8-billion-parameter language model), random
weights, and correlated inputs with a few strong channels. Its Hessian is accumulated in a memory-mapped file.
"""

from __future__ import annotations

import argparse
import mmap
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common.tables import machine, markdown
from onnx_obc.core.level import NM, Level, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.solver import Damped, baseline, damp, fit_grid, layer_loss
from onnx_obc.solver.ordered import ordered
from onnx_obc.solver.ordered import refit as ordered_refit
from onnx_obc.solver.ordered.ordered import prune_ordered, quantize_ordered
from onnx_obc.solver.solve import Method, solve

RESULTS = Path(__file__).parents[1] / "results"
LIMIT = 12  # GB that the process may take
BATCH = 4096  # input vectors at a time
PANEL = 1024  # rows of the Hessian updated at a time
LEVELS = ("int4-asym", "int3", "2:4", "sparse-0.60", "block4-0.50", "2:4+int4")
SPECTRA = (0.5, 1.0)
ORDERED = Method(solver="ordered")


@dataclass
class Phases:
    """What each phase of the run took."""

    rows: list[tuple[str, float, float]] = field(default_factory=list)  # name, seconds, GB of peak memory so far

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        self.rows.append((name, seconds, peak_memory()))
        print(f"{name}: {seconds:.1f} s, peak memory {peak_memory():.2f} GB", flush=True)

    def table(self) -> str:
        total = sum(seconds for _, seconds, _ in self.rows)
        cells = [(name, f"{s:.0f}", f"{s / total:.0%}", f"{memory:.1f}") for name, s, memory in self.rows]
        return markdown(("phase", "seconds", "share", "peak GB so far"), cells)


def peak_memory() -> float:
    """The largest resident set of this process so far, in GB, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def inputs(columns: int, vectors: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Batches of correlated inputs (n, columns) float32.

    A seventh as many hidden ones with a decaying spectrum, noise of each one's own, and channels whose strengths differ
    by orders of magnitude.
    """
    random = np.random.default_rng(seed)
    hidden = max(1, columns // 7)
    mix = random.standard_normal((hidden, columns), np.float32)  # (hidden, columns)
    mix *= np.arange(1, hidden + 1, dtype=np.float32)[:, None] ** -0.5
    strength = np.exp(random.standard_normal(columns)).astype(np.float32)  # (columns,)
    for start in range(0, vectors, BATCH):
        n = min(BATCH, vectors - start)
        x = random.standard_normal((n, hidden), np.float32) @ mix  # (n, columns)
        x += 0.5 * random.standard_normal((n, columns), np.float32)
        yield x * strength


def accumulate(path: Path, columns: int, vectors: int) -> None:
    """H = 2 X Xᵀ / n in a new file, float64; what is mapped of it is written out and let go after every panel."""
    with path.open("wb+") as file:
        file.truncate(columns * columns * 8)
        with mmap.mmap(file.fileno(), 0) as mapped:
            hessian = np.frombuffer(mapped, np.float64).reshape(columns, columns)
            for x in inputs(columns, vectors):
                for start in range(0, columns, PANEL):
                    stop = min(start + PANEL, columns)
                    hessian[start:stop, :stop] += (2 / vectors) * (x[:, start:stop].T @ x[:, :stop])
                    release(mapped)
            for start in range(0, columns, PANEL):
                stop = min(start + PANEL, columns)
                hessian[:start, start:stop] = hessian[start:stop, :start].T
                own = np.tril(hessian[start:stop, start:stop])
                hessian[start:stop, start:stop] = own + np.tril(own, -1).T
                release(mapped)
            del hessian  # a view keeps the map open


def release(mapped: mmap.mmap) -> None:
    mapped.flush()
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def large(rows: int, columns: int, vectors: int, scratch: Path) -> str:
    """Solve the large layer; the two tables about it."""
    phases = Phases()
    path = scratch / "hessian.f64"
    with phases.time(f"Hessian of {vectors:,} inputs, in a file"):
        accumulate(path, columns, vectors)
    weights = np.random.default_rng(1).standard_normal((1, rows, columns), np.float32)
    with phases.time("damp and factorise"):
        damped = damp(np.memmap(path, np.float64, "r", shape=(1, columns, columns)))
    results = []
    with phases.time("int4-asym: grids"):
        grid = fit_grid(weights, 4, symmetric=False)
    with phases.time("int4-asym: ordered solver"):
        codes, loss = quantize_ordered(weights, damped, grid)
    with phases.time("int4-asym: loss measured"):
        measured = layer_loss(weights, grid.dequantize(codes), damped.hessian)
    del codes
    with phases.time("int4-asym: rounding and its loss"):
        simple = baseline(weights, damped, parse_level("int4-asym")).loss
    results.append(("int4-asym", f"{loss:.6g}", f"{loss / measured - 1:+.1e}", f"{simple / loss:.2f}", "—"))
    swept, began, end = 0.0, time.perf_counter(), rows

    def progress(done: int) -> None:
        nonlocal swept
        if done == end and not swept:
            swept = time.perf_counter() - began

    solved, mask, loss = prune_ordered(weights, damped, NM(2, 4), progress=progress)
    phases.add("2:4: ordered solver, factor in its own order and sweep", swept)
    phases.add("2:4: refit of the kept weights", time.perf_counter() - began - swept)
    with phases.time("2:4: loss measured"):
        measured = layer_loss(weights, solved, damped.hessian)
    kept = mask.reshape(rows, columns // 4, 4).sum(axis=2)
    assert (kept == 2).all() and not solved[~mask].any()
    del solved, mask, kept
    with phases.time("2:4: magnitude pruning and its loss"):
        simple = baseline(weights, damped, parse_level("2:4")).loss
    results.append(("2:4", f"{loss:.6g}", f"{loss / measured - 1:+.1e}", "—", f"{simple / loss:.2f}"))
    header = ("level", "layer loss, predicted", "predicted / measured − 1", "rounding / loss", "magnitude / loss")
    verdict = "within" if peak_memory() < LIMIT else "MORE THAN"
    table = phases.table()
    return (
        f"{table}\n\nPeak resident memory of the process, mapped pages included: {peak_memory():.2f} GB, {verdict} the "
        f"{LIMIT} GB allowed.\n\n{markdown(header, results)}"
    )


def problem(columns: int, rows: int, decay: float, seed: int = 0) -> tuple[np.ndarray, Damped]:
    """Weights (1, rows, columns) and a Hessian whose inputs have the spectrum k^−decay."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((1, rows, columns)).astype(np.float32)
    mix, _ = np.linalg.qr(random.standard_normal((columns, columns)))
    spectrum = np.arange(1, columns + 1)[:, None] ** -decay
    x = mix @ (spectrum * random.standard_normal((columns, 4 * columns)))  # (columns, samples)
    return weights, damp((2 * x @ x.T / x.shape[1])[None])


def ordered_with(block: int, steps: int, weights: np.ndarray, damped: Damped, level: Level) -> Solution:
    """The ordered solver with so many columns in a block and so many steps of refit."""
    before = ordered.BLOCK, ordered_refit.STEPS
    ordered.BLOCK, ordered_refit.STEPS = block, steps
    try:
        return solve(weights, damped, level, ORDERED)
    finally:
        ordered.BLOCK, ordered_refit.STEPS = before


def ratios(columns: int = 1152, rows: int = 256) -> str:
    """Losses over the exact solver's, and seconds over its seconds."""
    blocks = (1, 32, ordered.BLOCK, 256)
    cells = []
    for decay in SPECTRA:
        weights, damped = problem(columns, rows, decay)
        assert np.isfinite(damped.inverse).all()  # made here, so that no timing below includes it
        for name in LEVELS:
            level = parse_level(name)
            solve(weights[:, :2], damped, level, ORDERED)
            solve(weights[:, :2], damped, level)  # both compiled
            began = time.perf_counter()
            exact = solve(weights, damped, level).loss
            exact_seconds = time.perf_counter() - began
            row = [name, f"{decay:g}"]
            for block in blocks:
                began = time.perf_counter()
                solution = ordered_with(block, ordered_refit.STEPS, weights, damped, level)
                seconds = time.perf_counter() - began
                measured = layer_loss(weights, solution.weights, damped.hessian)
                assert abs(solution.loss / measured - 1) < 1e-4, (name, solution.loss, measured)
                row.append(f"{solution.loss / exact:.3f}")
                if block == ordered.BLOCK:
                    share = f"{seconds / exact_seconds:.2f}"
            plain = ordered_with(ordered.BLOCK, 0, weights, damped, level).loss
            row += [f"{plain / exact:.3f}" if level.sparsity else "—", share]
            cells.append(row)
            print(f"{name}, spectrum k^-{decay:g}: {' '.join(row[2:])}", flush=True)
    named = [f"block {block}" for block in blocks]
    header = ("level", "spectrum k^−", *named, f"block {ordered.BLOCK}, no refit", f"seconds, block {ordered.BLOCK}")
    return markdown(header, cells)


def page(large_tables: str, shape: tuple[int, int], losses: str) -> str:
    """The whole markdown page."""
    return f"""# Large layers

`python -m benchmarks.speed.large_layer`, on {machine()}.

## One layer of {shape[0]} × {shape[1]}

Random weights, correlated inputs. The Hessian ({shape[1] ** 2 * 8 / 1e9:.2f} GB in float64) is accumulated in a
memory-mapped file. *Loss measured*: ½ tr(ΔHΔᵀ) in float64, which is no part of solving.

{large_tables}

## Layer loss, ordered over exact

1152 columns, 256 rows, inputs with the spectrum k^−0.5 or k^−1. *Block*: how many columns the ordered solver solves
exactly at a time; {ordered.BLOCK} is what it uses. With blocks of one column, quantization is GPTQ; a block is never
narrower than what a pattern keeps together (4 columns). *No refit*: the loss before the kept weights are brought close
to their optimum. *Seconds*: those of the ordered solver over those of the exact one, in the same run.

{losses}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the losses of layers with 1152 columns")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--vectors", type=int, default=16384, help="input vectors of the large layer")
    parser.add_argument("--scratch", type=Path, help="where the Hessian's file lies while it is needed")
    options = parser.parse_args()

    if options.quick:
        print(ratios())
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        tables = large(options.rows, options.columns, options.vectors, Path(scratch))
    print(tables, flush=True)
    losses = ratios()
    print(losses)
    (RESULTS / "large_layer.md").write_text(page(tables, (options.rows, options.columns), losses))


if __name__ == "__main__":
    main()
