"""Corrects the statistics of a model that was just written, and keeps what helps on samples that were held out."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..calibration.split import CORRECTING, ENOUGH, JUDGING, TRAINING, first_samples
from ..core.arrays import Feed, Float32
from ..core.errors import RecipeError
from ..core.progress import Progress
from ..core.solution import Solution
from ..correction.sites import Kind, Site, find_sites
from ..correction.statistics import WrittenLayer, correct
from ..graph.layers import find_layers
from ..graph.write import Writer, WrittenWeight
from ..runtime.judge import Judge, less
from ..targets.registry import TARGETS
from .attempts import CorrectionReport, compared, must_be_clear
from .layer import Solved, solving_device
from .material import Material
from .plan import Plan
from .recipe import Recipe

KINDS: tuple[Kind, ...] = ("batchnorm", "norm", "bias")


def sites_of(plan: Plan, dense: ir.Model, recipe: Recipe) -> list[Site]:
    """Where the statistics of a plan's model can be corrected. To be found before it is written into.

    dense: the model as the user gave it, in which BatchNormalization is not folded yet. Where the rows of integer
    weights are to share a scale, none takes a factor of its own: means alone are corrected. Layers that the recipe
    skips stay as they are.
    """
    norms = {str(node.outputs[0].name) for node in dense.graph if node.op_type == "BatchNormalization"}
    layers, shared = find_layers(plan.model)[0], TARGETS[recipe.target].shared_scale
    for layer in layers:
        choice = plan.choices.get(layer.name)
        if shared and layer.rows > 1 and choice is not None and choice.level.bits is not None:
            norms -= {str(use.node.outputs[0].name) for use in layer.uses}
    skipped = {layer.name for layer in layers if recipe.choose(layer.name) is None}
    return [site for site in find_sites(plan.model, layers, norms) if site.layer not in skipped]


def correct_statistics(
    material: Material,
    plan: Plan,
    reference: ir.Model,
    sites: Sequence[Site],
    solved: Mapping[str, Solved],
    written: Sequence[WrittenWeight],
    recipe: Recipe,
    progress: Progress,
) -> tuple[Mapping[str, Solved], tuple[CorrectionReport, ...]]:
    """Correct the plan's model, in place. Returns the layers as they are then, and what was tried.

    reference, sites: the plan's model and its sites before it was written into. All kinds together come first; if they
    do not lower the output loss on samples that they did not look at, each on its own, and what still does not is
    dropped; see `must_be_clear`.
    """
    kinds = tuple(kind for kind in KINDS if any(site.kind == kind for site in sites))
    if not kinds:
        return solved, ()
    samples = first_samples(material.feeds, CORRECTING)
    feeds = list(samples.feeds())
    unseen: list[Feed] = []
    if material.held_out.count < ENOUGH:
        unseen = list(first_samples(material.feeds.part(samples.count, material.feeds.count), JUDGING).feeds())
    judge = Judge(material.dense, [*material.held_out.feeds(), *unseen], recipe.execution())
    weights = {weight.layer: weight for weight in written}
    attempts: list[CorrectionReport] = []
    loss = judge.losses(plan.model)
    rounds = 1 if len(kinds) == 1 else 2

    def attempt(chosen: tuple[Kind, ...]) -> bool:
        nonlocal loss, solved
        before = _Snapshot(plan.model)
        found: Sequence[Site] = [site for site in sites if site.kind in chosen]
        _, solutions = correct(
            reference,
            plan.model,
            found,
            {name: WrittenLayer(entry.layer, entry.solution, weights[name]) for name, entry in solved.items()},
            feeds,
            execution=recipe.execution(),
            progress=lambda done: progress("correct", done, rounds * len(sites)),
        )
        after = judge.losses(plan.model)
        kept, error = less(after, loss, must_be_clear(plan.choices))
        attempts.append(CorrectionReport(chosen, len(found), loss.value, after.value, error, kept))
        if kept:
            loss = after
            solved = {name: replace(entry, solution=solutions[name]) for name, entry in solved.items()}
        else:
            before.restore()
        return kept

    if attempt(kinds):
        progress("correct", (rounds - 1) * len(sites), rounds * len(sites))
    elif rounds > 1:
        for kind in kinds:
            attempt((kind,))
    return solved, tuple(attempts)


def check_trainable(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe asks for what needs gradients, and what these need is not installed."""
    if recipe.global_adaprune:
        require_torch("global AdaPrune")
    if recipe.reconstruction:
        require_torch("--reconstruction")
    elif recipe.effort == "best" and recipe.reconstruction is None:
        require_torch("--effort best")


