"""What it costs to build a Hessian from a sample of the positions: layer loss on other data, and capture time.

    python -m benchmarks.quality.sampling
    python -m benchmarks.quality.sampling --quick   # ResNet-20 with 256 samples, under a minute

Each layer is solved with the Hessian of a setting, and its layer loss is measured with the Hessian of all positions of
held-out samples. A row of the table is the mean, over layers, of that loss over the loss of the largest setting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.subjects import NAMES, Subject, find_subjects, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.capture import Captured, Chunk, capture
from onnx_obc.core.level import NM, Level
from onnx_obc.graph.layers import Layer
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.solver import damp, layer_loss, output_energy, solve

RESULTS = Path(__file__).parents[1] / "results"
LEVELS = (Level(bits=4), Level(sparsity=NM(2, 4)))
HEADER = (
    "model", "layers", "level", "positions per column", "positions of a layer", "mean loss", "loss / largest",
    "worst layer", "capture s",
)  # fmt: skip
ALL = 2**31  # positions per column: all that there are


@dataclass(frozen=True)
class Study:
    """settings: positions per column, the largest last. samples: to calibrate on. held_out: to measure the loss on.

    every, most: of the layers that are not depthwise, every so many with at most so many columns is solved.
    """

    settings: tuple[int, ...]
    samples: int
    held_out: int
    every: int = 1
    most: int = 4096


STUDIES = {
    "ResNet-20": Study((4, 16, 64, 256, ALL), 256, 256, every=4),
    "EfficientNet-Lite0": Study((4, 16, 64, 256), 500, 100, every=4, most=500),
    "MiniLM": Study((4, 16, 64, ALL), 1024, 512, every=6, most=400),
}
QUICK = {"ResNet-20": Study((4, 64, ALL), 256, 256, every=4)}


def is_depthwise(layer: Layer) -> bool:
    return layer.groups > 1 and layer.rows == 1


def chosen(layers: Sequence[Layer], study: Study) -> list[Layer]:
    """The layers to solve."""
    others = [layer for layer in layers if not is_depthwise(layer) and layer.columns <= study.most]
    kept = {layer.name for layer in others[:: study.every]}
    return [layer for layer in layers if is_depthwise(layer) or layer.name in kept]


def run(subject: Subject, study: Study) -> list[dict[str, Any]]:
    """One object for each layer, level and setting."""
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), Recipe(weights="int4", activations="none"))
    layers = chosen(plan.layers, study)
    chunk = Chunk(tuple(layers), ())
    held_out = open_data(dense, subject.held_out, replace(subject.options, samples=study.held_out))
    samples = open_data(dense, subject.calibration, replace(subject.options, samples=study.samples))
    began = time.perf_counter()
    reference = capture(plan.model, chunk, held_out, all_positions=True)
    print(f"{subject.name}: {len(layers)} of {len(plan.layers)} layers; reference of {held_out.count} samples in "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    rows = []
    for setting in study.settings:
        began = time.perf_counter()
        captured = capture(plan.model, chunk, samples, all_positions=setting == ALL, positions_per_column=setting)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        for layer in layers:
            rows += [
                {
                    "model": subject.name,
                    "samples": samples.count,
                    "held_out": held_out.count,
                    "layer": layer.name,
                    "depthwise": is_depthwise(layer),
                    "columns": layer.columns,
                    "level": str(level),
                    "setting": setting,
                    "positions": captured.hessian(layer)[1],
                    "loss": relative_loss(layer, level, captured, reference),
                    "capture_seconds": seconds,
                }
                for level in LEVELS
                if layer.impossible(level) is None
            ]
        print(f"{subject.name}, {_name(setting)} positions per column: captured in {seconds:.0f} s, solved in "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    return rows


def relative_loss(layer: Layer, level: Level, captured: Captured, reference: Captured) -> float:
    """‖WX − ŴX‖² / ‖WX‖² on the reference, of a layer that is solved with what was captured."""
    weight = layer.matrix()  # (groups, rows, columns)
    solution = solve(weight, damp(captured.hessian(layer)[0]), level)
    hessian, _ = reference.hessian(layer)  # (groups, columns, columns)
    return layer_loss(weight, solution.weights, hessian) / output_energy(weight, hessian)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each model, kind of layer, level and setting."""
    cells = []
    kinds = dict.fromkeys((row["model"], row["depthwise"], row["level"]) for row in rows)
    for model, depthwise, level in sorted(kinds, key=lambda kind: (NAMES.index(kind[0]), kind[1])):
        part = [row for row in rows if (row["model"], row["depthwise"], row["level"]) == (model, depthwise, level)]
        settings = sorted({row["setting"] for row in part})
        largest = {row["layer"]: row["loss"] for row in part if row["setting"] == settings[-1]}
        for setting in settings:
            here = [row for row in part if row["setting"] == setting]
            ratios = [row["loss"] / largest[row["layer"]] for row in here]
            positions = [row["positions"] for row in here]
            cells.append(
                (
                    model,
                    f"{len(here)} {'depthwise' if depthwise else 'other'}",
                    level,
                    _name(setting),
                    f"{min(positions):,} to {max(positions):,}",
                    f"{np.mean([row['loss'] for row in here]):.3e}",
                    f"{np.mean(ratios):.3f}",
                    f"{max(ratios):.3f}",
                    f"{here[0]['capture_seconds']:.0f}",
                )
            )
    return markdown(HEADER, cells, left=3)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The whole markdown page."""
    counts = {row["model"]: (row["samples"], row["held_out"]) for row in rows}
    models = "\n".join(
        f"- {model}: {samples:,} samples, loss measured on all positions of {held_out:,} others"
        for model, (samples, held_out) in counts.items()
    )
    return f"""# Sampling of positions

`python -m benchmarks.quality.sampling`, on {machine()}.

{models}

Every sample contributes as many positions to a layer's Hessian as bring the total to *positions per column* times the
layer's columns, rounded up, or all that it has if they are fewer. *Mean loss*: ‖WX − ŴX‖² / ‖WX‖² on the held-out
samples, mean over the layers; *loss / largest*: the layer's loss divided by its loss with the largest setting, mean
over the layers, and for the *worst layer*. *Capture s* is for running the model and accumulating the Hessians of the
layers of both kinds. Of ResNet-20 every fourth layer is measured; of EfficientNet-Lite0 all depthwise ones and every
fourth other of at most {STUDIES["EfficientNet-Lite0"].most} columns; of MiniLM every sixth of at most
{STUDIES["MiniLM"].most}. Depthwise layers cannot take 2:4.

{table(rows)}
"""


def _name(setting: int) -> str:
    return "all" if setting == ALL else str(setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 on a part of the data")
    parser.add_argument("--only", choices=tuple(STUDIES), action="append", help="only this model")
    parser.add_argument("--json", type=Path, help="write every measurement to this file, one object a line")
    options = parser.parse_args()

    studies = QUICK if options.quick else STUDIES
    names = tuple(name for name in studies if name in (options.only or studies))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for subject in find_subjects(options.models, options.shared, Path(scratch), names):
            rows += run(subject, studies[subject.name])
            print(table([row for row in rows if row["model"] == subject.name]), flush=True)
    if options.json is not None:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if rows and not options.quick and not options.only:
        (RESULTS / "sampling.md").write_text(page(rows))


if __name__ == "__main__":
    main()
