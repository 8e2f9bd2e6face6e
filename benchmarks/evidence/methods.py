"""The cells of the tables: at each level, by each method, one call of `compress`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.evaluation import Score, output_loss
from benchmarks.common.harness import Rows
from benchmarks.common.subjects import Subject
from onnx_obc import Recipe, Result, compress

KEY = ("table", "model", "level", "method", "seed")
SEEDS = 3
SHORT = 600.0  # seconds; a cell that takes longer has one seed
STEPS = {"ResNet-20": 1000, "ResNet-56": 1000, "EfficientNet-Lite0": 500, "MiniLM": 500}  # of AdaRound and BRECQ, each
ADAQUANT_STEPS = 1000  # as published
ADAPRUNE_STEPS = 1000  # at each step of sparsity
EPOCHS = 5  # of global AdaPrune

Fields = Mapping[str, Any]  # of a recipe


@dataclass(frozen=True)
class Table:
    """title: what the page calls it. source: the table of OBC that it stands for. levels, methods: the fields of a
    recipe that each adds to what a recipe says by default."""

    title: str
    source: str
    levels: Mapping[str, Fields]
    methods: Mapping[str, Fields]


def _sparse(pattern: str) -> Fields:
    return {"weights": "float", "activations": "none", "sparsity": pattern}


def _integers(bits: int) -> Fields:
    return {"weights": f"int{bits}", "activations": "none", "asymmetric": True}


PRUNERS: dict[str, Fields] = {
    "magnitude": {"solver": "gmp"},
    "L-OBS": {"solver": "lobs"},
    "AdaPrune": {"solver": "adaprune", "iterations": ADAPRUNE_STEPS},
    "AdaPrune, least squares": {"solver": "adaprune"},
    "AdaPrune, least squares, in order": {"solver": "adaprune", "sequential": True},
    "ExactOBS": {"refine": "none"},
    "refined": {},
    "refined, in order": {"sequential": True},
}
ROUNDERS: dict[str, Fields] = {
    "nearest": {"solver": "baseline"},
    "AdaQuant": {"solver": "adaquant", "sequential": True, "iterations": ADAQUANT_STEPS},
    "AdaRound": {"solver": "adaround", "sequential": True},
    "BRECQ": {"solver": "brecq", "sequential": True},
    "OBQ": {"refine": "none"},
    "refined": {},
    "refined, in order": {"sequential": True},
}
TABLES = {
    "patterns": Table(
        "2:4 and 4:8", "tables 2 and 3", {"4:8": _sparse("4:8"), "2:4": _sparse("2:4")}, PRUNERS
    ),
    "bits": Table(
        "Weights of 4, 3 and 2 bits",
        "table 4",
        {f"{bits} bits": _integers(bits) for bits in (4, 3, 2)},
        ROUNDERS,
    ),
    "global": Table(
        "Global AdaPrune on top",
        "table 5",
        {"4:8": _sparse("4:8"), "2:4": _sparse("2:4")},
        {
            f"{name} + global AdaPrune": {**fields, "global_adaprune": EPOCHS}
            for name, fields in {
                "magnitude": {"solver": "gmp"},
                "AdaPrune, least squares": {"solver": "adaprune"},
                "refined": {},
            }.items()
        },
    ),
}  # fmt: skip


def cells(
    subject: Subject, table: str, rows: Rows, seeds: int, scale: float = 1.0, last: bool = False
) -> Iterator[None]:
    """Run what is missing of a table, seed by seed. scale: of all numbers of steps. last: only the last level.

    A cell whose first seed took longer than `SHORT` has no others.
    """
    dense = subject.score(subject.path, None)
    chosen = TABLES[table]
    levels = list(chosen.levels.items())[-1:] if last else list(chosen.levels.items())
    for seed in range(seeds):
        for level, fields in levels:
            for method, how in chosen.methods.items():
                key = (table, subject.name, level, method, seed)
                if key in rows or _too_long(rows, key):
                    continue
                recipe = _recipe({**fields, **how}, subject.name, seed, scale)
                rows.add(dict(zip(KEY, key, strict=True)) | run(subject, recipe, dense))
                yield


def run(subject: Subject, recipe: Recipe, dense: Score) -> dict[str, Any]:
    """Compress and score one model: the figures of a row."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        data = replace(subject.options, seed=recipe.seed)
        result = compress(subject.path, subject.calibration, recipe, path, data=data)
        seconds = time.perf_counter() - began
        found = subject.score(path, dense.predictions)
    return {
        "metric": subject.metric,
        "dense": dense.value,
        "steps": recipe.iterations,
        "seconds": seconds,
        **figures(found, dense, subject.classifier, result),
    }


def figures(found: Score, dense: Score, classifier: bool, result: Result) -> dict[str, Any]:
    """score, agreement, loss: of the model's outputs. layer_loss: relative, mean over its layers."""
    return {
        "score": found.value,
        "agreement": found.agreement,
        "loss": output_loss(dense, found, classifier),
        "layer_loss": float(np.mean([layer.loss_relative for layer in result.report.layers])),
        "layers": len(result.report.layers),
        "corrections": [vars(attempt) for attempt in result.report.corrections],
    }


def _recipe(fields: dict[str, Any], model: str, seed: int, scale: float) -> Recipe:
    if fields.get("solver") in ("adaround", "brecq"):
        fields["iterations"] = STEPS[model]
    if "iterations" in fields:
        fields["iterations"] = max(1, int(fields["iterations"] * scale))
    return Recipe.model_validate(
        {"sequential": False, "reconstruction": False, **fields, "seed": seed, "verify": False}
    )


def _too_long(rows: Rows, key: tuple[Any, ...]) -> bool:
    first = (*key[:-1], 0)
    return key[-1] > 0 and any(
        tuple(row[name] for name in KEY) == first and (row["seconds"] or 0) > SHORT for row in rows.rows
    )
