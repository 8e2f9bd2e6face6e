"""Channels reordered before anything is solved, kept where outputs come closer to the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ..calibration.capture import plan_chunks, probe
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..calibration.split import CORRECTING, first_samples
from ..core.arrays import Float64, Int64
from ..core.level import Choice
from ..core.plural import counted
from ..core.progress import Feedback
from ..core.solution import Solution
from ..correction.transforms.channel_orders import note_orders
from ..correction.transforms.channel_permutation import best_order, costs_of, find_readers, reorder
from ..graph.fold import remove_unused
from ..graph.layers import find_layers
from ..graph.write import Writer
from ..solver import solve
from ..solver.linalg.threads import one_blas_thread
from .attempts import CorrectionReport, compared, unless_clearly_worse
from .layer import method_of, prepare_layer
from .options import OWN
from .plan import Folded, Plan, make_plan
from .recipe import Recipe
from .solve import capture_chunk
from .write import quantize_activations

HELD = 11  # bytes of a weight: what solving gives, 9, which is held until all layers are solved, and two models written


@dataclass(frozen=True)
class Reordering:
    """What was found of the channels of a folded model.

    folded: the model in the order that was found. orders: by the piece of its axes, where each channel comes from;
    none: they stay as they are. tried: how outputs changed. note: why nothing was tried, where it might have helped.
    """

    folded: Folded
    orders: Mapping[int, Int64] = field(default_factory=dict)
    tried: tuple[CorrectionReport, ...] = ()
    note: str | None = None


def permuted(
    folded: Folded, plan: Plan, calibrating: Samples, held_out: Samples, recipe: Recipe, feedback: Feedback
) -> tuple[Folded, tuple[CorrectionReport, ...]]:
    """The model with its channels reordered for the patterns of its layers, if that helps, and what was tried.

    plan: what its layers are to become. See `find_orders`.
    """
    if not recipe.correct:
        return folded, ()
    found = find_orders(folded, plan, calibrating, held_out, recipe, feedback)
    if found.note is not None:
        return replace(folded, notes=(*folded.notes, found.note)), ()
    return found.folded, found.tried


def reordered(folded: Folded, orders: Mapping[int, Int64]) -> Folded:
    """The model with its channels in these orders, which its metadata tells."""
    if not orders:
        return folded
    model = folded.model.clone()
    reorder(model, orders)
    note_orders(model, orders, folded.given)
    return replace(folded, model=model)


def find_orders(
    folded: Folded, plan: Plan, calibrating: Samples, held_out: Samples, recipe: Recipe, feedback: Feedback
) -> Reordering:
    """Orders of channels for the patterns of a model's layers, if they help.

    plan: what its layers are to become. Judged on models in which the layers that are to gain by it, and no others, are
    solved, by the ordered solver on few samples, and on the outputs for the samples held out. By its cost to all
    layers an order is better to begin with, so that it is undone only if outputs are clearly worse, by more than the
    standard error of the difference. Not tried where these layers, solved, take more than `Recipe.memory_bytes`.
    """
    levels = {name: choice.level for name, choice in plan.choices.items()}
    if recipe.solver not in OWN:
        return Reordering(folded)
    tables = {tie.layer: tie.table.weight_name for tie in plan.ties}
    readers = find_readers(folded.model, find_layers(folded.model)[0], levels, tables)
    if not readers:
        return Reordering(folded)
    if not recipe.correct:
        return Reordering(folded, note=f"channels were not reordered: --effort {recipe.effort} leaves them as they are")
    layers = {one.layer.name: one.layer for found in readers.values() for one in found}
    needed, memory = sum(layer.weight.size for layer in layers.values()) * HELD, recipe.memory_bytes()
    if needed > memory:
        solved = f"the solutions of {counted(len(layers), 'layer')} at once, {needed / 2**30:.1f} GiB"
        note = f"channels were not reordered: it takes {solved}, and {memory / 2**30:.1f} may be used (see --memory)"
        return Reordering(folded, note=note)
    with feedback.watch("correct"):
        samples, execution = first_samples(calibrating, CORRECTING), recipe.execution()
        profile = {name: plan.choices[name] for name in layers}
        before, importance = _solved(folded, profile, samples, recipe, feedback)
        orders = {}
        for piece, found in readers.items():
            costs = costs_of(found, importance, recipe.seed)
            order, rest = best_order(costs, recipe.seed, execution.threads)
            if rest < 1:
                orders[piece] = order
            feedback.progress("transform", 1, len(readers))
        if not orders:
            return Reordering(folded)
        other = reordered(folded, orders)
        after, _ = _solved(other, profile, samples, recipe, feedback)
        kind = "channel permutation"
        tried = compared(kind, len(orders), (before, after), folded.dense, held_out, execution, False)
        tried = unless_clearly_worse(tried)
    return Reordering(other, orders, (tried,)) if tried.kept else Reordering(folded, tried=(tried,))


@one_blas_thread()
def _solved(
    folded: Folded, profile: Mapping[str, Choice], samples: Samples, recipe: Recipe, feedback: Feedback
) -> tuple[ir.Model, dict[str, Float64]]:
    """The model with these layers solved as fast as goes, and by the name of each what a change of its columns costs,
    (columns,): 1 / (H⁻¹)_jj, what is left of H_jj when the other columns make up for it."""
    plan, execution = make_plan(folded, recipe, profile), recipe.execution()
    method = replace(method_of(recipe), solver="ordered", refine="none", device="cpu")
    values = [activation.value for activation in plan.ranged]
    taps = [use.tap.value for layer in plan.layers for use in layer.uses]
    shapes = probe(plan.model, [*values, *taps], samples, execution)
    chunks = plan_chunks(plan.layers, values, shapes, samples, recipe.memory_bytes(), recipe.damp is None)
    ranges: dict[str, RangeObserver] = {}
    solutions: dict[str, Solution] = {}
    importance: dict[str, Float64] = {}

    def progress(_: str, done: int, total: int) -> None:
        feedback.progress("transform", done, total)

    for chunk in chunks:
        captured = capture_chunk(plan.model, chunk, samples, recipe, progress, len(chunks))
        ranges |= captured.ranges
        for layer in chunk.layers:
            prepared = prepare_layer(layer, captured.of(layer), recipe)
            importance[layer.name] = 1 / np.diagonal(prepared.damped.inverse[0])
            solutions[layer.name] = solve(prepared.weight, prepared.damped, plan.choices[layer.name].level, method)
    writer = Writer(plan.model)
    for layer in plan.layers:
        writer.weight(layer, solutions[layer.name])
    quantize_activations(writer, plan, ranges, recipe.ranges)
    remove_unused(plan.model)
    return plan.model, importance
