"""Budgets in measured time: a table of seconds, the profile that it allows, and how fast the model then really is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .bench import bench
from .calibration.data import InputSpec
from .calibration.feeds import fixed_batch
from .errors import RecipeError
from .finish import Progress, write
from .graph.model import input_specs, save_model
from .graph.targets import save_for
from .level import FLOAT, Choice, Float64
from .opened import Database, stitch
from .profiles import Profile, SearchOptions, fastest_profile, find_profile
from .recipe import Recipe
from .runtime.engine import Feed
from .runtime.engines import ENGINES
from .search.budget import Budget
from .search.timings import Timings, check_timings, read_timings, this_machine, write_timings
from .solver.threads import usable_cores
from .timing import Subject, subject_of, time_file, time_layers

ROUNDS = 6  # of choosing and measuring
TOLERANCE = 0.15  # between predicted and measured; beyond it layers are timed again where they stand
STEP = 1.2  # by how much more is asked for at most, after a model that was too slow
SHORT = 0.03  # by how much a model may be slower than was asked for


@dataclass(frozen=True)
class Measured:
    """A profile with its speed-up: predicted from the table, and measured against the dense model, None if it was not.

    reached: whether it is as fast as was asked for, as far as is known.

    rounds: how often a profile was chosen and measured. retimed: how many times of layers were replaced by those
    measured in place.
    """

    profile: Profile
    predicted: float
    measured: float | None
    reached: bool
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
    too slow, more is asked for. If nothing helps, the profile that is fastest by the table is measured too. Raises
    RecipeError if the table allows no such profile, and that one is not fast enough either; EngineError as
    `time_layers`.

    With a table from another machine nothing is measured.
    """
    assert options.timings is not None
    table, subject = options.timings, subject_of(database.dense)
    if table.machine != this_machine():
        first = find_profile(database, budget, losses, options, recipe, progress)
        return Measured(first, 1 / first.costs["latency"], None, True, 1, 0)
    feed, goal = timing_feed(database, options.timing_batch), 1 / budget.fraction
    timings, asked, retimed = table, budget, 0
    best: Measured | None = None
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        dense, path = Path(folder) / "dense.onnx", Path(folder) / "model.onnx"
        save_model(database.graph, dense)

        def measure(profile: Profile, turn: int) -> Measured:
            _write(database, profile.choices, recipe, path)
            ratio = bench((dense, path), recipe.target, feed, recipe.threads).files[1].ratio
            progress("latency", 1, ROUNDS)
            return Measured(profile, 1 / profile.costs["latency"], ratio, ratio >= (1 - SHORT) * goal, turn, retimed)

        for turn in range(1, ROUNDS):
            try:
                now = replace(options, timings=timings)
                profile = find_profile(database, asked, losses, now, recipe, lambda *_: None)
            except RecipeError:
                break  # that is more than these levels can do, by what is known
            found = measure(profile, turn)
            best = _better(best, found)
            assert found.measured is not None
            if abs(found.measured / found.predicted - 1) > TOLERANCE:
                fresh = _in_place(subject, profile.choices, timings, path, feed, recipe)
                timings, retimed = timings.over(*fresh), retimed + sum(map(len, fresh))
            elif found.reached:
                break
            if not found.reached:
                asked = replace(budget, value=min(goal / found.measured, STEP) / asked.fraction)
        feasible = best is not None
        fastest = fastest_profile(database, losses, table)
        if (best is None or not best.reached) and any(c.level != FLOAT for c in fastest.choices.values()):
            best = _better(best, measure(fastest, ROUNDS))
    if best is None or not (best.reached or feasible):
        most = 1.0 if best is None or best.measured is None else max(1.0, best.measured)
        raise RecipeError(
            f"--budget {budget} cannot be met: {most:.2f}x at most was measured in {table.runtime} on this machine "
            f"with the levels of {database.folder}; ask for less, or build levels that it runs faster"
        )
    return best


