"""How fast the exact solver is on a GPU, against the CPU engine on one core in the same run, and all of ResNet-50.

    python -m benchmarks.speed.solver_gpu
    python -m benchmarks.speed.solver_gpu --columns 576 1152 --no-network
    python -m benchmarks.speed.solver_gpu --device cpu --columns 128 --no-network   # a trial, measures nothing

Random weights, inputs whose spectrum decays as 1/k, 1 % damping, float32. First, in float64 on a small problem, both
must eliminate the same columns in the same order; if not, the script says so and exits with 1. Without a GPU it says so
and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console

from benchmarks.common.tables import markdown
from benchmarks.speed.resnet50_shapes import LADDER, MODELS
from benchmarks.speed.solver import PATTERNS, Problem, engine, grid_of, make_problem
from onnx_obc.core.arrays import Float32, Int32
from onnx_obc.core.level import NM, Block, Unstructured
from onnx_obc.solver import Damped
from onnx_obc.solver.exact.prune import mask_of
from onnx_obc.solver.gpu.batches import invert, prune_order, quantize, solve_kept
from onnx_obc.solver.gpu.device import devices
from onnx_obc.solver.linalg.inverse import Precision

RESULTS = Path(__file__).parents[1] / "results"
ROWS = {576: 8192, 1152: 4096, 2304: 1024, 4608: 256}  # of the layer that is solved; what fits goes in one batch
TURNS = 3
CPU_SECONDS = 2.0  # how long the CPU engine works in each turn, about
HEADER = ("pattern", "columns", "rows", "batch", "GPU ms/row", "CPU engine, one core, ms/row", "ratio", "spread")
NETWORK = ("2:4", "unstructured ladder", "4-block ladder", "OBQ 4-bit")
console = Console(stderr=True)


@dataclass(frozen=True)
class Figures:
    """One pattern at one number of columns; wall seconds, those of the GPU with the transfers. spread: slowest turn of
    the GPU over its fastest."""

    columns: int
    pattern: str
    rows: int
    batch: int
    seconds_per_row: float
    cpu_seconds_per_row: float
    ratio: float
    spread: float


@dataclass(frozen=True)
class Layer:
    """Wall seconds of a layer of ResNet-50, by pattern, and of its Hessian's inverse."""

    rows: int
    columns: int
    count: int
    inverse: float
    seconds: dict[str, float]


def on_device(
    weights: Float32,
    damped: Damped,
    pattern: str,
    device: str,
    precision: Precision = "float32",
    progress: Callable[[int], None] | None = None,
) -> Int32:
    """What `engine` of the CPU's benchmark returns: the order (rows, steps), or for OBQ the codes (rows, columns)."""
    sparsity = PATTERNS[pattern]
    if sparsity is None:
        return quantize(weights, damped, grid_of(weights), device, None, precision, None, progress)[0][0]
    return prune_order(weights, damped, sparsity, device, precision, None, progress)[0]


def different(device: str) -> list[str]:
    """The patterns for which GPU and CPU do not agree exactly, in float64."""
    problem = make_problem(96, 8)
    return [
        pattern
        for pattern in PATTERNS
        if not np.array_equal(
            engine(problem.weights, problem.damped, pattern, 1, "float64")(),
            on_device(problem.weights, problem.damped, pattern, device, "float64"),
        )
    ]


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(problem: Problem, pattern: str, device: str) -> Figures:
    """GPU and CPU take turns; every figure is the median of its turns."""
    _, rows, columns = problem.weights.shape
    cpu_rows = 4
    engine(problem.first(cpu_rows), problem.damped, pattern, 1)()  # compiles
    first = timed(engine(problem.first(cpu_rows), problem.damped, pattern, 1))
    cpu_rows = min(max(round(cpu_rows * CPU_SECONDS / first / 4) * 4, 4), rows)
    cpu = engine(problem.first(cpu_rows), problem.damped, pattern, 1)
    batches: list[int] = []
    on_device(problem.weights, problem.damped, pattern, device, progress=batches.append)  # loads the kernels
    own, theirs = [], []
    for _ in range(TURNS):
        own.append(timed(lambda: on_device(problem.weights, problem.damped, pattern, device)) / rows)
        theirs.append(timed(cpu) / cpu_rows)
    ratio = median(theirs) / median(own)
    return Figures(columns, pattern, rows, batches[0], median(own), median(theirs), ratio, max(own) / min(own))


def ladder(weights: Float32, damped: Damped, levels: Sequence[Unstructured | Block | NM], device: str) -> None:
    """Every row pruned to the end, once; then for each level the cut and the optimal weights for its mask."""
    trace = prune_order(weights, damped, levels[0], device)
    for level in levels:
        mask, _ = mask_of(trace, weights, damped, level)
        solve_kept(weights, mask, damped.hessian, device)


