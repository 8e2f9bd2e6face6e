"""What refinement gains over the greedy: layer loss, on the calibration data and on other samples, time, and accuracy.

    python -m benchmarks.quality.refine                      # layer losses and times: about 15 minutes on two cores
    python -m benchmarks.quality.refine --accuracy           # the accuracy of whole models instead: about an hour
    python -m benchmarks.quality.refine --few                # how many positions it takes
    python -m benchmarks.quality.refine --only ResNet-20 --rows 8

Every layer is solved at every level that it can take, without refinement and with it, on one thread, on evenly spaced
rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.subjects import Subject, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.capture import Captured, Chunk, capture
from onnx_obc.core.level import parse_level
from onnx_obc.graph.layers import Layer
from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import save_model
from onnx_obc.pipeline.layer import LayerMethod, prepare_layer, solve_layer
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.pipeline.write import write
from onnx_obc.solver import Method, damp, layer_loss, solve, warm_up

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("ResNet-20", "EfficientNet-Lite0", "MiniLM")
LEVELS = (
    "int4-asym", "int4", "int3-asym", "int2-asym", "2:4", "block4-0.50", "sparse-0.60", "2:4+int4-asym",
)  # fmt: skip
SETTINGS: tuple[Any, ...] = ("auto", 8)
RECIPES = {
    "W4 asymmetric": Recipe(weights="int4", activations="none", asymmetric=True),
    "W3 asymmetric": Recipe(weights="int3", activations="none", asymmetric=True),
    "W2 asymmetric": Recipe(weights="int2", activations="none", asymmetric=True),
    "2:4": Recipe(weights="float", activations="none", sparsity="2:4"),
    "2:4 W4 asymmetric": Recipe(
        weights="int4", activations="none", asymmetric=True, sparsity="2:4", strict_pattern=True
    ),
}
SOME = ("int4-asym", "int2-asym", "2:4")
FEW = {"ResNet-20": (2, 4, 8, 16, 64, 256), "MiniLM": (16, 32, 64, 128, 256, 512)}


def known(method: Method, positions: int, columns: int) -> Method:
    """The method, without `auto` refinement where a Hessian of few positions would mislead it (see `--few`)."""
    return replace(method, refine="none") if method.refine == "auto" and positions < 4 * columns else method


def capture_layers(subject: Subject, layers: Sequence[Layer], data: Path, samples: int | None) -> Captured:
    """The Hessians of these layers."""
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), RECIPES["W4 asymmetric"])
    options = subject.options if samples is None else replace(subject.options, samples=samples)
    return capture(plan.model, Chunk(tuple(layers), ()), open_data(dense, data, options))


def layers_of(subject: Subject) -> list[Layer]:
    return list(make_plan(prepare(read_model(subject.path)), RECIPES["W4 asymmetric"]).layers)


def solve_rows(
    layer: Layer, captured: Captured, other: Captured, levels: Sequence[str], settings: Sequence[Any], rows: int
) -> list[dict[str, Any]]:
    """One object for each level and setting: losses and seconds of the greedy and with refinement."""
    hessian, positions = captured.hessian(layer)
    groups, count = layer.groups, layer.rows
    picked = np.arange(groups)[:: max(1, groups * count // rows)] if groups > 1 else np.arange(1)
    weight = layer.matrix()[picked, :: 1 if groups > 1 else max(1, count // rows)]
    damped, held_out = damp(hessian[picked]), other.hessian(layer)[0][picked]
    share = groups * count / (weight.shape[0] * weight.shape[1])  # of the layer's rows, how many one stands for
    found = []
    for text in levels:
        level = parse_level(text)
        if layer.impossible(level) is not None:
            continue
        runs = {}
        for refine in ("none", *settings):
            method = known(Method(refine=refine, threads=1), positions, layer.columns)
            times = []
            for _ in range(2):  # the first may compile
                began = time.perf_counter()
                solution = solve(weight, damped, level, method)
                times.append(time.perf_counter() - began)
            seconds = min(times) * share
            losses = [layer_loss(weight, solution.weights, h) for h in (damped.hessian, held_out)]
            runs[refine] = (*losses, seconds)
        found += [
            {
                "layer": layer.name, "columns": layer.columns, "positions": positions, "level": text, "refine": refine,
                "loss": runs[refine][0] / runs["none"][0], "held_out": runs[refine][1] / max(runs["none"][1], 1e-300),
                "seconds": runs[refine][2], "seconds_greedy": runs["none"][2],
            }
            for refine in settings
        ]  # fmt: skip
    return found


def losses(subject: Subject, rows: int) -> Iterator[dict[str, Any]]:
    """All layers of a model."""
    layers = layers_of(subject)
    captured = capture_layers(subject, layers, subject.calibration, None)
    other = capture_layers(subject, layers, subject.held_out, None)
    warm_up([parse_level(level) for level in LEVELS], Method(refine=1), lambda stage, done, total: None)
    found = [row for layer in layers for row in solve_rows(layer, captured, other, LEVELS, SETTINGS, rows)]
    yield from (summary(found, level=level, refine=refine) for level in LEVELS for refine in SETTINGS)


def few(subject: Subject) -> Iterator[dict[str, Any]]:
    """Some layers, with Hessians of few samples."""
    layers = [layer for layer in layers_of(subject) if layer.groups == 1 and 96 <= layer.columns <= 700][::4]
    other = capture_layers(subject, layers, subject.held_out, None)
    for samples in FEW[subject.name]:
        captured = capture_layers(subject, layers, subject.calibration, samples)
        found = [row for layer in layers for row in solve_rows(layer, captured, other, SOME, (8,), 16)]
        yield from ({"samples": samples, **summary(found, level=level, refine=8)} for level in SOME)


def summary(rows: Sequence[dict[str, Any]], **key: Any) -> dict[str, Any]:
    """The means over the layers of one level and setting."""
    here = [row for row in rows if all(row[name] == value for name, value in key.items())]
    density = [row["positions"] / row["columns"] for row in here]
    return {
        **key,
        "layers": len(here),
        "loss": float(np.mean([row["loss"] for row in here])),
        "held_out": float(np.mean([row["held_out"] for row in here])),
        "worst": max(row["held_out"] for row in here),
        "seconds": sum(row["seconds"] for row in here) / sum(row["seconds_greedy"] for row in here),
        "positions_per_column": (min(density), max(density)),
    }


def accuracy(subject: Subject) -> Iterator[dict[str, Any]]:
    """The score of the whole model, greedy and refined."""
    dense = read_model(subject.path)
    captured = capture_layers(subject, layers_of(subject), subject.calibration, None)
    reference = subject.score(subject.path, None)
    for name, recipe in RECIPES.items():
        row: dict[str, Any] = {"metric": subject.metric, "level": name, "dense": reference.value}
        for refine in ("none", "auto"):
            plan = make_plan(prepare(dense), recipe)
            method = Method(refine=refine)
            began = time.perf_counter()
            solved = {}
            for layer in plan.layers:
                prepared = prepare_layer(layer, captured.of(layer), recipe)
                how = LayerMethod(known(method, prepared.positions, layer.columns))
                (solved[layer.name],) = solve_layer(prepared, [plan.choices[layer.name]], recipe, how)
            seconds = time.perf_counter() - began
            write(Solutions(plan, solved, captured.ranges), recipe)
            with tempfile.TemporaryDirectory() as folder:
                save_model(plan.model, Path(folder) / "model.onnx")
                score = subject.score(Path(folder) / "model.onnx", reference.predictions)
            row[refine] = {"score": score.value, "agreement": score.agreement, "seconds": seconds}
        print(subject.name, row, flush=True)
        yield row


def losses_table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "model", "level", "refine", "layers", "loss / greedy", "held-out loss / greedy", "worst layer",
        "seconds / greedy",
    )  # fmt: skip
    cells = []
    for row in rows:
        figures = (row["loss"], row["held_out"], row["worst"])
        cells.append(
            (
                row["model"],
                row["level"],
                str(row["refine"]),
                str(row["layers"]),
                *(f"{x:.3f}" for x in figures),
                f"{row['seconds']:.2f}",
            )
        )
    return markdown(header, cells, left=3)


def few_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ("model", "level", "samples", "positions / columns", "held-out loss / greedy", "worst layer")
    cells = []
    for row in rows:
        density = "{:.1f} to {:.1f}".format(*row["positions_per_column"])
        cells.append(
            (
                row["model"],
                row["level"],
                str(row["samples"]),
                density,
                *(f"{row[name]:.3f}" for name in ("held_out", "worst")),
            )
        )
    return markdown(header, cells, left=2)


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "model", "level", "dense", "greedy", "refined", "agreement greedy", "agreement refined", "seconds / greedy"
    )  # fmt: skip
    cells = []
    for row in rows:
        percent = row["metric"] == "top-1"
        values = [row["dense"]] + [row[refine][name] for name in ("score", "agreement") for refine in ("none", "auto")]
        figures = [f"{100 * value:.2f} %" if percent else f"{value:.4f}" for value in values]
        cells.append((row["model"], row["level"], *figures, f"{row['auto']['seconds'] / row['none']['seconds']:.2f}"))
    return markdown(header, cells, left=2)


def page(parts: dict[str, Sequence[dict[str, Any]]]) -> str:
    """The whole markdown page."""
    text = f"""# Refinement

