"""Transforms of the folded model before anything is solved, kept where outputs come closer to the dense model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from ..calibration.samples import Samples
from ..calibration.split import CORRECTING, first_samples
from ..core.arrays import Array
from ..core.progress import Feedback
from ..correction.transforms.scale_migration import BITS, best_factors, look_at_channels, migrate, movable
from ..graph.layers import find_layers
from ..runtime.session import open_session
from ..targets.registry import TARGETS
from .attempts import CorrectionReport, compared
from .permutation import permuted
from .plan import Folded, Plan, make_plan
from .recipe import Recipe
from .solve import capture_ranges
from .write import write_rounded


def transformed(
    folded: Folded, plan: Plan, calibrating: Samples, held_out: Samples, recipe: Recipe, feedback: Feedback
) -> tuple[Folded, tuple[CorrectionReport, ...]]:
    """The model with scale moved from inputs into weights and channels reordered, where that helps, and what was tried.

    plan: what its layers are to become.
    """
    moved, tried = _migrated(folded, plan, calibrating, held_out, recipe, feedback)
    reordered, more = permuted(moved, plan, calibrating, held_out, recipe, feedback)
    return reordered, (*tried, *more)


def _migrated(
    folded: Folded, plan: Plan, calibrating: Samples, held_out: Samples, recipe: Recipe, feedback: Feedback
) -> tuple[Folded, tuple[CorrectionReport, ...]]:
    """The model with scale moved from inputs into weights, if that helps, and what was tried.

    plan: what its layers are to become. Judged on models whose layers are rounded to nearest, on the samples held out.
    """
    tied = {tie.layer for tie in plan.ties}  # a weight that a table reads too stays what it is
    quantized = {name for name, choice in plan.choices.items() if choice.activation_bits == BITS} - tied
    if not recipe.correct or not TARGETS[recipe.target].divided_inputs or not quantized:
        return folded, ()
    readers = movable(find_layers(folded.model)[0], quantized)
    if not readers:
        return folded, ()
    with feedback.watch("correct"):
        # Of all samples: a channel that is quiet in most would get a factor with which it is the loudest in the others.
        channels = look_at_channels(list(readers), _runs(folded.model, list(readers), calibrating, recipe, feedback))
        factors = {}
        for value, layers in readers.items():
            weights = [layer.matrix()[0] for layer in layers]  # (rows, channels) float32 each
            if (found := best_factors(channels[value], weights)) is not None:
                factors[value] = found
        if not factors:
            return folded, ()
        model = folded.model.clone()
        migrate(model, movable(find_layers(model)[0], quantized), factors)
        other = replace(folded, model=model)
        samples = first_samples(calibrating, CORRECTING)
        models = (_rounded(each, samples, recipe, feedback) for each in (folded, other))
        tried = compared("scale migration", len(factors), models, folded.dense, held_out, recipe.execution(), True)
    return (other if tried.kept else folded), (tried,)


def _runs(
    model: ir.Model, values: Sequence[str], samples: Samples, recipe: Recipe, feedback: Feedback
) -> Iterator[Mapping[str, Array]]:
    """Values of a model, batch by batch."""
    session = open_session(model, values, recipe.device, recipe.threads)
    for batch in samples.read(0, samples.count):
        yield samples.outputs(session.run, batch)
        feedback.progress("transform", batch.count, samples.count)


def _rounded(folded: Folded, samples: Samples, recipe: Recipe, feedback: Feedback) -> ir.Model:
    """The model with its layers rounded to nearest, activations on ranges of these samples."""
    plan = make_plan(folded, recipe)
    ranges = capture_ranges(plan, samples, recipe, replace(feedback, progress=lambda *_: None))
    write_rounded(plan, ranges, recipe, recipe.grid, recipe.ranges)
    return plan.model
