"""A written copy of a model, whose parts are trained one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..calibration.split import CORRECTING, TRAINING, first_samples
from ..core.arrays import Array, Float32
from ..core.errors import ModelError, one_line
from ..core.solution import Solution
from ..correction.reconstruction import (
    SPARED,
    Reconstructed,
    Training,
    can_be_taken_apart,
    examples_of,
    reconstruct,
    spare,
)
from ..correction.sites import bias_sites
from ..correction.statistics import WrittenLayer, correct
from ..correction.torch_graph import check_agreement, places_of, to_torch
from ..correction.units import Unit, chain_units, layers_of
from ..graph.edit import add_initializer, names_of, submodel, take_name
from ..graph.fold import remove_unused
from ..graph.layers import find_layers
from ..graph.write import ActivationPair, WrittenWeight, activation_pairs, rewrite, unquantized
from ..runtime.stepper import Stepper
from ..targets.expected import stretch_to_clip
from ..targets.registry import TARGETS
from .correct import sites_of
from .layer import Solved, solving_device
from .material import Material
from .plan import Plan
from .recipe import Recipe
from .solve import Solutions
from .write import write

VERSION = 4  # rises when training comes to something else: parts that are kept are then trained anew
CLOSE = 1e-6  # of a range, by which it stays below the end of a Clip, whatever the rounding


class TrainingWalk:
    """A written copy of a model that is trained part by part, in the order of the graph, beside the dense one.

    steps: for each part. option: what asked for it. units: the parts. trainable: the names of the layers that can be:
    of those with several uses, or with a table that reads the same integers, none. solved: the layers as they are now;
    better: the names of those that were trained.
    stretches: what ranges of activations were multiplied by, see `Solutions`.
    """

    def __init__(self, solutions: Solutions, material: Material, recipe: Recipe, steps: int, option: str) -> None:
        plan = self._plan = solutions.plan
        self._recipe, self._steps, self._option = recipe, steps, option
        self._dense_model = plan.model.clone()
        self.units: Sequence[Unit] = chain_units(plan.model, find_layers(plan.model)[0])
        tied = {tie.layer for tie in plan.ties}
        self.trainable = {layer.name for layer in plan.layers if len(layer.uses) == 1} - tied
        self._biases = bias_sites(plan.model, plan.layers)
        self._begun = {name: self._bias(name) for name in self._biases}
        sites = [site for site in sites_of(plan, material.dense, recipe) if site.kind != "norm"]
        written, _, _ = write(solutions, recipe)
        self._written = {weight.layer: weight for weight in written}
        layers = {
            name: WrittenLayer(entry.layer, entry.solution, self._written[name])
            for name, entry in solutions.solved.items()
        }
        few = list(first_samples(material.feeds, CORRECTING).feeds())
        _, now = correct(self._dense_model, plan.model, sites, layers, few, execution=recipe.execution())
        self.solved = {name: replace(entry, solution=now[name]) for name, entry in solutions.solved.items()}
        self.better: set[str] = set()
        self.stretches: dict[tuple[str, int], float] = {}
        ranged = {(one.value, one.bits) for one in plan.ranged}
        self._pairs = {x.scale: x for x in activation_pairs(plan.model) if (x.value, x.bits) in ranged}
        self._store, self._key = material.trained, ""
        if self._store is not None:
            self._key = self._store.key(*_start(solutions, recipe, steps))
        self._floats = _with_floats(plan, self.solved, written)
        samples = first_samples(material.feeds, TRAINING)
        feeds = list(samples.feeds())
        half = replace(recipe.execution(), memory=recipe.memory_bytes() / 2)
        self._dense, self._compressed = Stepper(self._dense_model, feeds, half), Stepper(plan.model, feeds, half)
        parts = [part for unit in self.units for part in (unit, *unit.blocks)]
        self._sources = {part: _sources(part) for part in parts}  # in the order in which they may be asked for
        self._ahead: dict[str, list[Array]] = {}  # by value, what the dense model computes there, feed by feed

    def train(self, unit: Unit, names: Sequence[str], progress: Callable[[float], None]) -> None:
        """Train these layers of a unit, in place, if that brings its output nearer to the dense one on samples held
        out. Raises ModelError if torch cannot run the unit as onnxruntime does: its blocks can then be trained."""
        solutions = {name: self.solved[name].solution for name in names}
        key, arrays = "", None
        if self._store is not None:
            key = self._store.key(self._key, unit.output, names)
            arrays = self._store.recall(key)
        if arrays is None:
            result = self._result(unit, solutions, progress)
            arrays = result.arrays()
            if self._store is not None:
                self._store.keep(key, arrays)
        else:
            result = Reconstructed.restored(arrays, solutions)
        if self._store is not None:  # what comes behind was trained on what this computes
            self._key = self._store.key(key, *(part for pair in sorted(arrays.items()) for part in pair))
        if result.after < result.before:
            self._take(result)

    def _result(
        self, unit: Unit, solutions: Mapping[str, Solution], progress: Callable[[float], None]
    ) -> Reconstructed:
        """What training these layers of a unit comes to."""
        recipe = self._recipe
        parts = list(self._sources)
        later = {name for part in parts[parts.index(unit) + 1 :] for name in self._sources[part]}
        given = self._compressed.advance(self._sources[unit], later)
        if lists := [name for name, value in given[0].items() if not isinstance(value, np.ndarray)]:
            raise ModelError(f"what leads to {unit.output} reads {lists[0]}, which is not a tensor")
        part = submodel(self._floats, given[0], [unit.output])
        layers = layers_of(part, [self.solved[name].layer for name in solutions])
        places = [place.value for place in places_of(part, layers)[0]]  # given out too: biases move by their size
        graph = to_torch(part, layers, self._option, list(dict.fromkeys([unit.output, *places])))
        check_agreement(graph, part, given[0], rounded=True)
        examples = examples_of(given, self._wanted(unit))
        largest = max(examples, key=lambda example: example.count)
        if largest.count and not can_be_taken_apart(graph, largest):
            if unit.blocks:
                raise ModelError(f"samples of what leads to {unit.output} cannot be taken apart")
            examples = [replace(example, count=0) for example in examples]
        training, spared = spare(examples)
        scales = {name: _largest_stretch(self._pairs[name]) for name in self._own_scales(unit) if name in graph.scales}
        shared = TARGETS[recipe.target].shared_scale
        settings = Training(self._steps, recipe.seed, solving_device(recipe.device), recipe.threads, shared, scales)
        dense = {name: self.solved[name].layer.matrix() for name in solutions}
        try:
            return reconstruct(graph, layers, dense, solutions, training, spared, settings, progress)
        except RuntimeError as error:  # of torch: also for want of memory
            raise ModelError(f"torch fails on what leads to {unit.output}: {one_line(error)}") from error

    def _wanted(self, unit: Unit) -> list[Array]:
        """The dense model's output of a unit, feed by feed. Those of its blocks are kept, as they may be trained each
        for itself."""
        if unit.output not in self._ahead:
            outputs = list(dict.fromkeys([*(block.output for block in unit.blocks), unit.output]))
            run = self._dense.advance(outputs)
            self._ahead = {name: [feed[name] for feed in run] for name in outputs}
        return self._ahead[unit.output]

    def _take(self, result: Reconstructed) -> None:
        """Write what a part became into the model."""
        for name, solution in result.solutions.items():
            self.solved[name] = replace(self.solved[name], solution=solution)
            rewrite(self._plan.model, self.solved[name].layer, self._written[name], solution)
        constants = self._plan.model.graph.initializers
        for name, bias in result.biases.items():
            constants[name].const_value = ir.Tensor(np.ascontiguousarray(bias), name=name)
        for name, stretch in result.stretches.items():
            tensor = constants[name].const_value
            assert tensor is not None
            constants[name].const_value = ir.Tensor(np.asarray(tensor.numpy() * stretch, np.float32), name=name)
            pair = self._pairs[name]
            self.stretches[pair.value, pair.bits] = stretch
        self.better.update(result.solutions)

    def _own_scales(self, unit: Unit) -> list[str]:
        """The scales of activations that a part can train: all that reads what they quantize is in it."""
        inside = set(unit.nodes)
        found = []
        for scale, pair in self._pairs.items():
            values = [node.outputs[0] for node in pair.dequantize]
            readers = {use.node for value in values for use in value.uses()}
            if readers <= inside and not any(value.is_graph_output() for value in values):
                found.append(scale)
        return found

    def added_to_bias(self, name: str) -> Float32 | None:
        """What a layer's bias has more than at the beginning, (rows,); None if that is nothing."""
        if name not in self._biases:
            return None
        change = self._bias(name) - self._begun[name]
        return change if change.any() else None

    def _bias(self, name: str) -> Float32:
        """A layer's bias as it is now, (rows,) float32."""
        site = self._biases[name]
        assert site.shift is not None
        node, index = site.shift
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return np.zeros(site.channels, np.float32)
        assert value.const_value is not None
        return np.broadcast_to(value.const_value.numpy().astype(np.float32).reshape(-1), (site.channels,)).copy()