def require_torch(what: str) -> None:
    """Raise RecipeError if what the user asked for needs gradients, and torch and onnx2torch are not installed."""
    if missing := missing_for_training():
        raise RecipeError(f"{what} needs {missing}, not installed; install onnx-obc[torch], or leave it out")


def missing_for_training() -> str:
    """What gradients need and is not installed, in words; empty if nothing is missing."""
    return " and ".join(name for name in ("torch", "onnx2torch") if importlib.util.find_spec(name) is None)


def train_all(
    material: Material,
    plan: Plan,
    solved: Mapping[str, Solved],
    recipe: Recipe,
    progress: Progress,
) -> tuple[Mapping[str, Solved], tuple[CorrectionReport, ...]]:
    """Global AdaPrune, before the plan's model is written into: its biases are set, and the trained layers returned.

    Judged without activations quantized and before other corrections; dropped if it makes the held-out loss worse.
    """
    from ..correction.global_adaprune import Training, adaprune

    samples = first_samples(material.feeds, TRAINING)
    feeds = list(samples.feeds())
    solutions = {name: entry.solution for name, entry in solved.items()}
    copy = plan.model.clone()
    found = adaprune(
        copy,
        find_layers(copy)[0],
        solutions,
        feeds,
        Training(recipe.global_adaprune, recipe.seed),
        device=solving_device(recipe.device),
        progress=lambda done: progress("adaprune", done, recipe.global_adaprune),
    )
    models = (
        _float_model(plan, weights, biases) for weights, biases in ((solutions, {}), (found.solutions, found.biases))
    )
    clearly = must_be_clear(plan.choices)
    tried = compared(
        "global AdaPrune", len(solved), models, material.dense, material.held_out, recipe.execution(), clearly
    )
    if tried.kept:
        _set_biases(plan.model, found.biases)
        note = "trained by global AdaPrune afterwards: the layer losses here are those before"
        solved = {
            name: replace(
                entry,
                solution=found.solutions[name],
                report=replace(entry.report, notes=(*entry.report.notes, note)),
            )
            for name, entry in solved.items()
        }
    return solved, (tried,)


def _float_model(plan: Plan, solutions: Mapping[str, Solution], biases: Mapping[str, Float32]) -> ir.Model:
    """The plan's model with these weights and biases, all in float."""
    model = plan.model.clone()
    writer = Writer(model)
    for layer in find_layers(model)[0]:
        if layer.name in solutions:
            writer.weight(layer, replace(solutions[layer.name], codes=None, grid=None))
    _set_biases(model, biases)
    return model


def _set_biases(model: ir.Model, biases: Mapping[str, Float32]) -> None:
    for name, value in biases.items():
        model.graph.initializers[name].const_value = ir.Tensor(np.ascontiguousarray(value), name=name)


class _Snapshot:
    """What of a model a correction may change, to go back to."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._constants = {name: value.const_value for name, value in model.graph.initializers.items()}
        self._inputs = {node: tuple(node.inputs) for node in model.graph}

    def restore(self) -> None:
        """Make the model again what it was."""
        graph = self._model.graph
        for node, inputs in self._inputs.items():
            if tuple(node.inputs) != inputs:
                node.resize_inputs(len(inputs))
                for index, value in enumerate(inputs):
                    node.replace_input_with(index, value)
        for name in [name for name in graph.initializers if name not in self._constants]:
            del graph.initializers[name]
        for name, tensor in self._constants.items():
            graph.initializers[name].const_value = tensor
