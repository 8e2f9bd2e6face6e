"""What drawing a few positions of every sample costs, in layer loss on samples that calibrated nothing.

    python benchmarks/sampling.py            # some ten minutes on two cores
    python benchmarks/sampling.py --quick    # ResNet-20 only, about a minute

For each number of positions per column, the layers are solved with the Hessians of that draw, and their relative loss
is measured under the Hessian of other samples, of as many positions as the largest draw. The table gives the mean over
layers, relative to the largest draw. To keep it short, only layers of at most 700 columns are solved.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from subjects import NAMES, Subject, find_subjects, open_data
from tables import machine, markdown

from onnx_obc.calibration.capture import POSITIONS_PER_COLUMN, Captured, Chunk, capture
from onnx_obc.graph.layers import Layer
from onnx_obc.graph.model import read_model
from onnx_obc.level import parse_level
from onnx_obc.plan import make_plan
from onnx_obc.recipe import Recipe
from onnx_obc.solver import damp, layer_loss, output_energy, solve
from onnx_obc.solver.threads import one_blas_thread

RESULTS = Path(__file__).parent / "results"
DRAWS = (4, 16, 64, 256)
LEVELS = ("int4", "2:4")
WIDEST = 700  # columns


def held_out_loss(layer: Layer, captured: Captured, reference: Captured, level: str) -> float | None:
    """The relative layer loss under the reference Hessian of a layer solved with the captured one."""
    wanted = parse_level(level)
    hessian, _ = reference.hessian(layer)
    weight = layer.matrix()
    energy = output_energy(weight, hessian)
    if layer.impossible(wanted) is not None or energy == 0:
        return None
    solution = solve(weight, damp(captured.hessian(layer)[0]), wanted)
    return layer_loss(weight, solution.weights, hessian) / energy


def run(subject: Subject) -> list[dict[str, Any]]:
    """One row for each level, kind of layer and draw."""
    dense = read_model(subject.path)
    plan = make_plan(dense, Recipe(weights="int4", activations="none"))
    layers = tuple(layer for layer in plan.layers if layer.columns <= WIDEST)
    samples = open_data(dense, subject.calibration, subject.options)
    others = open_data(dense, subject.held_out, replace(subject.options, samples=min(samples.count, 500)))
    rows: list[dict[str, Any]] = []
    with one_blas_thread():
        reference = capture(plan.model, Chunk(layers, ()), others, positions_per_column=DRAWS[-1])
        for draw in DRAWS:
            began = time.perf_counter()
            captured = capture(plan.model, Chunk(layers, ()), samples, positions_per_column=draw)
            seconds = time.perf_counter() - began
            for level in LEVELS:
                losses = {x.name: held_out_loss(x, captured, reference, level) for x in layers}
                for kind in ("depthwise", "other"):
                    found = [
                        losses[x.name] for x in layers if (x.groups > 1) == (kind == "depthwise") and losses[x.name]
                    ]
                    if found:
                        row = {"model": subject.name, "level": level, "kind": kind, "positions_per_column": draw}
                        row |= {"layers": len(found), "loss": float(np.mean(found)), "capture_seconds": seconds}
                        rows.append(row)
                        print(json.dumps(row), flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """For each model, level and kind of layer the loss of every draw over that of the largest."""
    header = ("model", "level", "layers", *(f"{draw} a column" for draw in DRAWS))
    keys = dict.fromkeys((row["model"], row["level"], row["kind"]) for row in rows)
    cells = []
    for model, level, kind in keys:
        mine = {
            r["positions_per_column"]: r for r in rows if (r["model"], r["level"], r["kind"]) == (model, level, kind)
        }
        ratios = [f"{mine[draw]['loss'] / mine[DRAWS[-1]]['loss']:.3f}" for draw in DRAWS]
        cells.append((model, level, f"{mine[DRAWS[-1]]['layers']} {kind}", *ratios))
    for model in dict.fromkeys(row["model"] for row in rows):
        seconds = {r["positions_per_column"]: r["capture_seconds"] for r in rows if r["model"] == model}
        fastest = min(seconds.values())
        cells.append(
            (model, "", "time of capture, over the least", *(f"{seconds[draw] / fastest:.2f}" for draw in DRAWS))
        )
    return markdown(header, cells, left=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 only")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    names = ("ResNet-20",) if options.quick else tuple(name for name in NAMES if name != "ResNet-56")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for subject in find_subjects(options.models, options.shared, Path(scratch), names):
            rows += run(subject)
    if options.json is not None:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    if not options.quick:
        (RESULTS / "sampling.md").write_text(f"""# What sampling positions costs

`python benchmarks/sampling.py`, on {machine()}. Layer loss on held-out samples, mean over the layers of at most
{WIDEST} columns, over that of {DRAWS[-1]} positions a column. The default draws {POSITIONS_PER_COLUMN} positions for
every column.

{table(rows)}
""")


if __name__ == "__main__":
    main()
