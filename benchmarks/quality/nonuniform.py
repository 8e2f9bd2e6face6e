"""Accuracy against a budget: levels chosen for each layer, against uniform ones, and what corrections add.

    python -m benchmarks.quality.nonuniform                          # everything: hours on two cores
    python -m benchmarks.quality.nonuniform --only ResNet-20 --part bops

Two parts. `bops`: the `gpu` level set (8w8a, 4w4a, each also at 2:4) against bit operations in OBC's accounting, for
onnxruntime with activations quantized as the level says. `flops`: weights pruned anywhere, against operations, with
global magnitude pruning as the baseline. Databases are kept in --databases, so that a second run only searches.

A finished row is added to benchmarks/results/nonuniform.jsonl at once, and rows that are there are not run again.
Tables and plots are made of all rows: benchmarks/results/nonuniform.md and nonuniform-*.svg.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from onnx_obc import Recipe, SearchOptions, build, open_database, parse_budget
from onnx_obc.core.level import FLOAT, Choice, Level, Unstructured, parse_choice
from onnx_obc.core.solution import Solution
from onnx_obc.database.open import Database
from onnx_obc.graph.cost import layer_costs, level_flops, obc_bops
from onnx_obc.pipeline.finish import Destination
from onnx_obc.pipeline.layer import LayerReport, Solved
from onnx_obc.pipeline.plan import make_plan
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.search.profile import find_profile, sensitivities

PARTS = ("bops", "flops")
RESULTS = Path(__file__).parents[1] / "results"
BOPS = ("6x", "8x", "10x", "12x", "14x")
FLOPS = ("2x", "3x", "4x")
SEQUENTIAL = {"6x": False, "8x": True, "10x": False, "12x": True, "14x": True, "2x": False, "3x": True, "4x": True}
UNIFORM = ("8w8a", "2:4+8w8a", "4w4a", "2:4+4w4a")
LADDER = [round(1 - 0.9**step, 4) for step in range(2, 45, 3)]  # every third step of OBC's ladder, from 19 % to 99 %
Profile = Mapping[str, Choice]


@dataclass(frozen=True)
class Run:
    """One row to come: a profile by a method, with or without corrections, solved in order or not."""

    budget: str
    method: str
    profile: Callable[[], Profile]
    correct: bool = False
    sequential: bool = False
    solved: Callable[[Profile, Recipe], Solutions] | None = None


def bops_runs(database: Database) -> list[Run]:
    runs = []
    for name in UNIFORM:
        for correct in (False, True):
            method = "uniform + corrections" if correct else "uniform"
            runs.append(Run(name, method, lambda name=name: uniform(database, parse_choice(name)), correct))
    return runs + budget_runs(database, "obc-bops", BOPS)


def flops_runs(database: Database) -> list[Run]:
    runs = []
    for factor in FLOPS:
        for correct in (False, True):
            method = "global magnitude" + (" + corrections" if correct else "")
            found = magnitude(database, 1 / float(factor[:-1]))
            runs.append(
                Run(f"flops={factor}", method, lambda found=found: found[0], correct,
                    solved=lambda profile, recipe, found=found: magnitude_solved(database, found, recipe))
            )  # fmt: skip
    return runs + budget_runs(database, "flops", FLOPS)


def budget_runs(database: Database, kind: str, factors: Sequence[str]) -> list[Run]:
    runs = []
    for factor in factors:
        text = f"{kind}={factor}"
        for sensitivity in ("layer", "output"):
            runs.append(Run(text, f"DP, {sensitivity} loss", lambda t=text, s=sensitivity: chosen(database, t, s)))
        runs.append(Run(text, "DP, output loss + corrections", lambda t=text: chosen(database, t, "output"), True))
        if SEQUENTIAL[factor]:
            profile = lambda t=text: chosen(database, t, "output")  # noqa: E731
            runs.append(Run(text, "DP, output loss + corrections + sequential", profile, True, True))
    return runs


def built(subject: Subject, levels: Sequence[str], folder: Path) -> Database:
    """The database of a subject with these levels, made, or finished, first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    build(subject.path, subject.calibration, ",".join(levels), folder, data=subject.options)
    return open_database(folder)


def uniform(database: Database, choice: Choice) -> Profile:
    """Every layer at this choice, or dense in its pattern where that is impossible, as first layers are at 2:4."""
    dense = Choice(Level(bits=choice.level.bits), choice.activation_bits)
    return {n: next(c for c in (choice, dense, Choice(FLOAT)) if c in found) for n, found in database.choices.items()}


