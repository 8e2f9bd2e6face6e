"""How long the solver takes for whole networks: all layer shapes of ResNet-50, BERT-base and ViT-B.

    python -m benchmarks.speed.resnet50_shapes
    python -m benchmarks.speed.resnet50_shapes --models resnet50 --quick

Random weights, inputs whose spectrum decays as 1/k, 1 % damping; no network is run and no Hessian is accumulated. The
time of a row depends on the columns alone, so for each number of columns a sample of rows is solved on all cores and
multiplied; one layer is solved whole to show that this holds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks.common.tables import machine, markdown
from benchmarks.speed.solver import Problem, make_problem
from onnx_obc.core.arrays import Float32
from onnx_obc.core.level import NM, Block, Unstructured
from onnx_obc.core.machine import usable_cores
from onnx_obc.solver import Damped, damp, fit_grid
from onnx_obc.solver.exact.prune import greedy_order, mask_of, prune, solve_kept
from onnx_obc.solver.exact.quantize import quantize

RESULTS = Path(__file__).parents[1] / "results"
LADDER = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
TARGET = 30 * 60  # seconds, for the unstructured ladder of ResNet-50
# (rows, columns, how many layers). None of these networks has a grouped convolution.
MODELS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "resnet50": (
        (64, 147, 1),
        (64, 64, 1), (64, 256, 2), (64, 576, 3), (256, 64, 4),
        (128, 256, 1), (128, 512, 3), (128, 1152, 4), (512, 128, 4), (512, 256, 1),
        (256, 512, 1), (256, 1024, 5), (256, 2304, 6), (1024, 256, 6), (1024, 512, 1),
        (512, 1024, 1), (512, 2048, 2), (512, 4608, 3), (2048, 512, 3), (2048, 1024, 1),
        (1000, 2048, 1),
    ),
    "bert-base": ((768, 768, 48), (3072, 768, 12), (768, 3072, 12), (768, 768, 1)),  # the last one: the pooler
    "vit-b": ((768, 768, 1), (2304, 768, 12), (768, 768, 12), (3072, 768, 12), (768, 3072, 12), (1000, 768, 1)),
}  # fmt: skip
WHOLE, WHOLE_QUICK = (256, 2304), (128, 1152)  # rows and columns of the layer that is solved whole
console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """Wall seconds for each row, by pattern, and for the Hessian's factorisation and inverse, once for a layer."""

    seconds: dict[str, float]
    sample: dict[str, int]
    inverse: float


def two_of_four(weights: Float32, damped: Damped) -> None:
    prune(weights, damped, NM(2, 4))


def unstructured_ladder(weights: Float32, damped: Damped) -> None:
    """Every row pruned to the end, once; then for each sparsity the cut and the optimal weights for its mask."""
    ladder(weights, damped, [Unstructured(sparsity) for sparsity in LADDER])


def block_ladder(weights: Float32, damped: Damped) -> None:
    """The same in blocks of four columns."""
    ladder(weights, damped, [Block(4, sparsity) for sparsity in LADDER])


def ladder(weights: Float32, damped: Damped, levels: Sequence[Unstructured | Block]) -> None:
    trace = greedy_order(weights, damped, levels[0], None, "auto", None)  # (rows, steps)
    for level in levels:
        mask, _ = mask_of(trace, weights, damped, level)
        solve_kept(weights, mask, damped.hessian, damped.inverse)


def obq(weights: Float32, damped: Damped) -> None:
    """The grids and the codes."""
    quantize(weights, damped, fit_grid(weights, 4))


PATTERNS: dict[str, Callable[[Float32, Damped], None]] = {
    "2:4": two_of_four,
    "unstructured ladder": unstructured_ladder,
    "4-block ladder": block_ladder,
    "OBQ 4-bit": obq,
}


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(columns: int, most: int, seconds: float) -> tuple[Row, Problem]:
    """Solve a sample of at most `most` rows that takes about `seconds` for each pattern; short ones several times."""
    problem = make_problem(columns, most)
    inverse = timed(lambda: damp(problem.damped.hessian).inverse)
    per_row, sample = {}, {}
    least = min(2 * usable_cores(), most)
    for name, pattern in PATTERNS.items():
        pattern(problem.first(least), problem.damped)  # compiles
        first = timed(partial(pattern, problem.first(least), problem.damped)) / least
        rows = min(max(least, round(seconds / first / least) * least), most)
        repeats = 1 if rows < most else min(max(1, round(seconds / (first * rows))), 9)
        took = median(timed(partial(pattern, problem.first(rows), problem.damped)) for _ in range(repeats))
        per_row[name], sample[name] = took / rows, rows
    return Row(per_row, sample, inverse), problem


