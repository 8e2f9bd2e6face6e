"""From a database to models: a budget chooses a level for every layer, and the solutions are stitched together."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ..calibration.readers.iterables import load_function
from ..calibration.samples import DataOptions, existing
from ..core.errors import RecipeError
from ..core.progress import Progress, Stopwatch
from ..database.build import build
from ..database.open import Database, material_of, open_database, rival_of, stitch
from ..graph.model import read_model
from ..graph.save import check_beside, check_output
from ..pipeline.correct import check_trainable
from ..pipeline.finish import Result, finish
from ..pipeline.recipe import Recipe, make_recipe
from ..pipeline.verify import check_graph
from ..targets.registry import TARGETS
from .budget import Budget
from .latency.find import find_in_time, in_words, table_of
from .profile import Profile, SearchOptions, find_profile, sensitivities

# Fields of a recipe that a search decides: the others were decided when the database was built.
SEARCHED = (
    *("weight_form", "ranges", "correct", "sequential", "global_adaprune", "embeddings"),
    *("device", "threads", "memory", "verify"),
)


def retarget(
    database: Database | str | Path,
    budgets: Sequence[Budget],
    outputs: Sequence[Path | None],
    options: SearchOptions = SearchOptions(),
    recipe: Mapping[str, Any] | None = None,
    *,
    source: object = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """A model for every budget, each written to its output (None: kept in memory).

    recipe: fields of a Recipe that do not change solutions, such as `correct` and `verify`, over those that the
    database was built with. source: the model that the database was built from, for the report; None: the copy in the
    database. progress, say: as for `compress`. Raises RecipeError if a budget cannot be met, and what
    `open_database` and `compress` raise.
    """
    targets = [None if output is None else check_output(output, None) for output in outputs]
    database = database if isinstance(database, Database) else open_database(database)
    chosen = _recipe(database, recipe or {})
    check_trainable(chosen)
    losses = sensitivities(database, options, chosen, progress)
    if any(budget.kind == "latency" for budget in budgets):
        options = replace(options, timings=table_of(database, options, chosen, progress))
    results = []
    for budget, target in zip(budgets, targets, strict=True):
        watch = Stopwatch()
        with watch("search"):
            timed = None
            if budget.kind == "latency":
                timed = find_in_time(database, budget, losses, options, chosen, progress)
            profile = timed.profile if timed else find_profile(database, budget, losses, options, chosen, progress)
        say(f"{budget}: {_in_words(profile)}")
        with watch("solve"):
            plan, solved = stitch(database, profile.choices, chosen, progress, say)
            rival = rival_of(database, profile.choices, chosen)
        material, checks = material_of(database, source), []
        if chosen.verify:
            checks.append(check_graph(database.dense, plan.model, material.held_out, chosen))
        search = {
            "budget": str(budget),
            "search": options.search,
            "sensitivity": options.sensitivity,
            "predicted_loss": profile.predicted,
            "costs": dict(profile.costs),
            "latency": None if timed is None or options.timings is None else in_words(timed, options.timings),
        }
        results.append(
            finish(
                *(material, plan, solved, database.ranges, chosen, target, checks, watch, progress),
                search=search,
                rival=rival,
            )
        )
    return results


def _in_words(profile: Profile) -> str:
    """How many layers have which level, the most frequent ones first."""
    counts = Counter(str(choice) for choice in profile.choices.values()).most_common()
    shown = ", ".join(f"{count} × {name}" for name, count in counts[:6])
    return shown + (", …" if len(counts) > 6 else "")


def compress_to_budget(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object,
    budgets: Sequence[Budget],
    outputs: Sequence[Path | None],
    levels: str,
    recipe: Recipe | None = None,
    options: SearchOptions = SearchOptions(),
    database: str | Path | None = None,
    *,
    data: DataOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """`build` and `retarget` in one. Without `database` the solutions are thrown away at the end."""
    dense = read_model(model)
    for output in outputs:
        if output is not None:
            check_beside(dense, check_output(output, model))
    recipe = recipe or Recipe()
    check_trainable(recipe)
    over = {name: value for name, value in dict(recipe).items() if name in SEARCHED}
    with ExitStack() as stack:
        folder = database or stack.enter_context(tempfile.TemporaryDirectory(prefix="onnx-obc-"))
        build(dense, calibration, levels, folder, recipe, data=data, progress=progress, say=say)
        return retarget(folder, budgets, outputs, options, over, source=model, progress=progress, say=say)


def default_levels(budget: Budget, target: str) -> str:
    """The level set for a budget where none was named; for latency what the runtime is faster with."""
    if budget.kind == "latency":
        return TARGETS[target].latency_levels
    return {"size": "weight-only", "drop": "weight-only", "flops": "unstructured"}.get(budget.kind, "gpu")


def output_names(output: Path, budgets: Sequence[Budget]) -> list[Path]:
    """The files for several budgets: out.onnx becomes out-bops-12x.onnx and so on; for one or none as it is."""
    if len(budgets) < 2:
        return [output]
    names = [f"{output.stem}-{str(budget).replace('=', '-').replace('%', 'pct')}{output.suffix}" for budget in budgets]
    if len(set(names)) < len(names):
        raise RecipeError("--budget: the same budget was given twice; leave one out")
    return [output.with_name(name) for name in names]


def load_task(text: str) -> Callable[..., Any]:
    """The function of `module.py:function`. Raises CalibrationError."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py"):
        raise RecipeError(f"--task {text}: write module.py:function, a Python file and a function in it")
    return load_function(existing(Path(path)), name)


def _recipe(database: Database, over: Mapping[str, Any]) -> Recipe:
    """The recipe that the database was built with, and over it what a search may choose."""
    built = dict(database.manifest.recipe)
    rules = [{"match": pattern, "skip": True} for pattern in built.pop("skip")]
    for name, value in over.items():
        if name in built and built[name] != value:
            raise RecipeError(
                f"--{name.replace('_', '-')} {value}: {database.folder} was built with {built[name]}; build another one"
            )
    return make_recipe({**built, "layers": rules, **over}, "search")