def chosen(database: Database, budget: str, sensitivity: str) -> Profile:
    options = SearchOptions(sensitivity=sensitivity)  # type: ignore[arg-type]
    recipe = Recipe(target=database.manifest.recipe["target"])
    losses = sensitivities(database, options, recipe, lambda *_: None)
    return find_profile(database, parse_budget(budget), losses, options, recipe, lambda *_: None).choices


def magnitude(database: Database, fraction: float) -> tuple[Profile, dict[str, np.ndarray]]:
    """Global magnitude pruning to a fraction of the FLOPs: one threshold for all layers, found by bisection."""
    costs = layer_costs(database.graph, database.layers)
    flops = {layer.name: float(costs[layer.name].flops or 0) for layer in database.layers}
    sizes = {layer.name: np.abs(layer.matrix()) for layer in database.layers}
    low, high = 0.0, max(float(x.max()) for x in sizes.values())
    for _ in range(50):
        middle = (low + high) / 2
        left = sum(flops[name] * float((x > middle).mean()) for name, x in sizes.items())
        low, high = (middle, high) if left > fraction * sum(flops.values()) else (low, middle)
    masks = {name: x > high for name, x in sizes.items()}
    shares = {name: float((~mask).mean()) for name, mask in masks.items()}
    return {n: Choice(Level(Unstructured(s))) if 0 < s < 1 else Choice(FLOAT) for n, s in shares.items()}, masks


def magnitude_solved(database: Database, found: tuple[Profile, dict[str, np.ndarray]], recipe: Recipe) -> Solutions:
    profile, masks = found
    plan = make_plan(database.folded, recipe, profile)
    solved = {}
    for layer in plan.layers:
        weights = np.where(masks[layer.name], layer.matrix(), np.float32(0))
        solution = Solution(profile[layer.name].level, weights, None, None, masks[layer.name], 0.0)
        solved[layer.name] = Solved(layer, solution, blank(layer.name))
    return Solutions(plan, solved, database.ranges)


def blank(name: str) -> LayerReport:
    """A report without figures: a baseline's layers are not looked at one by one."""
    numbers = dict.fromkeys(LayerReport.__dataclass_fields__, 0)
    return LayerReport(**{**numbers, "name": name, "level": "float", "notes": ()})  # type: ignore[arg-type]


def costs_of(database: Database, profile: Profile) -> dict[str, float]:
    costs = layer_costs(database.graph, database.layers)
    totals = {}
    for kind, cost in (("obc-bops", obc_bops), ("flops", lambda c, choice: level_flops(c, choice.level))):
        dense = sum(float(cost(costs[layer.name], Choice(FLOAT)) or 0) for layer in database.layers)
        totals[kind] = dense / sum(float(cost(costs[x.name], profile[x.name]) or 0) for x in database.layers)
    return totals


def run(subject: Subject, part: str, databases: Path, rows: Rows) -> None:
    """Build the database and run what is missing."""
    target = databases / f"{subject.path.stem}-{part}"
    target.parent.mkdir(parents=True, exist_ok=True)
    levels = "gpu" if part == "bops" else ",".join(f"sparse-{sparsity}" for sparsity in LADDER)
    recipe = Recipe(refine="auto" if part == "bops" else "none")
    began = time.perf_counter()
    built = build(subject.path, subject.calibration, levels, target, recipe, data=subject.options)
    seconds = {"build": time.perf_counter() - began}
    print(f"{subject.name} {part}: built in {seconds['build']:.0f} s, {built.solved} solved", flush=True)
    database = open_database(target)
    began = time.perf_counter()
    sensitivities(database, SearchOptions(), recipe, lambda *_: None)
    print(f"  sensitivities {time.perf_counter() - began:.0f} s", flush=True)
    dense = subject.score(subject.path, None).value
    for one in bops_runs(database) if part == "bops" else flops_runs(database):
        if (subject.name, part, one.budget, one.method) in rows:
            continue
        began = time.perf_counter()
        profile = one.profile()
        quick = recipe.model_copy(update={"effort": one.effort, "sequential": one.sequential, "verify": False})
        solutions = one.solved(profile, quick) if one.solved else profile
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            result = database.write(solutions, quick, Destination(path))
            took = time.perf_counter() - began
            score = subject.score(path, None).value
        row = {
            "model": subject.name,
            "part": part,
            "budget": one.budget,
            "method": one.method,
            "metric": subject.metric,
            "dense": dense,
            "score": score,
            "costs": costs_of(database, profile),
            "corrections": [vars(attempt) for attempt in result.report.corrections],
            "seconds": took,
            "build_seconds": seconds["build"] if built.solved else None,
        }
        rows.add(row)
        print(f"  {one.budget} {one.method}: {score:.4f} of {dense:.4f} ({took:.0f} s)", flush=True)