def _start(solutions: Solutions, recipe: Recipe, steps: int) -> Iterator[object]:
    """All that training depends on, beside the model and the samples."""
    plan = solutions.plan
    yield [VERSION, steps, SPARED, recipe.seed, recipe.target, recipe.ranges]
    yield [(one.value, one.bits, one.symmetric, one.dynamic) for one in plan.activations]
    yield [recipe.embeddings, [table.name for table in plan.embeddings], [tie.table.name for tie in plan.ties]]
    yield sorted(layer.name for layer in find_layers(plan.model)[0] if recipe.choose(layer.name) is None)
    for name, entry in solutions.solved.items():
        yield name
        yield str(plan.choices[name])
        yield entry.solution.weights
        yield entry.solution.bias


def _largest_stretch(pair: ActivationPair) -> float:
    """What the range of an activation may be multiplied by, 1 or more: it stays within the Clip that makes its value.
    Beyond, engines keep that Clip, and the layer in front of it in float."""
    clip = pair.quantize.inputs[0].producer() if pair.quantize.inputs[0] is not None else None
    if clip is None or clip.op_type != "Clip" or clip.domain != "":
        return math.inf
    return max(stretch_to_clip(clip, pair.quantize) * (1 - CLOSE), 1.0)


def _sources(unit: Unit) -> list[str]:
    """The values in float that a unit of a written model reads, itself or through pairs that quantize them."""
    read = [node.inputs[index] for node, index in unit.inputs.values()]
    return list(dict.fromkeys(str(unquantized(value).name) for value in read if value is not None))


def _with_floats(plan: Plan, solved: Mapping[str, Solved], written: Sequence[WrittenWeight]) -> ir.Model:
    """A copy of a plan's written model with its solved weights in float, and inputs in float that have no range."""
    copy = plan.model.clone()
    nodes = dict(zip(plan.model.graph, copy.graph, strict=True))
    taken = set(names_of(copy))
    for weight in written:
        entry = solved[weight.layer]
        name = take_name(f"{weight.layer}.float", taken)
        value = add_initializer(copy.graph, name, entry.layer.tensor(entry.solution.weights))
        for use in weight.uses:
            nodes[use.node].replace_input_with(use.index, value)
    for node in list(copy.graph):
        if node.op_type == "DynamicQuantizeLinear" and (source := node.inputs[0]) is not None:
            for reader in list(node.outputs[0].uses()):
                ir.convenience.replace_all_uses_with(reader.node.outputs[0], source)
    remove_unused(copy)
    return copy
