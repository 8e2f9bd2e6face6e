"""Task accuracy at every level: exact greedy against rounding and magnitude pruning, on four models.

    python -m benchmarks.quality.accuracy                  # everything: hours on two cores
    python -m benchmarks.quality.accuracy --only ResNet-20
    python -m benchmarks.quality.accuracy --quick          # under a minute

Every level compresses the whole model, each layer that can take the level, with no fine-tuning and no correction of
statistics afterwards. The Hessians and activation ranges are captured once for each model and serve every level.

A finished row is added to the JSON file at once (by default benchmarks/results/accuracy.jsonl; one object a line), and
rows that are there already are not run again, but with --again. The table is made of all its rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks.common.evaluation import cifar_top1
from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject, find_subjects, open_data, subset
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.capture import Captured, Chunk, capture
from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import save_model
from onnx_obc.pipeline.layer import LayerMethod, method_of, prepare_layer, solve_layer
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.pipeline.verify import check_losses
from onnx_obc.pipeline.write import write

RESULTS = Path(__file__).parents[1] / "results"
HEADER = (
    "model", "level", "layers", "dense", "baseline", "onnx-obc", "agreement baseline", "agreement onnx-obc",
    "layer loss baseline", "layer loss onnx-obc", "seconds", "MB",
)  # fmt: skip


def _weights(bits: int, asymmetric: bool = False) -> Recipe:
    return Recipe.model_validate({"weights": f"int{bits}", "activations": "none", "asymmetric": asymmetric})


def _sparse(sparsity: str) -> Recipe:
    return Recipe(weights="float", activations="none", sparsity=sparsity)


LEVELS: dict[str, Recipe] = {
    "W8A8": Recipe(),
    "W4": _weights(4),
    "W4 asymmetric": _weights(4, True),
    "W3": _weights(3),
    "W3 asymmetric": _weights(3, True),
    "W2": _weights(2),
    "W2 asymmetric": _weights(2, True),
    "2:4": _sparse("2:4"),
    "2:4 W8A8": Recipe(sparsity="2:4", strict_pattern=True),
    "4:8": _sparse("4:8"),
    "block4 0.5": _sparse("block4:0.5"),
    "sparse 0.6": _sparse("0.6"),
}
QUICK = ("W4", "2:4")


def capture_once(dense: ir.Model, recipes: Sequence[Recipe], subject: Subject) -> tuple[Captured, int]:
    """The Hessians and ranges that any of these recipes needs, and the number of samples that they are made of."""
    plans = [make_plan(prepare(dense), recipe) for recipe in recipes]
    layers = {layer.name: layer for plan in plans for layer in plan.layers}
    ranges = {activation.value: None for plan in plans for activation in plan.activations}
    samples = open_data(dense, subject.calibration, subject.options)
    return capture(
        plans[0].model, Chunk(tuple(layers.values()), tuple(ranges), choose_damping=True), samples
    ), samples.count


def compress_with(
    captured: Captured, dense: ir.Model, recipe: Recipe, subject: Subject, expected: npt.NDArray[np.generic]
) -> dict[str, Any]:
    """Solve, write and score one recipe."""
    plan = make_plan(prepare(dense), recipe)
    method = method_of(recipe)
    solved = {}
    for layer in plan.layers:
        prepared = prepare_layer(layer, captured.of(layer), recipe)
        (solved[layer.name],) = solve_layer(prepared, [plan.choices[layer.name]], recipe, LayerMethod(method))
    reports = [entry.report for entry in solved.values()]
    if recipe.solver != "baseline" and not (check := check_losses(reports)).passed:
        print(f"the losses do not agree: {check.detail}", file=sys.stderr)
    write(Solutions(plan, solved, captured.ranges), recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(plan.model, path)
        score = subject.score(path, expected)
        size = path.stat().st_size
    return {
        "score": score.value,
        "agreement": score.agreement,
        "loss": float(np.mean([x.loss_relative for x in reports])),
        "worst_loss": float(max(x.loss_relative for x in reports)),
        "worst_layer": max(reports, key=lambda x: x.loss_relative).name,
        "seconds": sum(x.seconds for x in reports),
        "bytes": size,
        "layers": len(reports),
        "layers_left_out": len(plan.left_out),
    }


def run(subject: Subject, levels: Sequence[str], rows: Rows) -> None:
    """Add the rows of one model that are not there yet."""
    wanted = [level for level in levels if (subject.name, level) not in rows]
    if not wanted:
        return
    dense = read_model(subject.path)
    began = time.perf_counter()
    captured, samples = capture_once(dense, [LEVELS[level] for level in levels], subject)
    capture_seconds = time.perf_counter() - began
    reference = subject.score(subject.path, None)
    for level in wanted:
        recipe = LEVELS[level]
        both = {
            name: compress_with(captured, dense, r, subject, reference.predictions)
            for name, r in (("baseline", recipe.model_copy(update={"solver": "baseline"})), ("exact", recipe))
        }
        row = {
            "model": subject.name,
            "level": level,
            "refine": recipe.refine,
            "metric": subject.metric,
            "calibration_samples": samples,
            "evaluation_samples": len(reference.predictions),
            "dense": reference.value,
            "dense_bytes": subject.path.stat().st_size,
            "capture_seconds": capture_seconds,
            **both,
        }
        rows.add(row)
        print(f"{subject.name} {level}: dense {reference.value:.4f}, baseline {both['baseline']['score']:.4f}, "
              f"onnx-obc {both['exact']['score']:.4f} ({both['exact']['seconds']:.0f} s)", flush=True)  # fmt: skip


def shortened(subject: Subject, scratch: Path) -> Subject:
    """A CIFAR-10 model on a part of its data."""
    test = subset(subject.held_out, scratch / "test.zip", lambda number: number % 5 == 0)
    return replace(
        subject,
        options=replace(subject.options, samples=256),
        score=lambda file, dense: cifar_top1(file, test, dense),
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows as a markdown table, models and levels in the order of NAMES and LEVELS."""
    order = list(LEVELS)
    cells = []
    for row in sorted(rows, key=lambda row: (NAMES.index(row["model"]), order.index(row["level"]))):
        baseline, exact = row["baseline"], row["exact"]
        percent = row["metric"] == "top-1"

        def score(value: float, percent: bool = percent) -> str:
            return f"{100 * value:.2f} %" if percent else f"{value:.4f}"

        cells.append(
            (
                row["model"],
                row["level"] + (" °" if row["refine"] == "none" else ""),
                f"{exact['layers']} of {exact['layers'] + exact['layers_left_out']}",
                score(row["dense"]),
                score(baseline["score"]),
                score(exact["score"]),
                f"{100 * baseline['agreement']:.1f} %" if percent else "",
                f"{100 * exact['agreement']:.1f} %" if percent else "",
                f"{baseline['loss']:.2e}",
                f"{exact['loss']:.2e}",
                f"{exact['seconds']:.1f}",
                f"{exact['bytes'] / 1e6:.2f}",
            )
        )
    return markdown(HEADER, cells, left=2)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole markdown page."""
    counts = {row["model"]: (row["calibration_samples"], row["evaluation_samples"]) for row in rows}
    sizes = {row["model"]: row["dense_bytes"] for row in rows}
    models = "\n".join(
        f"- {name}: calibrated on {counts[name][0]:,} samples, scored on {counts[name][1]:,}; "
        f"dense file {sizes[name] / 1e6:.2f} MB"
        for name in NAMES
        if name in counts
    )
    ran = {(row["model"], row["level"]) for row in rows}
    missing = {name: [level for level in LEVELS if (name, level) not in ran] for name in NAMES}
    absent = "; ".join(f"{name}: {', '.join(levels)}" for name, levels in missing.items() if levels)
    return f"""# Accuracy

