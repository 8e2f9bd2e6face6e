"""Write solutions, tables and Q/DQ pairs into a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from ..calibration.capture import Chunk, capture
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Batch, Samples
from ..core.arrays import Feed
from ..core.level import Choice
from ..correction.sites import bias_sites
from ..correction.statistics import add_to_bias
from ..graph.fold import remove_unused
from ..graph.write import Writer, WrittenWeight, rewrite
from ..runtime.session import Execution
from ..solver.baselines import uncompensated
from ..solver.grid import GridMethod
from ..targets.engine import batch_of
from ..targets.registry import TARGETS, save_for
from .layer import EmbeddingReport, Solved, round_embedding, tied_table
from .plan import Folded, Plan, make_plan
from .recipe import Recipe
from .solve import Solutions

COARSER = (
    "rows are next to nothing beside their bias, which no int32 would hold on their scale: they have a coarser one"
)


def write(
    solutions: Solutions, recipe: Recipe
) -> tuple[list[WrittenWeight], list[EmbeddingReport], dict[str, tuple[float, float]]]:
    """Write solutions, tables and Q/DQ pairs into the plan's graph. Returns where, what, and each range."""
    plan = solutions.plan
    biases = bias_sites(plan.model, plan.layers)
    writer = Writer(plan.model)
    written, tied = [], {tie.layer for tie in plan.ties}
    for name, entry in solutions.solved.items():
        alone = TARGETS[recipe.target].one_reader(entry.layer, plan.choices[name])
        copied = alone and len(entry.layer.uses) > 1
        parts = [replace(entry.layer, uses=(use,)) for use in entry.layer.uses] if copied else [entry.layer]
        written += [writer.weight(part, entry.solution, alone and name in tied) for part in parts]
        if entry.solution.bias is not None:
            add_to_bias(plan.model, biases[name], entry.solution.bias)
    embeddings = []
    for embedding in plan.embeddings:
        codes, grid, block, report = round_embedding(embedding, recipe)
        writer.embedding(embedding, codes, grid, block, TARGETS[recipe.target].tables_in_blocks)
        embeddings.append(report)
    places = {weight.layer: weight for weight in written}
    for tie in plan.ties:
        entry = solutions.solved[tie.layer]
        writer.tied(tie.table, entry.layer, places[tie.layer])
        embeddings.append(tied_table(tie, entry))
    intervals = quantize_activations(writer, plan, solutions.ranges, recipe.ranges, solutions.stretches)
    remove_unused(plan.model)
    return written, embeddings, intervals


def with_copies(solved: Mapping[str, Solved], written: Sequence[WrittenWeight]) -> Mapping[str, Solved]:
    """The layers with reports that count every copy of a weight, where nodes that share it have one each."""
    copies = Counter(weight.layer for weight in written)
    changed = dict(solved)
    for name, count in copies.items():
        if count > 1:
            report = solved[name].report
            note = f"{count} nodes share this weight, and each has a copy: the kernel takes no shared one"
            report = replace(report, bytes_after=count * report.bytes_after, notes=(*report.notes, note))
            changed[name] = replace(solved[name], report=report)
    return changed


def fit_to_biases(
    model: ir.Model, solved: Mapping[str, Solved], written: Sequence[WrittenWeight], target: str
) -> Mapping[str, Solved]:
    """Give the layers of a written model, in place, scales that their biases fit. Returns them as they are then."""
    changed = dict(solved)
    for weight in written:
        entry = solved[weight.layer]
        solution = TARGETS[target].fit_to_biases(entry.layer, entry.solution)
        if solution is entry.solution:
            continue
        rewrite(model, entry.layer, weight, solution)
        rows = int((solution.weights != entry.solution.weights).any(axis=2).sum())
        report = entry.report
        if rows and not any(note.endswith(COARSER) for note in report.notes):
            report = replace(
                report, notes=(*report.notes, f"{rows} of {entry.layer.groups * entry.layer.rows} {COARSER}")
            )
        changed[weight.layer] = replace(entry, solution=solution, report=report)
    return changed


def quantize_activations(
    writer: Writer,
    plan: Plan,
    ranges: Mapping[str, RangeObserver],
    method: Literal["mse", "minmax", "percentile"],
    stretches: Mapping[tuple[str, int], float] | None = None,
) -> dict[str, tuple[float, float]]:
    """Write a plan's Q/DQ pairs. Returns the interval of each that has a range of calibration data.

    ranges: what was seen of those; method: how their intervals are found; stretches: see `Solutions`.
    """
    intervals: dict[str, tuple[float, float]] = {}
    for one in plan.ranged:
        low, high = ranges[one.value].interval(method, one.bits, one.symmetric)
        stretch = (stretches or {}).get((one.value, one.bits), 1.0)
        found = (stretch * low, stretch * high)
        writer.activation(one, *found)
        intervals[one.value if one.value not in intervals else f"{one.value} ({one.bits} bits)"] = found
    for one in plan.activations:  # last: what they read may be dequantized itself by then
        if one.dynamic:
            writer.dynamic(one)
    return intervals


def write_quickly(folded: Folded, profile: Mapping[str, Choice], feed: Feed, recipe: Recipe, path: Path) -> None:
    """Write a model with this profile by rounding and magnitude pruning; activations span what the feed shows."""
    plan = make_plan(folded, recipe, profile)
    count = batch_of(feed)
    batch = Batch({name: np.asarray(array) for name, array in feed.items()}, 0, count)
    samples = Samples(count, "timing", lambda start, stop: iter([batch]), step=count, batch=count)
    values = tuple(dict.fromkeys(activation.value for activation in plan.ranged))
    ranges = capture(plan.model, Chunk((), values), samples, execution=Execution("cpu")).ranges if values else {}
    write_rounded(plan, ranges, recipe, "minmax", "minmax")
    save_for(recipe.target, recipe.form, plan.model, path)


def write_rounded(
    plan: Plan,
    ranges: Mapping[str, RangeObserver],
    recipe: Recipe,
    grid: GridMethod,
    spans: Literal["mse", "minmax", "percentile"],
) -> None:
    """Write a plan's layers by rounding and magnitude pruning, and its Q/DQ pairs, into its model.

    grid, spans: how scales of weights and ranges of activations are found.
    """
    writer, shared = Writer(plan.model), TARGETS[recipe.target].shared_scale
    for layer in plan.layers:
        writer.weight(layer, uncompensated(layer.matrix(), plan.choices[layer.name].level, grid, shared))
    quantize_activations(writer, plan, ranges, spans)
    remove_unused(plan.model)