`python -m benchmarks.quality.refine`, `--accuracy` and `--few`, on {machine()}.

## Layer loss and time

*Loss / greedy*: ½ tr(ΔHΔᵀ) on the damped Hessian of the calibration samples, with refinement over without it, mean over
the layers; *held-out loss*: the same on the Hessian of samples that calibrate nothing, undamped, and of the *worst
layer*. *Seconds / greedy*: of solving with refinement over solving without, one thread, all layers together. *Refine*:
`auto`, or as many sweeps for every layer.

{losses_table(parts.get("losses", []))}

## How many positions it takes

Hessians of few samples; 8 sweeps whatever the number of positions.

{few_table(parts.get("few", []))}

## Accuracy of the whole model

Weights only; no fine-tuning, no correction of statistics.

{accuracy_table(parts.get("accuracy", []))}
"""
    return text


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=16, help="rows of a layer to solve")
    parser.add_argument("--accuracy", action="store_true", help="the accuracy of whole models")
    parser.add_argument("--few", action="store_true", help="Hessians of few samples")
    options = parser.parse_args()
    part = "accuracy" if options.accuracy else "few" if options.few else "losses"

    def work(subject: Subject, rows: Rows, _: Path) -> None:
        if part == "few" and subject.name not in FEW:
            return
        rows.drop(lambda row: (row["part"], row["model"]) == (part, subject.name))
        source = {"accuracy": accuracy, "few": few}.get(part)
        for number, row in enumerate(source(subject) if source is not None else losses(subject, options.rows)):
            rows.add({"part": part, "model": subject.name, "number": number, **row})

    def write_up(rows: Sequence[Row]) -> str:
        return page({name: [row for row in rows if row["part"] == name] for name in ("losses", "few", "accuracy")})

    rows = measure("refine", ("part", "model", "number"), options, work, write_up, lambda row: row["part"] == part)
    tables = {"losses": losses_table, "few": few_table, "accuracy": accuracy_table}
    print(tables[part]([row for row in rows.rows if row["part"] == part]))


if __name__ == "__main__":
    main()
