"""What quantizing the input, or the weight, of a single layer does to a model's outputs, all else in float.

The model is written once, with a switch at every place where a quantized value is read: layers × runs, but one session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ..calibration.capture import run_costs
from ..calibration.samples import Samples
from ..core.arrays import Array, Feed
from ..core.level import Choice
from ..graph.edit import add_initializer, names_of, take_name
from ..graph.layers import Layer, find_layers
from ..graph.write import take_over_output, unquantized
from ..runtime.output_loss import OutputLoss, class_scores
from ..runtime.session import Session, open_session
from ..runtime.sqnr import Match, is_float
from ..targets.registry import TARGETS
from .material import Material
from .plan import Plan, possible
from .recipe import Recipe
from .solve import Solutions, in_profile
from .unseen import without_unseen
from .write import write

OPERATIONS = 2e12  # of the dense model, that runs with switches may take together: about a minute on two cores
SAMPLES = (4, 64)  # at least and at most, on which single layers are measured
LOSS = "output loss"

Noise: TypeAlias = Mapping[str, float]
Place: TypeAlias = tuple[ir.Node, int] | str  # a node's input, or an output of the graph


@dataclass(frozen=True, eq=False)
class Switchboard:
    """A plan's model, and the switches of each layer by name: those of what is quantized for its input, and those of
    its weight. shared: of what is quantized whichever single layer has a float input, such as the skip branches of
    sums. alongside: other layers whose output is quantized for this one's input alone: without that, some targets
    run them in float too. feeds, expected: of so many samples, and the dense model's outputs on them; scores: those
    that are class scores.
    by_output: whether noise is of each output, by its energy, or the output loss, see `OutputLoss`."""

    session: Session
    inputs: Mapping[str, frozenset[str]]
    weights: Mapping[str, frozenset[str]]
    shared: frozenset[str]
    alongside: Mapping[str, frozenset[str]]
    feeds: Sequence[Feed]
    expected: Sequence[Mapping[str, Array]]
    scores: Collection[str]
    by_output: bool
    samples: int

    @property
    def every(self) -> frozenset[str]:
        """All switches."""
        return frozenset[str]().union(self.shared, *self.inputs.values(), *self.weights.values())

    def noise(self, quantized: Collection[str]) -> Noise:
        """How far the outputs are from the dense model's with these switches on and all others off."""
        every = self.every
        states = {name: np.array(name in quantized) for name in self.session.inputs if name in every}
        total = OutputLoss(self.scores)
        sums: dict[str, Match] = {}
        for feed, wanted in zip(self.feeds, self.expected, strict=True):
            found = self.session.run({**feed, **states})
            if not self.by_output:
                total.add(wanted, found)
                continue
            for name, y in wanted.items():
                if is_float(y):
                    sums.setdefault(name, Match()).add(y, found[name], False)
        if not self.by_output:
            return {LOSS: total.value}
        return {name: one.noise / one.signal for name, one in sums.items() if one.signal > 0}


def make_switchboard(solutions: Solutions, material: Material, recipe: Recipe, by_output: bool) -> Switchboard:
    """Write solutions into a fresh graph, uncorrected, with a switch for every value that is quantized.

    What is quantized for a layer is what the target would not quantize if the input of this layer alone were float.
    """
    solutions = in_profile(solutions, solutions.plan.choices, material.folded, recipe)
    solutions = without_unseen(solutions, recipe.target)
    plan = solutions.plan
    places, shared, alongside = _places(plan, recipe)
    written, _, _ = write(solutions, recipe)
    model, taken = plan.model, set(names_of(plan.model))
    switches: dict[Place, str] = {}
    for place in (*dict.fromkeys(place for found in places.values() for place in found), *shared):
        if (switch := _switch(model, place, taken)) is not None:
            switches[place] = switch
    weights: dict[str, set[str]] = {}
    by_name = {layer.name: layer for layer in plan.layers}
    for weight in written:
        layer = by_name[weight.layer]
        dense = add_initializer(model.graph, take_name(f"{layer.name}.dense", taken), layer.tensor(layer.matrix()))
        for use in weight.uses:
            read = use.node.inputs[use.index]
            assert read is not None
            weights.setdefault(layer.name, set()).add(_choose_at(model, (use.node, use.index), dense, read, taken))
    samples = _samples(material, len(places), recipe)
    feeds = list(samples.feeds())
    dense_session = open_session(material.dense, device=recipe.device, threads=recipe.threads)
    return Switchboard(
        session=open_session(model, device=recipe.device, threads=recipe.threads, fuse=False),
        inputs={name: frozenset(switches[x] for x in found if x in switches) for name, found in places.items()},
        weights={name: frozenset(found) for name, found in weights.items()},
        shared=frozenset(switches[place] for place in shared if place in switches),
        alongside=alongside,
        feeds=feeds,
        expected=[dense_session.run(feed) for feed in feeds],
        scores=class_scores(material.dense),
        by_output=by_output,
        samples=samples.count,
    )


