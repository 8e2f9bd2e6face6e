"""Measures what every layer takes at every level: the whole model at each level, timed by the engine's own profile.

The model is written at one level throughout, by rounding and magnitude pruning, as run time does not depend on the
quality of the weights; an engine then shares its time out among kernels, and these among layers. So operators between
layers count for the layer that feeds them, in the type that it gives them. Times are scaled so that they add up to the
time of the whole model as it runs without a profiler.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...core.arrays import Feed
from ...core.errors import RecipeError
from ...core.level import FLOAT, Block, Choice, Unstructured
from ...core.machine import this_machine, workers
from ...core.progress import Progress
from ...pipeline.recipe import Recipe
from ...pipeline.speed import Subject, time_file
from ...pipeline.write import write_quickly
from ...targets.engine import batch_of
from ...targets.registry import TARGETS, save_for
from .table import Timings

RUN_SECONDS = 1.0  # that a file is timed for, and as long under the profiler
TIMED = 6  # sparsities of a ladder that are timed; those in between are interpolated


def time_layers(
    subject: Subject,
    choices: Mapping[str, Sequence[Choice]],
    feed: Feed,
    recipe: Recipe,
    progress: Progress = lambda stage, done, total: None,
) -> Timings:
    """Seconds of every layer at each of its choices, for `recipe.target`, one feed at a time.

    choices: what each layer may become. feed: the input to run, along whose first axis lie the samples; its values set
    the ranges of activations. Raises EngineError if the engine is not here or refuses a file.
    """
    version = TARGETS[recipe.target].engine.version()
    wanted = list(dict.fromkeys(choice for found in choices.values() for choice in found if choice.level != FLOAT))
    timed = timed_choices(wanted)
    progress("time", 0, len(timed) + 1)
    dense_seconds, rest = time_profile(subject, {}, feed, recipe)
    found = {name: {str(Choice(FLOAT)): seconds} for name, seconds in dense_seconds.items()}
    progress("time", 1, len(timed) + 1)
    for choice in timed:
        profile = {name: choice for name, allowed in choices.items() if choice in allowed}
        seconds, _ = time_profile(subject, profile, feed, recipe)
        for name in profile:
            found[name][str(choice)] = seconds[name]
        progress("time", 1, len(timed) + 1)
    between = [choice for choice in wanted if choice not in timed]
    for name, allowed in choices.items():
        found[name] |= {str(x): _interpolated(x, timed, found[name]) for x in between if x in allowed}
    about = (version, this_machine(), batch_of(feed), workers(recipe.threads), tuple(map(str, between)))
    return Timings(found, rest, *about, time_switches(subject, choices, found, feed, recipe))


def time_switches(
    subject: Subject,
    choices: Mapping[str, Sequence[Choice]],
    seconds: Mapping[str, Mapping[str, float]],
    feed: Feed,
    recipe: Recipe,
) -> dict[str, dict[str, float]]:
    """What conversions take where a layer in integers follows one in float, and the other way round.

    Measured in two models in which every second layer is in integers, as what its layers take there beyond `seconds`.
    """
    integer = {
        name: next((c for c in allowed if c.kind != "float" and str(c) in seconds[name]), None)
        for name, allowed in choices.items()
    }
    names = [layer.name for layer in subject.layers]
    found: dict[str, dict[str, float]] = {}
    for turn in (0, 1):
        profile = {
            name: choice
            for position, name in enumerate(names)
            if position % 2 == turn and (choice := integer.get(name)) is not None
        }
        if not profile:
            continue
        measured, _ = time_profile(subject, profile, feed, recipe)
        for name in names:
            choice = profile.get(name, Choice(FLOAT))
            found.setdefault(name, {})[choice.kind] = max(measured[name] - seconds[name][str(choice)], 0.0)
    return found


def time_profile(
    subject: Subject, profile: Mapping[str, Choice], feed: Feed, recipe: Recipe
) -> tuple[dict[str, float], float]:
    """Seconds of each layer in the model with this profile, its other layers in float, and of what belongs to none."""
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        path = Path(folder) / "model.onnx"
        if profile:
            write_quickly(subject.folded, profile, feed, recipe, path)
        else:
            save_for(recipe.target, recipe.form, subject.folded.model, path)
        return time_file(subject, path, feed, recipe, RUN_SECONDS)


def timed_choices(wanted: Sequence[Choice]) -> list[Choice]:
    """Of each ladder of sparsities the choices to be timed, both ends among them; of what is no ladder all."""
    ladders: dict[object, list[Choice]] = {}
    for choice in wanted:
        ladders.setdefault(_ladder(choice), []).append(choice)
    found = []
    for key, members in ladders.items():
        members = sorted(members, key=_sparsity)
        if key is None or len(members) <= TIMED:
            found += members
        else:
            picked = np.unique(np.linspace(0, len(members) - 1, TIMED).round().astype(int))
            found += [members[i] for i in picked]
    return found


def _ladder(choice: Choice) -> object:
    """What the choices of a ladder share; None for what belongs to none."""
    sparsity = choice.level.sparsity
    if not isinstance(sparsity, Block | Unstructured):
        return None
    return (
        type(sparsity),
        getattr(sparsity, "size", 1),
        choice.level.bits,
        choice.level.symmetric,
        choice.activation_bits,
        choice.dynamic,
    )


def _sparsity(choice: Choice) -> float:
    return float(getattr(choice.level.sparsity, "sparsity", 0.0))


def _interpolated(choice: Choice, timed: Sequence[Choice], seconds: Mapping[str, float]) -> float:
    """The time between those of the nearest sparsities of the same ladder."""
    points = sorted(
        (_sparsity(other), seconds[str(other)])
        for other in timed
        if _ladder(other) == _ladder(choice) and str(other) in seconds
    )
    if not points:
        raise RecipeError(f"no time of a level near {choice} was measured; time more levels")
    x, y = zip(*points, strict=True)
    return float(np.interp(_sparsity(choice), x, y))
