"""Half precision on the way out: which float types a finished model is written in, and its solutions in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..calibration.split import JUDGING, first_samples
from ..core.arrays import Feed, Float32
from ..core.errors import RecipeError
from ..core.plural import counted
from ..core.solution import Solution
from ..graph.constants import trace
from ..graph.half import FLOAT, FLOAT16, NORMAL, FloatTypes
from ..graph.narrow import QUANTIZING, narrow, rounded
from ..graph.write import rewrite
from ..runtime.judge import Judge, less
from ..runtime.session import open_session
from ..targets.registry import TARGETS
from .draft import Draft
from .material import Material
from .recipe import Recipe

LARGEST = float(np.finfo(np.float16).max) / 2  # that a value may be on the samples: others may be larger
RISE = 0.02  # by which the output loss may rise
WATCHED = 64  # values that a run gives at a time
MOVING = {"Reshape", "Transpose", "Concat", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


@dataclass(frozen=True)
class Precision:
    """The float types that a model is written in; None: as it is. notes: what stays in float32, and why."""

    types: FloatTypes | None
    notes: tuple[str, ...] = ()

    def form(self, model: ir.Model) -> ir.Model:
        """The model in these types."""
        return model if self.types is None else narrow(model, self.types)

    def fit(self, draft: Draft) -> Draft:
        """The draft, its model changed in place, with scales and floats that these types hold exactly.

        A layer keeps its own where a scale is too small for all digits: its weight is then dequantized in float32.
        """
        if self.types is None:
            return draft
        solved = dict(draft.solved)
        for weight in draft.written:
            entry = solved[weight.layer]
            outputs = (str(use.node.outputs[0].name) for use in weight.uses)
            stored = self.types.stored is not None and entry.solution.codes is None
            stored &= entry.layer.weight_name not in self.types.wide
            if not stored and all(self.types.of(name) == FLOAT for name in outputs):
                continue
            solution = _rounded(entry.solution, self.types.half)
            rewrite(draft.plan.model, entry.layer, weight, solution)
            solved[weight.layer] = replace(entry, solution=solution)
        return replace(draft, solved=solved)


def _rounded(solution: Solution, half: ir.DataType) -> Solution:
    """A solution whose scales, or whose floats, are numbers of a half type; itself where they cannot be."""

    def nearest(array: Float32) -> Float32:
        return np.asarray(array.astype(half.numpy()).astype(np.float32))

    if solution.codes is None or solution.grid is None:
        weights = nearest(solution.weights)
        return replace(solution, weights=weights) if np.isfinite(weights).all() else solution
    scale = nearest(solution.grid.scale)
    if not np.isfinite(scale).all() or (scale < NORMAL[half]).any():
        return solution
    grid = replace(solution.grid, scale=scale)
    return replace(solution, grid=grid, weights=grid.dequantize(solution.codes))


def choose_precision(material: Material, draft: Draft, recipe: Recipe) -> Precision:
    """The types of the model as it was given, or float16 where the recipe asks for it."""
    types = material.folded.types
    if types is not None:
        notes = ["float16: the model is in half precision already"] if recipe.float16 else []
        return _beside_integers(draft.plan.model, Precision(types, tuple(notes)), recipe)
    if not recipe.float16:
        return Precision(None)
    if recipe.target == "deepsparse":
        raise RecipeError("float16: DeepSparse computes in float32 and integers; leave it out, or use another target")
    graph, io = draft.plan.model.graph, FLOAT16 if recipe.float16_io else FLOAT
    signature = {str(value.name): io for value in (*graph.inputs, *graph.outputs)}
    feeds = list(first_samples(material.held_out, JUDGING).feeds())
    judge = Judge(material.dense, feeds, recipe.execution())
    chosen = _beside_integers(draft.plan.model, Precision(FloatTypes(FLOAT16, signature)), recipe)
    assert chosen.types is not None
    measured = _measured(draft.plan.model, chosen.types, feeds, judge, recipe)
    return replace(measured, notes=(*chosen.notes, *measured.notes))


def _beside_integers(model: ir.Model, precision: Precision, recipe: Recipe) -> Precision:
    """The same, with what computes between quantized activations in float32 where a target fuses no other."""
    types, target = precision.types, TARGETS[recipe.target]
    if types is None or target.half_integers:
        return precision
    beside = []
    for node in model.graph:
        reads = any(v is not None and _dequantized(v) for v in node.inputs)
        gives = any(use.node.op_type == "QuantizeLinear" for value in node.outputs for use in value.uses())
        if (reads or gives) and node.op_type not in QUANTIZING:
            beside.append(node)
    kept = {name for name in _outputs(beside) if types.of(name) != FLOAT}
    if not kept:
        return precision
    note = f"{types.half.name.lower()}: {counted(len(kept), 'node')} beside quantized activations stay float32"
    types = replace(types, float32={*types.float32, *kept})
    return Precision(types, (*precision.notes, f"{note}: {target.title} fuses no others"))


def _dequantized(value: ir.Value) -> bool:
    """Whether a value is an activation that was quantized."""
    node = value.producer()
    source = None if node is None or node.op_type != "DequantizeLinear" else node.inputs[0]
    return source is not None and isinstance(trace(source), str)


def _measured(model: ir.Model, types: FloatTypes, feeds: Sequence[Feed], judge: Judge, recipe: Recipe) -> Precision:
    """These types, with nodes kept in float32 that overflow, and kinds of nodes that raise the output loss."""
    notes = []
    magnitudes = _magnitudes(model, feeds, recipe)
    large = {name for name, value in magnitudes.items() if not value <= LARGEST}  # NaN too
    for value in (*model.graph.inputs, *model.graph.outputs):
        if recipe.float16_io and value.name in large:
            holds = f"{value.name!r} holds values up to {magnitudes[str(value.name)]:.2g}, float16 up to 65504"
            raise RecipeError(f"float16_io: {holds}; leave it out, so that inputs and outputs stay float32")
    near = [
        node for node in model.graph if any(v is not None and v.name in large for v in (*node.inputs, *node.outputs))
    ]
    types = replace(types, float32={*types.float32, *_outputs(near)})
    if near:
        most = max(magnitudes[name] for name in large)
        notes.append(f"float16: {_in_words(near)} stay float32: values up to {most:.2g}, of 65504 that float16 holds")
    before, now = judge.losses(model), judge.losses(rounded(model, types))
    kinds = dict.fromkeys(n.op_type for n in model.graph if n.op_type not in MOVING and n not in near and _floats(n))
    while now.value > (1 + RISE) * before.value and less(before, now, clearly=True)[0] and kinds:
        trials = {kind: replace(types, float32={*types.float32, *_outputs(_of(model, kind))}) for kind in kinds}
        losses = {kind: judge.losses(rounded(model, trial)) for kind, trial in trials.items()}
        best = min(losses, key=lambda kind: losses[kind].value)
        if not less(losses[best], now, clearly=True)[0]:
            break
        kept = _in_words(_of(model, best))
        notes.append(f"float16: {kept} stay float32: output loss {now.value:.3g} → {losses[best].value:.3g}")
        types, now = trials[best], losses[best]
        del kinds[best]
    notes.append(
        f"float16: output loss {before.value:.3g} → {now.value:.3g} on {counted(len(before.by_sample), 'sample')}"
    )
    return Precision(types, tuple(notes))


def _of(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind and _floats(node)]


def _floats(node: ir.Node) -> bool:
    return any(value.dtype == FLOAT for value in node.outputs)


def _outputs(nodes: Sequence[ir.Node]) -> set[str]:
    return {str(value.name) for node in nodes for value in node.outputs}


def _in_words(nodes: Sequence[ir.Node]) -> str:
    return ", ".join(f"{count} {op}" for op, count in Counter(node.op_type for node in nodes).most_common())


def _magnitudes(model: ir.Model, feeds: Sequence[Feed], recipe: Recipe) -> Mapping[str, float]:
    """The largest magnitude of each float input, and of each float value that a node computes, by name, over these
    feeds."""
    names = [str(value.name) for node in model.graph for value in node.outputs if value.dtype == FLOAT]
    found = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for value in model.graph.inputs:
            if value.dtype == FLOAT and value.name in feed:
                largest = float(np.max(np.abs(feed[value.name]), initial=0))
                found[value.name] = max(found.get(value.name, 0.0), largest)
    for start in range(0, len(names), WATCHED):
        part = names[start : start + WATCHED]
        session = open_session(model, part, recipe.device, recipe.threads)
        for feed in feeds:
            for name, array in session.run(feed).items():
                found[name] = max(found[name], float(np.max(np.abs(array), initial=0)))
    return found
