"""The damping chosen by held-out samples against constants: layer loss on other data, and the outputs of whole models.

    python -m benchmarks.quality.damping                       # everything: hours on two cores
    python -m benchmarks.quality.damping --only ResNet-20 --seeds 4
    python -m benchmarks.quality.damping --table               # run nothing, only write the page again

A finished row is added to benchmarks/results/damping.jsonl at once, and rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.subjects import NAMES, Subject, find_subjects, open_data
from benchmarks.common.tables import machine, markdown
from benchmarks.quality.nonuniform import blank
from onnx_obc.calibration.capture import Captured, Chunk, capture
from onnx_obc.calibration.split import describe, split
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.correct import correct_statistics, sites_of
from onnx_obc.pipeline.layer import Solved, method_of, prepare_layer, trusted_method
from onnx_obc.pipeline.material import Material
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.pipeline.write import write
from onnx_obc.runtime.judge import Judge
from onnx_obc.runtime.session import Execution
from onnx_obc.solver import layer_loss, output_energy, solve
from onnx_obc.solver.linalg.threads import one_blas_thread

RESULTS = Path(__file__).parents[1] / "results"
JUDGED = 1024  # samples that calibrate nothing, at most
BASE = 0.01
SETTINGS: dict[str, float | None] = {"0.01": 0.01, "auto": None, "0.001": 0.001, "0.0001": 0.0001, "0.1": 0.1}
LEVELS: dict[str, dict[str, Any]] = {
    "2:4": {"weights": "float", "sparsity": "2:4"},
    "sparse-0.70": {"weights": "float", "sparsity": "0.7"},
    "block4-0.50": {"weights": "float", "sparsity": "block4:0.5"},
    "int4-asym": {"weights": "int4", "asymmetric": True},
    "int3-asym": {"weights": "int3", "asymmetric": True},
    "int2-asym": {"weights": "int2", "asymmetric": True},
}


class Trial:
    """A model with its data, calibrated on positions that `seed` draws, and on `samples` of its samples if given."""

    def __init__(self, subject: Subject, seed: int, samples: int | None) -> None:
        self.dense = read_model(subject.path)
        self.folded = prepare(self.dense)
        layers = make_plan(self.folded, Recipe(weights="int4", activations="none")).layers
        data = open_data(self.dense, subject.calibration, subject.options)
        data = data if samples is None else data.part(0, samples)
        self.feeds, held = split(data)
        about = describe(data, self.feeds, held)
        self.material = Material(str(subject.path), self.folded, self.feeds, held, *about)
        graph, chunk = make_plan(self.folded, Recipe()).model, Chunk(tuple(layers), (), choose_damping=True)
        self.captured: Captured = capture(graph, chunk, self.feeds, seed=seed)
        other = open_data(self.dense, subject.held_out, subject.options)
        other = other.part(0, min(other.count, JUDGED))
        self.unseen = capture(graph, Chunk(tuple(layers), ()), other)
        self.judge = Judge(self.dense, list(other.feeds()), Execution("cpu"))

    def measure(self, level: str, setting: str) -> dict[str, Any]:
        """Solve all layers and correct statistics; losses of layers and outputs, on data that calibrates nothing."""
        recipe = Recipe(activations="none", damp=SETTINGS[setting], device="cpu", **LEVELS[level])
        plan, method = make_plan(self.folded, recipe), method_of(recipe)
        reference, sites = plan.model.clone(), sites_of(plan, self.dense, recipe)
        solved, losses, dampings = {}, [], []
        began = time.perf_counter()
        for layer in plan.layers:
            prepared = prepare_layer(layer, self.captured.of(layer), recipe)
            target = plan.choices[layer.name].level
            solution = solve(prepared.weight, prepared.damped, target, trusted_method(prepared, method))
            solved[layer.name] = Solved(layer, solution, blank(layer.name))
            dampings.append(prepared.damping)
        seconds = time.perf_counter() - began
        for entry in solved.values():
            weight, hessian = entry.layer.matrix(), self.unseen.hessian(entry.layer)[0]
            energy = output_energy(weight, hessian)
            losses.append(np.log(layer_loss(weight, entry.solution.weights, hessian) / energy))
        written, _, _ = write(Solutions(plan, solved, {}), recipe)
        raw = self.judge.loss(plan.model)
        correct_statistics(self.material, plan, reference, sites, solved, written, recipe, lambda *_: None)
        return {
            "layer": float(np.mean(losses)),
            "raw": raw,
            "corrected": self.judge.loss(plan.model),
            "seconds": seconds,
            "dampings": dict(sorted(Counter(dampings).items())),
        }


def run(subject: Subject, options: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The rows of one model that are not done yet."""
    for seed in range(options.seeds):
        key = (subject.name, options.samples, seed)
        wanted = [(x, y) for x in options.levels for y in options.settings if (*key, x, y) not in done]
        if not wanted:
            continue
        with one_blas_thread():
            trial = Trial(subject, seed, options.samples)
            for level, setting in wanted:
                names = {"model": subject.name, "samples": options.samples, "seed": seed}
                yield {**names, "level": level, "setting": setting, **trial.measure(level, setting)}