def plot(rows: Sequence[Mapping[str, Any]], part: str, model: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "onnx-obc", "svg.fonttype": "none"})
    from matplotlib import pyplot

    kind = "obc-bops" if part == "bops" else "flops"
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    methods = dict.fromkeys(row["method"] for row in rows)
    for method in methods:
        found = sorted((row["costs"][kind], row["score"]) for row in rows if row["method"] == method)
        axes.plot(*zip(*found, strict=True), "o-" if "uniform" not in method else "s--", label=method, markersize=4)
    axes.axhline(rows[0]["dense"], color="grey", linewidth=0.8, label="dense")
    axes.set_xlabel(f"{'BOPs (OBC accounting)' if part == 'bops' else 'FLOPs'}, times fewer")
    axes.set_ylabel(rows[0]["metric"])
    axes.set_title(model)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for part, title in (("bops", "Bit operations, the gpu level set"), ("flops", "Operations, pruned anywhere")):
        kind = "obc-bops" if part == "bops" else "flops"
        parts.append(f"## {title}\n")
        for name in NAMES:
            found = [row for row in rows if row["model"] == name and row["part"] == part]
            if not found:
                parts.append(f"{name}: not run.\n")
                continue
            percent = found[0]["metric"] == "top-1"
            unit = 100 if percent else 1
            cells = [
                (
                    row["budget"],
                    row["method"],
                    f"{row['costs'][kind]:.2f}",
                    f"{unit * row['score']:.2f}" if percent else f"{row['score']:.4f}",
                    f"{100 * (row['score'] / row['dense'] - 1):+.1f} %",
                    _kept(row),
                    f"{row['seconds']:.0f}",
                )
                for row in found
            ]
            header = ("budget", "method", "times fewer", found[0]["metric"], "of dense", "corrections", "seconds")
            dense = f"{unit * found[0]['dense']:.2f} %" if percent else f"{found[0]['dense']:.4f}"
            picture = f"nonuniform-{part}-{name.lower()}.svg"
            plot(found, part, name, RESULTS / picture)
            parts.append(f"### {name}, dense {dense}\n\n{markdown(header, cells, left=2)}\n\n![{name}]({picture})\n")
    return f"""# Levels for every layer by a budget

`python -m benchmarks.quality.nonuniform`, on {machine()}. Seconds are those of one model from a finished
database: choice, stitching, corrections, and solving again for *sequential*; not of its evaluation.

*Times fewer* is what was really reached. Bit operations are counted as in OBC's code: FLOPs × the wider of weight and
activation bits (8w8a is a quarter of float32, 4w4a an eighth), halved at 2:4. *Uniform*: every layer at this level, or
without the pattern where it is impossible. *DP*: the dynamic program over relative layer losses, or over output losses
of the model with one layer compressed (64 calibration samples). *Corrections*: batch-norm, norm and bias statistics, on
96 calibration samples (128 and 256 in EfficientNet's rows by bit operations that are not sequential); kept or dropped
by the output loss of others. MiniLM's rows by bit operations have 1 % damping throughout.
*Sequential*: layers solved again in order on the inputs that the compressed prefix produces, on up to
512 samples, with corrections on the way; dropped for the model without it where that has the lower output loss on
held-out samples, as the column says. Pruned anywhere: every third step of OBC's ladder, masks not refined.
*Global magnitude*: one threshold for all layers; a layer that loses all its weights stays dense.
Models, calibration and evaluation are those of accuracy.md; the evaluation data calibrates and chooses nothing.

{chr(10).join(parts)}"""


def _kept(row: Mapping[str, Any]) -> str:
    tried = row["corrections"]
    if not tried:
        return ""
    return "; ".join(
        f"{'+'.join(x['kinds'])} {'kept' if x['kept'] else 'dropped'} ({x['loss_before']:.3g} → {x['loss_after']:.3g})"
        for x in tried
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part")
    options = parser.parse_args()
    parts = tuple(options.part or PARTS)

    def work(subject: Subject, rows: Rows, _: Path) -> None:
        for part in parts:
            run(subject, part, options.databases, rows)

    measure("nonuniform", ("model", "part", "budget", "method"), options, work, page, lambda row: row["part"] in parts)


if __name__ == "__main__":
    main()