def measure_layer(rows: int, columns: int, count: int, device: str) -> Layer:
    """Solve the whole layer with every pattern; the second time counts, the first loads kernels."""
    problem = make_problem(columns, rows)
    weights, damped = problem.weights, problem.damped
    calls: dict[str, Callable[[], object]] = {
        "2:4": lambda: ladder(weights, damped, [NM(2, 4)], device),
        "unstructured ladder": lambda: ladder(weights, damped, [Unstructured(s) for s in LADDER], device),
        "4-block ladder": lambda: ladder(weights, damped, [Block(4, s) for s in LADDER], device),
        "OBQ 4-bit": lambda: on_device(weights, damped, "OBQ 4-bit", device),
    }
    for call in (lambda: invert(damped.hessian, device), *calls.values()):
        call()
    return Layer(
        rows,
        columns,
        count,
        timed(lambda: invert(damped.hessian, device)),
        {name: timed(calls[name]) for name in NETWORK},
    )


def table(measured: Sequence[Figures]) -> str:
    cells = [
        (
            f.pattern,
            str(f.columns),
            str(f.rows),
            str(f.batch),
            f"{f.seconds_per_row * 1e3:.3g}",
            f"{f.cpu_seconds_per_row * 1e3:.3g}",
            f"{f.ratio:.1f}",
            f"{f.spread:.2f}",
        )
        for f in measured
    ]
    return markdown(HEADER, cells)


def network_table(layers: Sequence[Layer]) -> str:
    """Seconds per layer, and of all of them."""
    cells = [
        (
            f"{layer.rows} × {layer.columns}",
            str(layer.count),
            f"{layer.inverse:.2f}",
            *(f"{layer.seconds[name]:.2f}" for name in NETWORK),
        )
        for layer in layers
    ]
    total = [sum(layer.seconds[name] * layer.count for layer in layers) for name in NETWORK]
    cells.append(
        (
            "all layers",
            str(sum(layer.count for layer in layers)),
            f"{sum(layer.inverse * layer.count for layer in layers):.1f}",
            *(f"{seconds:.1f}" for seconds in total),
        )
    )
    return markdown(("rows × columns", "layers", "inverse", *NETWORK), cells)


def page(name: str, measured: Sequence[Figures], layers: Sequence[Layer]) -> str:
    """The whole markdown page."""
    return f"""# The exact solver on a GPU

`python -m benchmarks.speed.solver_gpu`, on one {name}, torch {torch.__version__}. Random weights, inputs whose spectrum
decays as 1/k, 1 % damping, float32. In float64, GPU and CPU eliminated the same columns in the same order.

{table(measured)}

Wall time with the transfers to the GPU and back, median of {TURNS} turns between which the CPU engine took its own on
one core. *Batch*: how many rows the first batch held.

## ResNet-50

{network_table(layers)}

Wall seconds for whole layers, one of each shape. *Inverse*: of the damped Hessian, on the GPU, part of no other column.
*2:4*: the greedy and the optimal weights. *Ladders*: every row pruned to the end, once; then, for each sparsity of
{", ".join(map(str, LADDER))}, the cut over the layer and the optimal weights for its mask. *OBQ 4-bit*: grids, codes.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=tuple(ROWS))
    parser.add_argument("--rows", type=int, help="of the layer that is solved, for all numbers of columns")
    parser.add_argument("--no-network", action="store_true", help="without ResNet-50")
    parser.add_argument("--device", help="cuda:0, …; the first GPU by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file, one object a line")
    options = parser.parse_args()
    found = devices()
    if options.device is None and not found:
        print("no GPU that torch sees: nothing was measured")
        return
    device = options.device or found[0]
    if device not in ("cpu", *found):
        parser.error(f"--device {device}: torch sees {', '.join(found) or 'no GPU'}")
    name = "CPU, as a trial" if device == "cpu" else torch.cuda.get_device_name(device)
    print(f"device: {name}")
    if wrong := different(device):
        sys.exit(f"GPU and CPU differ in float64: {', '.join(wrong)}; no timing is worth anything")
    console.print("GPU and CPU agree in float64")

    measured: list[Figures] = []
    for columns in options.columns:
        with console.status(f"{columns} columns: the Hessian and its inverse"):
            problem = make_problem(columns, options.rows or ROWS.get(columns, 256))
        for pattern in PATTERNS:
            with console.status(f"{columns} columns, {pattern}"):
                measured.append(measure(problem, pattern, device))
    print(table(measured))
    layers: list[Layer] = []
    for rows, columns, count in () if options.no_network else MODELS["resnet50"]:
        with console.status(f"ResNet-50, {rows} × {columns}"):
            layers.append(measure_layer(rows, columns, count, device))
    if layers:
        print(f"\nResNet-50, seconds per layer\n\n{network_table(layers)}")
    if options.json is not None:
        options.json.write_text("".join(json.dumps(asdict(f)) + "\n" for f in (*measured, *layers)))
    if layers and device != "cpu" and tuple(options.columns) == tuple(ROWS) and options.rows is None:
        (RESULTS / "solver_gpu.md").write_text(page(name, measured, layers))


if __name__ == "__main__":
    main()
