"""The order that a database's layers have their channels in: found once, by the first build, for all of its levels.

An order changes nothing of what a model computes, and levels without groups of columns lose nothing by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.samples import Samples
from ..core.arrays import Array
from ..core.errors import DatabaseError, ModelError
from ..core.level import NM, Block, Choice, Level
from ..core.progress import Feedback
from ..correction.transforms.channel_orders import Order, orders_at, pieces_of
from ..correction.transforms.channel_permutation import group_size
from ..pipeline.attempts import CorrectionReport
from ..pipeline.permutation import Reordering, find_orders, reordered
from ..pipeline.plan import Folded, make_plan
from ..pipeline.recipe import Recipe
from .files import REPAIR, content_key, read_arrays, write_arrays

FILE = "orders.safetensors"
HALF = 0.5
ELSEWHERE = "a database keeps that: build one in another folder to have them reordered"


def find_order(
    folded: Folded,
    choices: Mapping[str, Sequence[Choice]],
    calibrating: Samples,
    held_out: Samples,
    recipe: Recipe,
    feedback: Feedback,
) -> Reordering:
    """The order for what each layer can become, judged at one level of each: the pattern with nearest to half zeros.

    choices: by layer. See `pipeline.permutation.find_orders`. What keeps it from being looked for is told by every
    model of a database, which keeps the order that its first build left.
    """
    profile = {}
    for name, options in choices.items():
        if grouped := [choice for choice in options if group_size(choice.level) is not None]:
            profile[name] = min(grouped, key=lambda choice: abs(_zeros(choice.level) - HALF))
    if not profile:
        return Reordering(folded)
    found = find_orders(folded, make_plan(folded, recipe, profile), calibrating, held_out, recipe, feedback)
    return found if found.note is None else replace(found, note=f"{found.note}; {ELSEWHERE}")


def write_order(folder: Path, folded: Folded, found: Reordering) -> str | None:
    """Write what was found, of a folded model; the file's key, None where nothing was tried. Raises OutputError."""
    if not found.tried and found.note is None:
        (folder / FILE).unlink(missing_ok=True)
        return None
    places = orders_at(folded.model, found.orders)
    assert len(places) == len(found.orders), "what is reordered is made by a node"
    arrays = {str(number): place.order for number, place in enumerate(places)}
    info = {
        "places": [[place.value, place.axis, place.first] for place in places],
        "tried": [asdict(attempt) for attempt in found.tried],
        "notes": [] if found.note is None else [found.note],
    }
    key = _key(arrays, info)
    write_arrays(folder / FILE, arrays, key, info)
    return key


def read_order(
    folder: Path, key: str | None, folded: Folded
) -> tuple[Folded, tuple[CorrectionReport, ...], tuple[str, ...]]:
    """The folded model in its order, what was tried to find it, and what else is to be told of it.

    key: of the file; None: the order is the model's own. Raises DatabaseError.
    """
    if key is None:
        return folded, (), ()
    path = folder / FILE
    arrays, info = read_arrays(path, key)
    named = enumerate(info["places"])
    places = [Order(value, axis, first, arrays[str(number)]) for number, (value, axis, first) in named]
    if any(not np.array_equal(np.sort(place.order), np.arange(len(place.order))) for place in places):
        raise DatabaseError(f"{path} is damaged: it has no orders of channels; {REPAIR}")
    try:
        orders = pieces_of(folded.model, places)
    except ModelError as error:
        what = "this version finds other channels in the model"
        raise DatabaseError(f"{path}: {what}; build the database again") from error
    tried = tuple(CorrectionReport(**{**attempt, "kinds": tuple(attempt["kinds"])}) for attempt in info["tried"])
    return reordered(folded, orders), tried, tuple(info["notes"])


def _key(arrays: Mapping[str, Array], info: Mapping[str, Any]) -> str:
    return content_key(info, *(arrays[name] for name in sorted(arrays, key=int)))


def _zeros(level: Level) -> float:
    """The fraction of a layer's weights that is zero at a level whose columns lie in groups."""
    match level.sparsity:
        case NM(n, m):
            return 1 - n / m
        case Block(_, sparsity):
            return sparsity
    return 0.0
