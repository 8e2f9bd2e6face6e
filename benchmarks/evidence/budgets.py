"""Table 1 of OBC: pruned anywhere to a number of FLOPs, with one allocation for all methods and with each its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.harness import Rows
from benchmarks.common.subjects import Subject
from benchmarks.evidence.methods import KEY, figures
from benchmarks.quality.nonuniform import LADDER
from onnx_obc import Recipe, SearchOptions, build, open_database, parse_budget
from onnx_obc.calibration.capture import Chunk, capture
from onnx_obc.core.arrays import Float64
from onnx_obc.core.level import Choice
from onnx_obc.database.open import Database
from onnx_obc.pipeline.finish import Destination
from onnx_obc.pipeline.layer import prepare_layer
from onnx_obc.search.costs import cost_table
from onnx_obc.search.global_magnitude import one_threshold
from onnx_obc.search.profile import find_profile, sensitivities
from onnx_obc.solver.baselines.lobs import lobs_scores

BUDGETS = ("2x", "3x", "4x")
SOLVERS = {"magnitude": "gmp", "L-OBS": "lobs", "AdaPrune, least squares": "adaprune", "ExactOBS": "exact"}
SHARED = "ExactOBS"  # whose allocation the others get as well
THRESHOLD = "L-OBS, one threshold"  # on the scores of all layers


def cells(subject: Subject, databases: Path, rows: Rows, budgets: tuple[str, ...] = BUDGETS) -> Iterator[None]:
    """Build a database for each method, and run what is missing."""
    keys = [
        ("budgets", subject.name, f"FLOPs / {budget[:-1]}", name, 0)
        for budget in budgets
        for method in SOLVERS
        for name in names_of(method)
    ]
    if all(key in rows for key in keys):
        return
    dense = subject.score(subject.path, None)
    shared: dict[str, dict[str, Choice]] = {}
    for method in sorted(SOLVERS, key=lambda name: name != SHARED):
        folder = databases / f"{subject.path.stem}-{SOLVERS[method]}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = Recipe.model_validate({"solver": SOLVERS[method], "refine": "none"})
        levels = ",".join(f"sparse-{sparsity}" for sparsity in LADDER)
        build(subject.path, subject.calibration, levels, folder, recipe, data=subject.options)
        database = open_database(folder)
        scores = _scores(database, recipe) if method == "L-OBS" else []
        for budget in budgets:
            own = _profile(database, budget, recipe)
            level = f"FLOPs / {budget[:-1]}"
            if method == SHARED:
                shared[budget] = own
            for name in names_of(method):
                key = ("budgets", subject.name, level, name, 0)
                if key in rows:
                    continue
                profile = shared[budget] if name == method else own
                if name == THRESHOLD:
                    profile = _threshold(database, scores, budget)
                began = time.perf_counter()
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / "model.onnx"
                    result = database.write(profile, recipe.model_copy(update={"verify": False}), Destination(path))
                    seconds = time.perf_counter() - began
                    found = subject.score(path, dense.predictions)
                row: dict[str, Any] = dict(zip(KEY, key, strict=True))
                row |= {"metric": subject.metric, "dense": dense.value, "steps": None, "seconds": seconds}
                rows.add(row | figures(found, dense, subject.classifier, result))
                yield


def names_of(method: str) -> tuple[str, ...]:
    """The rows of a method: with the shared allocation, with its own, and for L-OBS with one threshold."""
    own = () if method == SHARED else (f"{method}, own allocation",)
    return (method, *own, *((THRESHOLD,) if method == "L-OBS" else ()))


def _scores(database: Database, recipe: Recipe) -> list[Float64]:
    """L-OBS's scores of every layer, (groups, rows, columns) each."""
    captured = capture(database.graph, Chunk(database.layers, (), choose_damping=True), database.samples["calibration"])
    prepared = [prepare_layer(layer, captured.of(layer), recipe) for layer in database.layers]
    return [lobs_scores(x.weight, x.damped.inverse) for x in prepared]


def _threshold(database: Database, scores: Sequence[Float64], budget: str) -> dict[str, Choice]:
    """What one threshold on the scores of all layers leaves of each."""
    choices = [database.choices[layer.name] for layer in database.layers]
    costs = cost_table("flops", database.layers, database.costs, choices, database.target)
    picked = one_threshold(scores, choices, costs.layers, parse_budget(f"flops={budget}").fraction * costs.dense)
    return {layer.name: found[i] for layer, found, i in zip(database.layers, choices, picked, strict=True)}


def _profile(database: Database, budget: str, recipe: Recipe) -> dict[str, Choice]:
    """What the budget's search chooses: for magnitude pruning, one threshold."""
    options = SearchOptions()
    losses = sensitivities(database, options, recipe, lambda *_: None)
    chosen = find_profile(database, parse_budget(f"flops={budget}"), losses, options, recipe, lambda *_: None)
    return dict(chosen.choices)
