"""The parts of a model whose outputs are reconstructed one after the other: layers, residual blocks, or several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..graph.constants import Constant, trace
from ..graph.layers import Layer, find_layers
from .sites import find_sites

ACTIVATIONS = (
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish"),
    *("Softplus", "Tanh"),
)
SHAPES = ("Shape", "Size")  # what they give does not depend on what a value holds
MOST = 8  # layers of a block
CHAIN = 8  # layers of blocks that follow one another, in one unit


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of a graph with one output.

    nodes: in the order of the graph. layers: the names of those whose first use is in it. inputs: by value, one of the
    nodes that read it and the index there, which tells what stands in its place once a graph was written into. blocks:
    the units that it was put together from, if it was.
    """

    nodes: tuple[ir.Node, ...]
    layers: tuple[str, ...]
    inputs: Mapping[str, tuple[ir.Node, int]]
    output: str
    blocks: tuple[Unit, ...] = ()


def layer_units(model: ir.Model, layers: Sequence[Layer]) -> list[Unit]:
    """A unit for each layer: its first use, its bias where an Add holds it, and the activation function behind it.

    layers: of this model, which nothing was written into yet. In the order of the graph.
    """
    owners = {layer.uses[0].node: layer.name for layer in layers}
    adds = {site.node for site in find_sites(model, layers, ()) if site.node.op_type == "Add"}
    units = []
    for node in model.graph:
        if node in owners:
            bias = _only_reader(node)
            nodes = [node, bias] if bias is not None and bias in adds else [node]
            units.append(_unit(_activated(nodes), owners))
    return units


def block_units(model: ir.Model, layers: Sequence[Layer]) -> list[Unit]:
    """A unit for each residual block, and one for each layer outside of these; see `layer_units`.

    A block lies between two values that all paths through the layers pass, holds a fork, and at most `MOST` layers:
    there is none where the graph is a chain, nor where paths never come together again, or only behind a whole network.
    The activation function behind a block belongs to it. What depends on no layer's input, such as masks, or on its
    shape alone is no path.
    """
    owners = {layer.uses[0].node: layer.name for layer in layers}
    alone = {unit.layers[0]: unit for unit in layer_units(model, layers)}
    units = []
    for nodes in _between_cuts(model, [use.node.inputs[1 - use.index] for layer in layers for use in layer.uses]):
        inside = [owners[node] for node in nodes if node in owners]
        if 1 < len(inside) <= MOST and _forks(nodes):
            units.append(_unit(_activated(nodes), owners))
        else:
            units += [alone[name] for name in inside]
    return units


def chain_units(model: ir.Model, layers: Sequence[Layer]) -> list[Unit]:
    """Those of `block_units`, neighbours put together as long as a unit has no more than `CHAIN` layers."""
    owners = {layer.uses[0].node: layer.name for layer in layers}
    units: list[Unit] = []
    for unit in block_units(model, layers):
        last = units[-1] if units else None
        if last is not None and len(last.layers) + len(unit.layers) <= CHAIN and _leads_only_to(last, unit):
            blocks = (*(last.blocks or (last,)), unit)
            units[-1] = replace(_unit([*last.nodes, *unit.nodes], owners), blocks=blocks)
        else:
            units.append(unit)
    return units


def _leads_only_to(unit: Unit, other: Unit) -> bool:
    """Whether all paths from the output of a unit lead through another."""
    inside = set(_with_what_lies_between([*unit.nodes, *other.nodes]))
    produced = [value for node in inside for value in node.outputs if value.name != other.output]
    return all(not value.is_graph_output() and all(use.node in inside for use in value.uses()) for value in produced)


def layers_of(part: ir.Model, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of a part's own model, under the names that they have in the whole one; others are left out."""
    names = {str(layer.uses[0].node.outputs[0].name): layer.name for layer in layers}
    found = []
    for layer in find_layers(part)[0]:
        outputs = [str(use.node.outputs[0].name) for use in layer.uses]
        own = next((names[output] for output in outputs if output in names), None)
        if own is not None:
            found.append(replace(layer, name=own))
    return found


def _between_cuts(model: ir.Model, taps: Sequence[ir.Value | None]) -> Iterator[list[ir.Node]]:
    """The nodes that depend on a layer's input, in runs: each but the last ends where all that is read behind it is the
    first output of its last node. What is left behind the last such place comes node by node.

    taps: the inputs of the layers.
    """
    sources = {value for value in taps if value is not None}
    behind, main = set(sources), []
    for node in model.graph:
        if node.op_type not in SHAPES and any(value in behind for value in node.inputs if value is not None):
            main.append(node)
            behind.update(node.outputs)
    sources -= {value for node in main for value in node.outputs}
    last = {value: place for place, node in enumerate(main) for value in node.inputs if value in behind and value}
    last |= {value: len(main) for value in model.graph.outputs if value in behind}
    run: list[ir.Node] = []
    live = sources & last.keys()
    for place, node in enumerate(main):
        run.append(node)
        live |= {value for value in node.outputs if last.get(value, place) > place}
        live -= {value for value in live if last[value] <= place}
        if live <= {node.outputs[0]}:
            yield run
            run = []
    yield from ([node] for node in run)


def _forks(nodes: Sequence[ir.Node]) -> bool:
    """Whether the nodes are no chain: more than one of them reads the same value."""
    reads = Counter(value for node in nodes for value in set(node.inputs) if value and not value.is_initializer())
    return max(reads.values(), default=0) > 1


def _activated(nodes: Sequence[ir.Node]) -> Sequence[ir.Node]:
    """The nodes, and the activation function that alone reads what the last of them computes."""
    follower = _only_reader(nodes[-1])
    activation = follower is not None and follower.op_type in ACTIVATIONS and follower.domain == ""
    return [*nodes, follower] if activation and follower is not None else nodes


def _unit(nodes: Sequence[ir.Node], owners: Mapping[ir.Node, str]) -> Unit:
    output = str(nodes[-1].outputs[0].name)
    nodes = _with_what_lies_between(nodes)
    produced = {value for node in nodes for value in node.outputs}
    inputs: dict[str, tuple[ir.Node, int]] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is None or value in produced or isinstance(trace(value), Constant):
                continue
            inputs.setdefault(str(value.name), (node, index))
    layers = tuple(owners[node] for node in nodes if node in owners)
    return Unit(tuple(nodes), layers, inputs, output)


def _with_what_lies_between(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes, and those that depend on one of them and lead to another, as do those that compute a shape."""
    graph = nodes[0].graph
    assert graph is not None
    whole = list(graph)
    own = set(nodes)
    places = [place for place, node in enumerate(whole) if node in own]
    span = whole[places[0] : places[-1] + 1]
    behind, before = set(own), set(own)
    for node in span:
        if any(value is not None and value.producer() in behind for value in node.inputs):
            behind.add(node)
    for node in reversed(span):
        if any(use.node in before for value in node.outputs for use in value.uses()):
            before.add(node)
    return [node for node in span if node in behind and node in before]


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The node that alone reads what another computes; None if there are others, or the graph gives it out."""
    output, readers = node.outputs[0], list(node.outputs[0].uses())
    if len(node.outputs) > 1 or len(readers) != 1 or output.is_graph_output():
        return None
    follower = readers[0].node
    return follower if follower.graph is node.graph else None
