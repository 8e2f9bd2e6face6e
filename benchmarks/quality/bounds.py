"""How far the exact greedy can be from the optimum at most: its layer loss over the proven lower bound.

    python -m benchmarks.quality.bounds
    python -m benchmarks.quality.bounds --quick   # every fourth layer

Every layer of ResNet-20 is solved at every level. A row of the table is a level: the geometric mean over the layers of
the achieved loss divided by the lower bound, the least and the largest, and what the bound takes. A second table is of
chunks of layers of three models, whose optimum is found: see optimum.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common.subjects import find_subjects
from benchmarks.common.tables import machine, markdown
from benchmarks.quality import optimum
from benchmarks.quality.optimum import CapturedLayers
from onnx_obc.core.level import parse_level
from onnx_obc.solver import Damped, Method, damp, layer_loss, solve
from onnx_obc.solver.bound import bound
from onnx_obc.solver.bound.bound import lower_bound

RESULTS = Path(__file__).parents[1] / "results"
LEVELS = ("int8", "int4-asym", "int2-asym", "2:4", "sparse-0.60", "block4-0.50", "2:4+int4-asym", "2:4+int2-asym")
HEADER = (
    "level", "layers", "loss / bound", "least", "largest", "refined", "separable", "bound s / solve s",
)  # fmt: skip
SAMPLES = 1024
MODELS = ("ResNet-20", "EfficientNet-Lite0", "MiniLM")
GREEDY, REFINED = Method(threads=1), Method(threads=1, refine="auto")


@dataclass(frozen=True)
class Measured:
    """One layer at one level. All but the seconds, which are those of a second run, are ratios to the lower bound.

    refined: the refined solution's loss, over the bound on its own grid. separable: the bound without the relaxation.
    """

    layer: str
    level: str
    loss: float
    refined: float
    separable: float
    solving: float
    bounding: float


def run(data: CapturedLayers) -> list[Measured]:
    layers, captured = data
    found = []
    for layer in layers:
        weights = layer.matrix()  # (groups, rows, columns)
        damped = damp(captured.hessian(layer)[0])
        found += [
            measure(layer.name, weights, damped, level)
            for level in LEVELS
            if layer.impossible(parse_level(level)) is None
        ]
        print(f"{layer.name}: {layer.rows} × {layer.columns}", flush=True)
    return found


def measure(name: str, weights: np.ndarray, damped: Damped, text: str) -> Measured:
    level = parse_level(text)
    solve(weights, damped, level, GREEDY)  # compiles, and makes the inverse
    began = time.perf_counter()
    solution = solve(weights, damped, level, GREEDY)
    solving = time.perf_counter() - began
    lower_bound(weights, damped, level, solution.grid)
    began = time.perf_counter()
    lower = lower_bound(weights, damped, level, solution.grid)
    bounding = time.perf_counter() - began
    relaxed, bound.relax = bound.relax, lambda part, base, unit: np.zeros_like(part.weights)
    separable = lower_bound(weights, damped, level, solution.grid)
    bound.relax = relaxed
    loss = layer_loss(weights, solution.weights, damped.hessian)
    assert 0 < separable <= lower <= loss, f"{name} at {text}: {separable}, {lower}, {loss}"
    better = solve(weights, damped, level, REFINED)
    refined = layer_loss(weights, better.weights, damped.hessian) / lower_bound(weights, damped, level, better.grid)
    return Measured(name, text, loss / lower, refined, separable / lower, solving, bounding)


def mean(values: Sequence[float]) -> str:
    """The geometric mean."""
    return f"{np.exp(np.log(values).mean()):.2f}"


def table(rows: Sequence[Measured]) -> str:
    cells = []
    for level in LEVELS:
        part = [row for row in rows if row.level == level]
        ratios = [row.loss for row in part]
        cells.append(
            (
                level,
                str(len(part)),
                mean(ratios),
                f"{min(ratios):.2f}",
                f"{max(ratios):.2f}",
                mean([row.refined for row in part]),
                mean([row.separable for row in part]),
                f"{sum(row.bounding for row in part) / sum(row.solving for row in part):.2f}",
            )
        )
    return markdown(HEADER, cells)


def page(rows: Sequence[Measured], gaps: Sequence[optimum.Gap]) -> str:
    return f"""# Lower bounds

`python -m benchmarks.quality.bounds`, on {machine()}: ResNet-20, Hessians of {SAMPLES:,} training images, 1 % damping.

*Loss / bound*: the layer loss of the exact greedy, on the damped Hessian, divided by the proven lower bound on that of
every solution at the level (for quantization: on the same grids); geometric mean over the layers, then the *least* and
the *largest*. No solver can gain more than this factor. *Refined*: the mean ratio after refinement, with the bound on
the refined solution's grids. *Separable*: the bound without its convex relaxation over the bound, mean.
*Bound s / solve s*: total time of the bounds over that of the greedy, one thread each.

{table(rows)}

## The optimum of chunks

From every layer that has so many, {optimum.DRAWN} chunks of {optimum.COLUMNS} columns of a row, with the layer's damped
Hessian, each solved as a layer of its own; exact search (`onnx_obc/study/exact`) for at most {optimum.SECONDS:g} s.
Losses over that of the best codes on the same grid, or of the best mask: of the *baseline* (rounding, magnitude), the
*greedy*, and *refined*, geometric means, and the *largest* of the refined. Where the optimum is proven for all three,
and in how many each search took no longer than half a second.

{optimum.table(gaps)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--quick", action="store_true", help="every fourth layer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subjects = find_subjects(options.models, options.shared, Path(scratch), MODELS[:1] if options.quick else MODELS)
        rows: list[Measured] = []
        gaps: list[optimum.Gap] = []
        for subject in subjects:
            data = optimum.capture_layers(subject, SAMPLES, 4 if options.quick else 1)
            rows += run(data) if subject.name == MODELS[0] else []
            gaps += optimum.measure(subject.name, data)
        print(table(rows))
        print(optimum.table(gaps))
        if not options.quick:
            (RESULTS / "bounds.md").write_text(page(rows, gaps))


if __name__ == "__main__":
    main()
