"""How long quantizing rows that hold zeros takes: on all columns, on the kept ones, and as `quantize` chooses.

    python -m benchmarks.speed.sparse_quantize [--columns 128,576,1152] [--save]

Random weights, each row with zeros of its own, int4. `all columns` eliminates the zeros from the shared inverse first;
`kept columns` factorises every row's own Hessian. Processor time of one thread, of several runs the shortest.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.common.tables import machine, markdown
from onnx_obc.solver import damp, fit_grid
from onnx_obc.solver.exact import quantize as module
from onnx_obc.solver.linalg.inverse import Precision

DENSITIES = (0.9, 0.7, 0.6, 0.55, 0.5, 0.4, 0.25, 0.1)
PRECISIONS: tuple[Precision, ...] = ("float32", "float64")
RUNS = 5
NOTE = """Milliseconds of processor time for a row, on one thread. *All columns* eliminates the zeros from the shared
inverse first; *kept columns* factorises every row's own Hessian. `quantize` takes the latter up to a density of 0.55.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="128,576,1152")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sparse_quantize.md")
    options = parser.parse_args()
    chosen, rows = module.SPARSE, []
    for columns in map(int, options.columns.split(",")):
        for precision in PRECISIONS:
            for density in DENSITIES:
                whole, kept = seconds(columns, density, precision, (0.0, 1.0))
                taken = kept if density <= chosen else whole
                figures = [f"{1e3 * whole:.3f}", f"{1e3 * kept:.3f}", f"{whole / taken:.2f}"]
                rows.append([str(columns), precision, f"{density:.2f}", *figures])
                print(*rows[-1], flush=True)
    header = ["columns", "precision", "density", "all columns, ms", "kept columns, ms", "`quantize` is faster, times"]
    note = f"`python -m benchmarks.speed.sparse_quantize --save`, on {machine()}.\n\n{NOTE}"
    text = f"# Quantizing sparse rows\n\n{note}\n{markdown(header, rows, left=2)}\n"
    print(text)
    if options.save:
        (Path(__file__).parents[1] / "results" / "sparse_quantize.md").write_text(text, encoding="utf-8")


def seconds(columns: int, density: float, precision: Precision, ways: tuple[float, ...]) -> list[float]:
    """Seconds of processor time that a row takes with each value of SPARSE."""
    random = np.random.default_rng(0)
    x = random.standard_normal((columns, 2 * columns))  # (columns, samples)
    damped = damp((x @ x.T / columns)[None])
    rows = max(8, min(512, 2**24 // columns**2))
    weights = random.standard_normal((1, rows, columns)).astype(np.float32)
    mask = np.argsort(random.random(weights.shape), axis=2) < round(density * columns)  # (1, rows, columns)
    weights[~mask] = 0
    grid = fit_grid(weights, 4, method="minmax")
    least = [np.inf] * len(ways)
    for _ in range(RUNS):
        for i, module.SPARSE in enumerate(ways):
            began = time.process_time()
            module.quantize(weights, damped, grid, mask, 1, precision)
            least[i] = min(least[i], (time.process_time() - began) / rows)
    return least


if __name__ == "__main__":
    main()