def against(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], name: str) -> str:
    """By how many percent a figure is above that of damping BASE: the mean over the seeds, and its standard error."""
    there = {row["seed"]: row for row in base}
    pairs = [(row[name], there[row["seed"]][name]) for row in rows if row["seed"] in there]
    if not pairs:
        return ""
    changes = [100 * (a - b if name == "layer" else float(np.log(a / b))) for a, b in pairs]
    spread = f" ± {np.std(changes, ddof=1) / len(changes) ** 0.5:.1f}" if len(changes) > 1 else ""
    return f"{np.mean(changes):+.1f}{spread}"


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for model, samples, level in dict.fromkeys((x["model"], x["samples"], x["level"]) for x in rows):
        here = [x for x in rows if (x["model"], x["samples"], x["level"]) == (model, samples, level)]
        base = [x for x in here if x["setting"] == str(BASE)]
        for setting in SETTINGS:
            found = [x for x in here if x["setting"] == setting]
            if not found:
                continue
            values = [f"{np.mean([x[name] for x in found]):.4f}" for name in ("raw", "corrected")]
            changes = [against(found, base, name) for name in ("layer", "raw", "corrected")]
            counts = found[0]["dampings"].items() if setting == "auto" else ()
            dampings = ", ".join(f"{n} × {float(d):g}" for d, n in counts)
            cells.append((model, str(samples or "all"), level, setting, str(len(found)), *values, *changes, dampings))
    cells.sort(key=lambda row: NAMES.index(row[0]))
    header = ("model", "samples", "level", "damping", "seeds", "raw", "corrected", "layer loss, %", "raw, %",
              "corrected, %", "layers × damping of the first seed")  # fmt: skip
    absent = ", ".join(name for name in NAMES if all(row["model"] != name for row in rows))
    return f"""# Damping

`python -m benchmarks.quality.damping`, on {machine()}.

*Damping*: a constant fraction of the Hessian's mean diagonal for all layers, or *auto*: for each layer the least of
0.001, 0.003, … 0.1 whose loss on held-out samples is within 1 % of the least. Weights only. *Raw*: the output loss, KL
from the dense model in nats, for MiniLM ‖y − ŷ‖² / ‖y‖², on up to {JUDGED} samples of other data; *corrected*: after
the correction of statistics. In %: the change against damping {BASE:g}, as a difference of logarithms, mean over the
seeds that draw the positions, ± its standard error; of *layer losses* on that other data the mean over the layers.
*Samples*: of which the first nine tenths calibrate.

{f"Not run yet: {absent}." if absent else ""}

{markdown(header, cells, left=5)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--only", choices=NAMES, action="append", help="only this model")
    parser.add_argument("--levels", choices=list(LEVELS), nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--settings", choices=list(SETTINGS), nargs="+", default=list(SETTINGS), help="only these")
    parser.add_argument("--seeds", type=int, default=1, help="how many draws of positions")
    parser.add_argument("--samples", type=int, help="only the first of the samples")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page again")
    options = parser.parse_args()
    file = RESULTS / "damping.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(x["model"], x["samples"], x["seed"], x["level"], x["setting"]) for x in rows}
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), tuple(options.only or NAMES)):
                for row in run(subject, options, done):
                    with file.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if not rows:
        sys.exit("there is nothing to report")
    (RESULTS / "damping.md").write_text(page(rows))


if __name__ == "__main__":
    main()
