"""Budgets in measured time: a table of seconds, the profile that it allows, and how fast the model then really is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...core.arrays import Feed, Float64
from ...core.errors import RecipeError
from ...core.level import Choice
from ...core.machine import this_machine, workers
from ...core.plural import counted
from ...core.progress import Progress
from ...database.open import Database, stitch
from ...graph.narrow import narrow
from ...pipeline.recipe import Recipe
from ...pipeline.speed import Subject, subject_of, time_file, timing_feed
from ...pipeline.write import write
from ...targets.bench import bench
from ...targets.registry import TARGETS, save_for
from ..budget import Budget
from ..profile import Profile, SearchOptions, fastest_profiles, find_profile
from ..reach import in_words as levels_in_words
from .layer_times import RUN_SECONDS, time_layers
from .table import Timings, check_timings, read_timings, write_timings

SEARCHES = 5  # for a profile that is fast enough
ROUNDS = SEARCHES + 2  # with the fastest there are
TOLERANCE = 0.15  # between predicted and measured; beyond it layers are timed again where they stand
STEP = 1.2  # largest factor by which the target is tightened after a model that was too slow
TIMED_FORM = "dq"  # whose tables have no form in their names
SHORT = 0.03  # by how much a model may be slower than was asked for


@dataclass(frozen=True)
class Measured:
    """A profile with its speed-up: predicted from the table, and measured against the dense model, None if it was not.

    rounds: how often a profile was chosen and measured. retimed: how many times of layers were replaced by those
    measured in place.
    """

    profile: Profile
    predicted: float
    measured: float | None
    rounds: int
    retimed: int


def find_in_time(
    database: Database,
    budget: Budget,
    losses: Mapping[str, Float64],
    options: SearchOptions,
    recipe: Recipe,
    progress: Progress,
) -> Measured:
    """The profile that loses least and is as fast as asked, where it is to run.

    Predicted times add up layers that were timed in models of one level; in a mixed one, conversions between types come
    on top. So the stitched model is timed against the dense one. Where prediction and measurement differ by more than
    TOLERANCE, the layers take the times that they have in that model, and the search starts again; where the model is
    too slow, more is asked for. If nothing helps, the fastest there are by the table are measured too. Raises
    RecipeError if no profile was measured to be as fast as asked; EngineError as `time_layers`.

    With a table from another machine nothing is measured, nor with one by hand that is said to be from one.
    """
    assert options.timings is not None
    table, subject = options.timings, subject_of(database.folded)
    if options.other_machine if not table.machine else table.machine != this_machine():
        first = find_profile(database, budget, losses, options, recipe, progress)
        return Measured(first, 1 / first.costs["latency"], None, 1, 0)
    feed = timing_feed(database.folded, database.samples["calibration"], recipe.timing_batch)
    enough = (1 - SHORT) / budget.fraction
    timings, asked, retimed = table, budget, 0
    tried: list[tuple[float, Measured]] = []
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        dense, path = Path(folder) / "dense.onnx", Path(folder) / "model.onnx"
        save_for(recipe.target, recipe.form, _narrowed(database.graph, database), dense)

        def measure(profile: Profile, turn: int) -> float:
            _write(database, profile.choices, recipe, path)
            ratio = bench((dense, path), recipe.target, feed, recipe.threads).files[1].ratio
            tried.append((ratio, Measured(profile, 1 / profile.costs["latency"], ratio, turn, retimed)))
            progress("latency", 1, ROUNDS)
            return ratio

        for turn in range(1, SEARCHES + 1):
            try:
                now = replace(options, timings=timings)
                profile = find_profile(database, asked, losses, now, recipe, lambda *_: None)
            except RecipeError:
                break  # that is more than these levels can do, by what is known
            ratio = measure(profile, turn)
            if abs(ratio * profile.costs["latency"] - 1) > TOLERANCE:
                fresh = _in_place(subject, profile.choices, timings, path, feed, recipe)
                timings, retimed = timings.over(*fresh), retimed + sum(map(len, fresh))
            elif ratio >= enough:
                break
            if ratio < enough:
                asked = replace(budget, value=min(1 / budget.fraction / ratio, STEP) / asked.fraction)
        for turn, fastest in enumerate(fastest_profiles(database, losses, table), SEARCHES + 1):
            if all(ratio < enough for ratio, _ in tried):
                measure(fastest, turn)
    fast = [found for ratio, found in tried if ratio >= enough]
    if not fast:
        most = max([1.0, *(ratio for ratio, _ in tried)])
        raise RecipeError(
            f"--budget {budget} cannot be met: {most:.2f}x at most was measured in {table.runtime} on this machine "
            f"with the levels {levels_in_words(database.choices.values())}; ask for less, or give levels that it runs "
            "faster"
        )
    return min(fast, key=lambda found: found.profile.predicted)


def in_words(found: Measured, timings: Timings) -> dict[str, Any]:
    """What the report says of a model's speed."""
    figures = {name: value for name, value in vars(found).items() if name != "profile"}
    return figures | {"runtime": timings.runtime, "batch": timings.batch, "machine": timings.machine}