def whole(row: Row, problem: Problem, rows: int) -> list[tuple[str, float, float]]:
    """For each pattern the seconds predicted for a layer of `rows` rows, and those that it took."""
    return [
        (name, row.seconds[name] * rows, timed(partial(pattern, problem.first(rows), problem.damped)))
        for name, pattern in PATTERNS.items()
    ]


def table(model: str, measured: dict[int, Row]) -> str:
    """Seconds per layer of a model, and its total."""
    header = ("rows × columns", "layers", "inverse", *PATTERNS)
    shapes = MODELS[model]
    cells = [
        (
            f"{rows} × {columns}",
            str(count),
            f"{measured[columns].inverse:.2f}",
            *(f"{measured[columns].seconds[name] * rows:.2f}" for name in PATTERNS),
        )
        for rows, columns, count in shapes
    ]
    inverse = sum(measured[columns].inverse * count for _, columns, count in shapes)
    totals = [f"{total(model, name, measured):,.0f}" for name in PATTERNS]
    cells.append(("all layers", str(sum(count for *_, count in shapes)), f"{inverse:,.0f}", *totals))
    return markdown(header, cells)


def total(model: str, pattern: str, measured: dict[int, Row]) -> float:
    return sum(measured[columns].seconds[pattern] * rows * count for rows, columns, count in MODELS[model])


def target(measured: dict[int, Row]) -> str:
    seconds = total("resnet50", "unstructured ladder", measured)
    verdict = "met" if seconds < TARGET else "missed"
    return f"ResNet-50, unstructured ladder: {seconds / 60:.1f} minutes; goal under {TARGET // 60} minutes: {verdict}."


def check_table(checked: Sequence[tuple[str, float, float]]) -> str:
    cells = [(name, f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}") for name, before, after in checked]
    return markdown(("pattern", "from the sample", "the whole layer", "ratio"), cells)


def page(
    models: Sequence[str], measured: dict[int, Row], shape: tuple[int, int], checked: Sequence[tuple[str, float, float]]
) -> str:
    """The whole markdown page."""
    tables = "\n\n".join(f"## {model}\n\n{table(model, measured)}" for model in models)
    return f"""# Whole networks: the solver alone

`python -m benchmarks.speed.resnet50_shapes`, on {machine()}. Random weights, inputs whose spectrum decays as 1/k, 1 %
damping. Wall seconds, all cores.

{target(measured)}

{tables}

*Inverse*: factorising and inverting the damped Hessian, once for a layer and part of no other column. *2:4*: the greedy
and the optimal weights. *Unstructured ladder*: every row pruned to the end, once; then, for each sparsity of
{", ".join(map(str, LADDER))}, the cut over the layer and the optimal weights for its mask. *4-block ladder*: the same
in blocks of four columns. *OBQ 4-bit*: grids and codes. The seconds of a layer are those of a sample of rows,
multiplied.

One layer of {shape[0]} × {shape[1]} solved whole, in seconds:

{check_table(checked)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--quick", action="store_true", help="small samples, and a small layer solved whole")
    options = parser.parse_args()

    rows_of: dict[int, int] = {}  # columns: the most rows that a layer with them has
    for model in options.models:
        for rows, columns, _ in MODELS[model]:
            rows_of[columns] = max(rows, rows_of.get(columns, 0))
    shape = WHOLE_QUICK if options.quick else WHOLE
    rows_of[shape[1]] = max(shape[0], rows_of.get(shape[1], 0))
    measured: dict[int, Row] = {}
    checked: list[tuple[str, float, float]] = []
    for columns in sorted(rows_of):
        with console.status(f"{columns} columns"):
            measured[columns], problem = measure(columns, rows_of[columns], 0.3 if options.quick else 3.0)
            if columns == shape[1]:
                checked = whole(measured[columns], problem, shape[0])
        per_row = ", ".join(
            f"{name} {seconds * 1e3:.3g} ({measured[columns].sample[name]} rows)"
            for name, seconds in measured[columns].seconds.items()
        )
        console.print(f"{columns} columns, ms/row: {per_row}")
    for model in options.models:
        print(f"\n{model}, seconds per layer\n\n{table(model, measured)}")
    print(f"\nOne layer of {shape[0]} × {shape[1]} solved whole, seconds\n\n{check_table(checked)}")
    if "resnet50" in options.models:
        print(f"\n{target(measured)}")
    if not options.quick and len(options.models) == len(MODELS):
        (RESULTS / "resnet50_shapes.md").write_text(page(options.models, measured, shape, checked))


if __name__ == "__main__":
    main()