def in_words(found: Measured, timings: Timings) -> dict[str, Any]:
    """What the report says of a model's speed."""
    figures = {name: value for name, value in vars(found).items() if name != "profile"}
    return figures | {"runtime": timings.runtime, "batch": timings.batch, "machine": timings.machine}


def table_of(database: Database, options: SearchOptions, recipe: Recipe, progress: Progress) -> Timings:
    """The table to search with: the user's, or one measured here, once, and kept in the database.

    Raises RecipeError if the user's is for another runtime, batch or machine, EngineError if it cannot be measured.
    """
    if options.timings is not None:
        check_timings(options.timings, recipe.target, None if options.other_machine else this_machine())
        if options.timings.batch and options.timings.batch != options.timing_batch:
            raise RecipeError(
                f"--timings: the table is for batches of {options.timings.batch}, not {options.timing_batch}; "
                f"say --timing-batch {options.timings.batch}, or measure again"
            )
        return options.timings
    threads = recipe.threads or usable_cores()
    path = database.folder / "timings" / f"{recipe.target}-batch{options.timing_batch}-threads{threads}.json"
    version = ENGINES[recipe.target].version()
    if path.exists():
        kept = read_timings(path)
        complete = all(
            str(choice) in kept.layers.get(name, {}) for name, found in database.choices.items() for choice in found
        )
        if (kept.runtime, kept.machine) == (version, this_machine()) and complete:
            return kept
    feed = timing_feed(database, options.timing_batch)
    measured = time_layers(subject_of(database.dense), database.choices, feed, recipe, progress)
    write_timings(measured, path)
    return measured


def timing_feed(database: Database, batch: int) -> Feed:
    """The first calibration samples of a database, repeated to a feed of so many; whole where the model fixes that."""
    samples = database.samples["calibration"]
    first = next(iter(samples.read(0, samples.count)))
    if fixed_batch([InputSpec(*spec) for spec in input_specs(database.dense)]) is not None:
        return first.feed
    copies = -(-batch // first.count)
    return {n: np.concatenate([a] * copies)[:batch] if a.ndim else a for n, a in first.feed.items()}


def _better(best: Measured | None, found: Measured) -> Measured:
    """Of two, the one that is fast enough, then the one that loses less; the faster one if none is."""

    def rank(one: Measured) -> tuple[bool, float]:
        return one.reached, -one.profile.predicted if one.reached else one.measured or 0.0

    return found if best is None or rank(found) > rank(best) else best


def _write(database: Database, choices: Mapping[str, Choice], recipe: Recipe, path: Path) -> None:
    """Write a profile from stored solutions, for the engine: neither corrected nor checked."""
    plan, solved = stitch(database, choices, recipe.model_copy(update={"sequential": False}))
    write(plan, solved, database.ranges, recipe)
    save_for(recipe.target, plan.model, path)


def _in_place(
    subject: Subject, choices: Mapping[str, Choice], timings: Timings, path: Path, feed: Feed, recipe: Recipe
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The seconds of layers, and of switches, in a model where they are others than in the table.

    What a layer takes beyond its own time counts as a switch where the next layer is of another kind.
    """
    seconds, _ = time_file(subject, path, feed, recipe)
    layers: dict[str, dict[str, float]] = {}
    switches: dict[str, dict[str, float]] = {}
    for name, following in zip(choices, [*list(choices)[1:], None], strict=True):
        choice, own = choices[name], timings.layers[name][str(choices[name])]
        switch = following is not None and choices[following].kind != choice.kind
        known = own + (timings.switches.get(name, {}).get(choice.kind, 0.0) if switch else 0.0)
        if abs(seconds[name] / known - 1) <= TOLERANCE:
            continue
        if switch and seconds[name] > own:
            switches[name] = {choice.kind: seconds[name] - own}
        else:
            layers[name] = {str(choice): seconds[name]}
    return layers, switches
