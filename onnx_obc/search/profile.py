"""Chooses a level for every layer of a database: what each costs in quality, and the best that a budget allows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ..calibration.split import first_samples
from ..core.arrays import Float64
from ..core.errors import RecipeError
from ..core.files import write_file
from ..core.level import FLOAT, Choice
from ..core.progress import Progress
from ..database.files import content_key, read_report
from ..database.open import Database, stitch
from ..pipeline.examine import Evaluation, Examiner
from ..pipeline.recipe import Recipe
from ..pipeline.write import write
from ..runtime.judge import Judge
from ..targets.registry import TARGETS
from .budget import Budget
from .costs import Costs, cost_table
from .dynamic import Switches, choose, choose_cheapest
from .global_magnitude import one_threshold
from .latency.table import Timings
from .reach import check_reach, check_smaller
from .sensitivity import Task, output_sensitivity, task_sensitivity
from .spdy import spdy_search

Sensitivity: TypeAlias = Literal["layer", "output", "task"]
SENSITIVE = 64  # samples that each (layer, level) is run on
JUDGED = 128  # samples that whole profiles are compared on while searching
QUICK = {"verify": False, "min_quality": None, "min_speedup": None, "fix_slow": False}  # of models that are tried
STEPS = 8  # halvings of the interval between the largest and the smallest model, for a budget of loss


@dataclass(frozen=True)
class SearchOptions:
    """How levels are chosen.

    sensitivity: what a level of a layer is said to cost in quality: its relative layer loss, the output loss of the
    model with only that layer at that level, or the same by a task. search: the dynamic program alone, or with SPDY's
    search around it. timings: for budgets of latency; None: measured here. other_machine: `timings` may be of
    another machine than this one. task: for `task`; None: labels. evaluation: what the user judges models by, which a
    budget of `drop` is then about; None: the output loss.
    levels, database: what `compress_to_budget` builds, by default what fits the first budget, and where; None: a
    temporary folder.
    """

    sensitivity: Sensitivity = "output"
    search: Literal["dp", "spdy"] = "dp"
    timings: Timings | None = None
    other_machine: bool = False
    task: Task | None = None
    evaluation: Evaluation | None = None
    levels: str | None = None
    database: str | Path | None = None


@dataclass(frozen=True)
class Profile:
    """A choice for every layer. predicted: the sum of their sensitivities. costs: what it costs, relative to dense."""

    choices: Mapping[str, Choice]
    predicted: float
    costs: Mapping[str, float]


def sensitivities(database: Database, options: SearchOptions, recipe: Recipe, progress: Progress) -> dict[str, Float64]:
    """The loss of each choice of each layer, (choices,); measured once and kept in the database."""
    manifest = database.manifest
    if options.sensitivity == "layer":
        return {
            name: np.array([0.0 if c.level == FLOAT else _layer_loss(database, name, c) for c in choices])
            for name, choices in database.choices.items()
        }
    key = content_key(
        options.sensitivity,
        manifest.samples,
        manifest.ranges,
        recipe.ranges,
        SENSITIVE,
        [[x.name, x.choices, x.solutions] for x in manifest.layers],
    )
    path = database.folder / "sensitivity" / f"{options.sensitivity}.json"
    stored = _stored(path, key) if options.task is None else None  # a user's function may have changed
    if stored is None:
        stored = _measure(database, options, recipe, progress)
        if options.task is None:
            text = json.dumps({"key": key, "losses": stored}, indent=1, allow_nan=True)
            write_file(path, f"{text}\n".encode())
    return {name: np.array(values) for name, values in stored.items()}


def find_profile(
    database: Database,
    budget: Budget,
    losses: Mapping[str, Float64],
    options: SearchOptions,
    recipe: Recipe,
    progress: Progress,
    examiner: Examiner | None = None,
) -> Profile:
    """The choices that lose least within the budget; of the solver gmp, those of one threshold for all layers.

    examiner: of the metric that a budget of `drop` is about; None: the output loss. Raises RecipeError if no profile
    meets the budget.
    """
    if budget.kind == "drop":
        return _smallest(database, budget, losses, options, recipe, progress, examiner)
    costs = _costs(database, budget.kind, options.timings)
    limit = budget.fraction * costs.dense - costs.fixed
    check_reach(budget, costs.least, database.choices.values())
    names = list(database.choices)
    if recipe.solver == "gmp":
        magnitudes = [np.abs(layer.matrix()) for layer in database.layers]
        picked = one_threshold(magnitudes, [database.choices[name] for name in names], costs.layers, limit)
        return _profile(database, picked, losses, options.timings)
    values = [losses[name] for name in names]
    switches = None
    if budget.kind == "latency" and options.timings is not None and options.timings.switches:
        switches = _switches(database, options.timings)

    def solve(losses: Sequence[Float64]) -> tuple[int, ...]:
        return choose(losses, costs.layers, limit, switches=switches)

    picked = solve(values)
    if options.search == "spdy":
        judge = _judge(database, recipe)

        def evaluate(picked: Sequence[int]) -> float:
            return _loss(
                database, {n: database.choices[n][i] for n, i in zip(names, picked, strict=True)}, recipe, judge
            )

        picked, _ = spdy_search(values, solve, evaluate, recipe.seed, progress=lambda done: progress("search", done, 0))
    return _profile(database, picked, losses, options.timings)


def fastest_profiles(database: Database, losses: Mapping[str, Float64], timings: Timings) -> list[Profile]:
    """The fastest profile by a table, and the fastest all-integer one.

    A table knows least of single layers in float among integers, whose conversions depend on all that is around them.
    Of choices whose losses are finite.
    """
    costs, values = _costs(database, "latency", timings), [losses[name] for name in database.choices]
    integers = []
    for found, loss, cost in zip(database.choices.values(), values, costs.layers, strict=True):
        whole = np.array([choice.kind != "float" for choice in found]) & np.isfinite(loss)  # (choices,) bool
        integers.append(np.where(whole, cost, np.inf) if whole.any() else cost)
    switches = _switches(database, timings)
    picked = dict.fromkeys(choose_cheapest(values, allowed, switches) for allowed in (costs.layers, integers))
    profiles = [_profile(database, indices, losses, timings) for indices in picked]
    return [one for one in profiles if any(choice.level != FLOAT for choice in one.choices.values())]


def _profile(
    database: Database, picked: Sequence[int], losses: Mapping[str, Float64], timings: Timings | None
) -> Profile:
    choices = {name: found[i] for (name, found), i in zip(database.choices.items(), picked, strict=True)}
    predicted = float(sum(losses[name][i] for name, i in zip(choices, picked, strict=True)))
    shares = {}
    for kind in ("bops", "obc-bops", "flops", "size", *(("latency",) if timings is not None else ())):
        try:
            shares[kind] = _costs(database, kind, timings).share(picked)
            if kind == "latency" and timings is not None:
                shares[kind] += _switches(database, timings).total(picked) / _costs(database, kind, timings).dense
        except RecipeError:  # FLOPs of a graph without shapes are not known: only sizes are
            continue
    return Profile(choices, predicted, shares)


def _switches(database: Database, timings: Timings) -> Switches:
    """What converting between number formats takes, in seconds."""
    kinds = [[choice.kind for choice in found] for found in database.choices.values()]
    return Switches(kinds, [timings.switches.get(name, {}) for name in database.choices])


def _smallest(
    database: Database,
    budget: Budget,
    losses: Mapping[str, Float64],
    options: SearchOptions,
    recipe: Recipe,
    progress: Progress,
    examiner: Examiner | None,
) -> Profile:
    """The smallest profile whose measured drop stays under the budget's: bisection over sizes, on a log scale.

    The drop is that of the metric, or else the output loss on the samples that are held out; of models finished as the
    recipe says.
    """
    least = _costs(database, "size", None).least_of(list(losses.values()))
    check_smaller(budget, least)
    judge = Judge(database.dense, list(database.samples["held_out"].feeds()), recipe.execution())

    def drop(choices: Mapping[str, Choice]) -> float:
        if examiner is None or all(choice.level == FLOAT for choice in choices.values()):
            return _loss(database, choices, recipe, judge, finished=True)
        quick = recipe.model_copy(update=QUICK)
        return examiner.drop(database.write(choices, quick).model)

    low, high = np.log(least), 0.0  # of the fraction that is left
    best = None
    for step in range(STEPS + 1):
        middle = low if step == 0 else (low + high) / 2  # the smallest of all comes first
        size = Budget("size", min(float(np.exp(middle)) * (1 + 1e-9), 1 - 1e-9))
        profile = find_profile(database, size, losses, options, recipe, progress)
        found = drop(profile.choices)
        progress("drop", 1, STEPS + 1)
        if found <= budget.value:
            best, high = profile, middle
            if step == 0:
                break
        else:
            low = middle
    if best is None:
        raise RecipeError(f"{budget}: no smaller model stays under it; allow more, or build finer levels")
    return best


def _loss(
    database: Database, choices: Mapping[str, Choice], recipe: Recipe, judge: Judge, finished: bool = False
) -> float:
    """The output loss of a profile as it is stitched; finished: solved in order and corrected, as the recipe says."""
    if all(choice.level == FLOAT for choice in choices.values()):
        return 0.0
    quick = recipe.model_copy(update={**QUICK, "sequential": recipe.sequential and finished})
    if finished:
        return judge.loss(database.write(choices, quick).model)
    solutions = stitch(database, choices, quick)
    write(solutions, quick)
    return judge.loss(solutions.plan.model)


def _measure(database: Database, options: SearchOptions, recipe: Recipe, progress: Progress) -> dict[str, list[float]]:
    samples = first_samples(database.samples["calibration"], SENSITIVE)
    batches = list(samples.read(0, samples.count))
    candidates = {
        layer.name: [
            (choice, lambda layer=layer, choice=choice: database.weight(layer, choice))
            for choice in database.choices[layer.name]
        ]
        for layer in database.layers
        if len(database.choices[layer.name]) > 1
    }
    total = sum(len(found) - 1 for found in candidates.values())
    signed = TARGETS[recipe.target].signed_activations

    def span(value: str, bits: int) -> tuple[float, float, bool]:
        return *database.ranges[value].interval(recipe.ranges, bits, signed), signed

    how: dict[str, Any] = {
        "execution": recipe.execution(),
        "progress": lambda done: progress("sensitivity", done, total),
    }
    found: Mapping[str, Sequence[float]]
    if options.sensitivity == "task":
        found = task_sensitivity(database.graph, database.layers, candidates, batches, span, options.task, **how)
    else:
        found = output_sensitivity(database.graph, database.layers, candidates, batches, span, **how)
    return {name: [float(x) for x in found.get(name, [0.0])] for name in database.choices}


def _stored(path: Path, key: str) -> dict[str, list[float]] | None:
    try:
        plain = json.loads(path.read_bytes())
        return plain["losses"] if plain["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _layer_loss(database: Database, name: str, choice: Choice) -> float:
    return float(read_report(*database.solution_file(name, choice))["loss_relative"])


def _costs(database: Database, kind: str, timings: Timings | None) -> Costs:
    choices = [database.choices[layer.name] for layer in database.layers]
    return cost_table(kind, database.layers, database.costs, choices, database.target, timings)


def _judge(database: Database, recipe: Recipe) -> Judge:
    samples = first_samples(database.samples["calibration"], JUDGED)
    return Judge(database.dense, list(samples.feeds()), recipe.execution())