`python -m benchmarks.quality.accuracy`, on {machine()}. Seconds are those of solving alone,
with the comparison with the baseline and any compilation of kernels; they depend on what else the machine runs.

{models}

CIFAR-10 and the ImageNet sample: top-1; ImageNet images with an even number calibrate, those with an odd one are
scored. MiniLM: Spearman's correlation of cosine similarities on the STS benchmark's test set. *Baseline* is rounding to
the same grids, or magnitude pruning to the same pattern, written and run in the same way. *Agreement*: how often the
class is the dense model's. *Layer loss*: ‖WX − ŴX‖² / ‖WX‖² on the calibration data, mean over the compressed layers;
*layers*: how many could take the level (N:M and blocks need input channels in multiples of their length, which
depthwise convolutions and first layers lack). Every layer is compressed alone on dense inputs; nothing is
fine-tuned and no statistics are corrected. Sparse float weights are stored with their zeros, and 3-bit weights as
4-bit integers, so MB is not what a sparse runtime or packed storage would need. °: without refinement.

{f"Not run: {absent}." if absent else "Every level was run on every model."}

{table(rows)}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--levels", choices=list(LEVELS), nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--quick", action="store_true", help=f"ResNet-20 on a part of the data, {', '.join(QUICK)}")
    options = parser.parse_args()
    if options.quick:
        rows = Rows(None, ("model", "level"))
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), ("ResNet-20",)):
                run(shortened(subject, Path(scratch)), QUICK, rows)
    else:
        rows = measure(
            "accuracy",
            ("model", "level"),
            options,
            lambda subject, rows, _: run(subject, options.levels, rows),
            page,
            lambda row: row["level"] in options.levels,
        )
    print(table(rows.rows))


if __name__ == "__main__":
    main()