def check_timing(options: SearchOptions, recipe: Recipe) -> None:
    """Raise, before any work, what keeps a budget of latency from being met here.

    RecipeError if the user's table is for another runtime, batch, machine or number of threads, or the recipe asks for
    what no table knows; EngineError if the runtime is to be timed and is not here.
    """
    if recipe.float16:
        raise RecipeError("--float16: budgets of latency time models in float32; leave it out, or export in float16")
    table = options.timings
    if table is not None:
        check_timings(table, recipe.target, None if options.other_machine else this_machine())
        if table.batch and table.batch != recipe.timing_batch:
            raise RecipeError(
                f"--timings: the table is for batches of {table.batch}, not {recipe.timing_batch}; "
                f"say --timing-batch {table.batch}, or measure again"
            )
        threads = workers(recipe.threads)
        if table.threads and table.threads != threads and not options.other_machine:
            raise RecipeError(
                f"--timings: the table is for {counted(table.threads, 'thread')}, not {threads}; "
                f"say --threads {table.threads}, or measure again"
            )
    if table is None or not options.other_machine:
        TARGETS[recipe.target].engine.version()


def table_of(database: Database, options: SearchOptions, recipe: Recipe, progress: Progress) -> Timings:
    """The table to search with: the user's, or one measured here, once, and kept in the database.

    Raises EngineError if it cannot be measured. See `check_timing`, which comes first.
    """
    if options.timings is not None:
        return options.timings
    threads = workers(recipe.threads)
    form = "" if recipe.form == TIMED_FORM else f"-{recipe.form}"
    name = f"{recipe.target}-batch{recipe.timing_batch}-threads{threads}{form}.json"
    path, version = database.folder / "timings" / name, TARGETS[recipe.target].engine.version()
    if (kept := _kept(path)) is not None:
        complete = all(
            str(choice) in kept.layers.get(name, {}) for name, found in database.choices.items() for choice in found
        )
        if (kept.runtime, kept.machine) == (version, this_machine()) and complete:
            return kept
    feed = timing_feed(database.folded, database.samples["calibration"], recipe.timing_batch)
    measured = time_layers(subject_of(database.folded), database.choices, feed, recipe, progress)
    write_timings(measured, path)
    return measured


def _kept(path: Path) -> Timings | None:
    """The table that was measured before; None where there is none, or it is damaged."""
    try:
        return read_timings(path) if path.exists() else None
    except RecipeError:
        return None


def _write(database: Database, choices: Mapping[str, Choice], recipe: Recipe, path: Path) -> None:
    """Write a profile from stored solutions, for the engine: neither corrected nor checked."""
    solutions = stitch(database, choices, recipe.model_copy(update={"sequential": False}))
    write(solutions, recipe)
    save_for(recipe.target, recipe.form, _narrowed(solutions.plan.model, database), path)


def _narrowed(model: ir.Model, database: Database) -> ir.Model:
    """The model in the precision of the user's file: half, where that is."""
    types = database.folded.types
    return model if types is None else narrow(model, types)


def _in_place(
    subject: Subject, choices: Mapping[str, Choice], timings: Timings, path: Path, feed: Feed, recipe: Recipe
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The seconds of layers, and of switches, in a model where they are others than in the table.

    What a layer takes beyond its own time counts as a switch where the next layer is of another kind.
    """
    seconds, _ = time_file(subject, path, feed, recipe, RUN_SECONDS)
    layers: dict[str, dict[str, float]] = {}
    switches: dict[str, dict[str, float]] = {}
    for name, following in zip(choices, [*list(choices)[1:], None], strict=True):
        choice, own = choices[name], timings.layers[name][str(choices[name])]
        switch = following is not None and choices[following].kind != choice.kind
        known = own + (timings.switches.get(name, {}).get(choice.kind, 0.0) if switch else 0.0)
        if abs(seconds[name] / known - 1) <= TOLERANCE:
            continue
        if switch:
            switches[name] = {choice.kind: max(seconds[name] - own, 0.0)}
        if not switch or seconds[name] < own:
            layers[name] = {str(choice): seconds[name]}
    return layers, switches
