"""Write solutions, tables and Q/DQ pairs into a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..calibration.capture import Chunk, capture
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Batch, Samples
from ..core.arrays import Feed
from ..core.level import Choice
from ..graph.fold import remove_unused
from ..graph.write import Activation, Writer, WrittenWeight
from ..runtime.session import Execution
from ..solver.baselines import uncompensated
from ..targets.engine import batch_of
from ..targets.registry import TARGETS, save_for
from .layer import EmbeddingReport, round_embedding
from .plan import Folded, make_plan
from .recipe import Recipe
from .solve import Solutions


def write(
    solutions: Solutions, recipe: Recipe
) -> tuple[list[WrittenWeight], list[EmbeddingReport], dict[str, tuple[float, float]]]:
    """Write solutions, tables and Q/DQ pairs into the plan's graph. Returns where, what, and each range."""
    plan, ranges = solutions.plan, solutions.ranges
    writer = Writer(plan.model)
    written = [writer.weight(entry.layer, entry.solution) for entry in solutions.solved.values()]
    embeddings = []
    for embedding in plan.embeddings:
        codes, grid, block, report = round_embedding(embedding, recipe)
        writer.embedding(embedding, codes, grid, block)
        embeddings.append(report)
    intervals: dict[str, tuple[float, float]] = {}
    for activation in plan.activations:
        found = interval(activation, ranges, recipe)
        writer.activation(activation, *found)
        name = activation.value if activation.value not in intervals else f"{activation.value} ({activation.bits} bits)"
        intervals[name] = found
    remove_unused(plan.model)
    return written, embeddings, intervals


def interval(activation: Activation, ranges: Mapping[str, RangeObserver], recipe: Recipe) -> tuple[float, float]:
    """The interval that an activation's integers span."""
    return ranges[activation.value].interval(recipe.ranges, activation.bits, activation.symmetric)


def write_quickly(folded: Folded, profile: Mapping[str, Choice], feed: Feed, recipe: Recipe, path: Path) -> None:
    """Write a model with this profile by rounding and magnitude pruning; activations span what the feed shows."""
    plan = make_plan(folded, recipe, profile)
    count = batch_of(feed)
    batch = Batch({name: np.asarray(array) for name, array in feed.items()}, 0, count)
    samples = Samples(count, "timing", lambda start, stop: iter([batch]), step=count, batch=count)
    values = tuple(dict.fromkeys(activation.value for activation in plan.activations))
    ranges = capture(plan.model, Chunk((), values), samples, execution=Execution("cpu")).ranges if values else {}
    writer = Writer(plan.model)
    for layer in plan.layers:
        level = plan.choices[layer.name].level
        writer.weight(layer, uncompensated(layer.matrix(), level, "minmax", TARGETS[recipe.target].shared_scale))
    for activation in plan.activations:
        low, high = ranges[activation.value].interval("minmax", activation.bits, activation.symmetric)
        writer.activation(activation, low, high)
    remove_unused(plan.model)
    save_for(recipe.target, recipe.weight_form, plan.model, path)