def without_input(layer: Layer, choice: Choice, target: str) -> Choice | None:
    """The same weights with a float input; None where the target cannot take them, or has them so already."""
    plain = Choice(choice.level)
    return None if choice == plain or possible(layer, plain, target) is not None else plain


def _samples(material: Material, layers: int, recipe: Recipe) -> Samples:
    """As many of the samples held out as can be run for each layer in about a minute, whichever machine it is."""
    graph, held_out = material.folded.model, material.held_out
    costs = run_costs(graph, find_layers(graph)[0], held_out, recipe.execution())
    operations = sum(cost.flops or cost.parameters for cost in costs.values())
    least, most = SAMPLES
    count = min(max(int(OPERATIONS / max(2 * layers * operations, 1)), least), most, held_out.count)
    return held_out.part(0, max(count - count % held_out.step, held_out.step))


def _places(plan: Plan, recipe: Recipe) -> tuple[dict[str, frozenset[Place]], list[Place], dict[str, frozenset[str]]]:
    """For each layer, where a value is read quantized that is not if the layer has a float input; where it is
    quantized whichever layer that is; and for each layer the others whose output is then not quantized any more, by
    a target that quantizes the outputs of layers."""
    layers, ends = find_layers(plan.model)[0], {str(value.name) for value in plan.model.graph.outputs}

    def of(choices: Mapping[str, Choice]) -> tuple[frozenset[Place], frozenset[str]]:
        placed = TARGETS[recipe.target].place_qdq(plan.model, layers, choices)
        found: set[Place] = {reader for one in placed for reader in one.readers}
        outputs = frozenset(one.value for one in placed if one.replaces_output)
        return frozenset(found | (outputs & ends)), outputs

    makers: dict[str, str] = {}  # layers by their output, and by what Relu or Clip makes of it
    for layer in plan.layers:
        for use in layer.uses:
            output = use.node.outputs[0]
            behind = [x.node.outputs[0] for x in output.uses() if x.node.op_type in ("Relu", "Clip")]
            makers |= {str(value.name): layer.name for value in (output, *behind)}
    places, outputs = of(plan.choices)
    lost, along = {}, {}
    for name, choice in plan.choices.items():
        fewer, still = of({**plan.choices, name: Choice(choice.level)})
        lost[name] = places - fewer
        along[name] = frozenset(makers[value] for value in outputs - still if value in makers) - {name}
    owned = frozenset[Place]().union(*lost.values())
    readers = [reader for one in plan.activations for reader in one.readers]
    return lost, [place for place in readers if place in places - owned], along


def _switch(model: ir.Model, place: Place, taken: set[str]) -> str | None:
    """Let a switch choose what a place reads: quantized, as it is now, or as before; None if it is not quantized."""
    if isinstance(place, str):
        read: ir.Value | None = next(value for value in model.graph.outputs if value.name == place)
    else:
        read = place[0].inputs[place[1]]
    if read is None or (before := unquantized(read)) is read:
        return None
    return _choose_at(model, place, before, read, taken)


def _choose_at(model: ir.Model, place: Place, off: ir.Value, on: ir.Value, taken: set[str]) -> str:
    switch = ir.Value(name=take_name("switch", taken), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(()))
    node = ir.node("Where", [switch, on, off], name=take_name("switched", taken))
    chosen = node.outputs[0]
    chosen.name = take_name("switched_value", taken)
    model.graph.inputs.append(switch)
    if isinstance(place, str):
        model.graph.append(node)
        take_over_output(model.graph, on, chosen)
    else:
        reader, index = place
        assert reader.graph is not None
        reader.graph.insert_before(reader, node)
        reader.replace_input_with(index, chosen)
    return str(switch.name)
