"""The parts of both graphs that lie between matched values, and models of them that run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed
from ..core.errors import ModelError
from ..graph.fold import remove_unused
from ..graph.layers import Layer, bodies
from ..runtime.session import Execution, open_session
from .match import Matched
from .normal import Editor, clear_types
from .side import Side

QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear")
PAIR = (*QUANTIZING, "DequantizeLinear")
LONGEST_WAY = 8  # nodes behind a product until a value is matched


@dataclass(frozen=True, eq=False)
class Part:
    """What both graphs do from matched values to the next.

    end: the value made, in the dense graph; bounds: the matched values that either side makes it of, in the dense
    graph. dense, compressed: the nodes. reads: for each bound, what the compressed part reads of it: the value itself,
    or what it is behind Q/DQ.
    """

    end: ir.Value
    bounds: tuple[ir.Value, ...]
    dense: tuple[ir.Node, ...]
    compressed: tuple[ir.Node, ...]
    reads: Mapping[ir.Value, ir.Value]
    quantized: bool


def part_of(matched: Matched, end: ir.Value) -> Part:
    """The part that makes a matched value."""
    dense, first = matched.dense.part(end, set(matched.pairs))
    back = {other: one for one, other in matched.pairs.items()}
    compressed, second = matched.compressed.part(matched.pairs[end], set(back))
    bounds = dict.fromkeys([*first, *(back[root] for root in second if root in back)])
    reads: dict[ir.Value, ir.Value] = {}
    for bound in bounds:
        other = matched.pairs.get(bound)
        if other is None:
            continue
        own = [
            value for node in compressed for value in matched.compressed.reads[node]
            if matched.compressed.root[value] is other
        ]  # fmt: skip
        reads[bound] = next((value for value in own if value is not other), other)
    quantized = any(_quantizes(value, matched.pairs[bound]) for bound, value in reads.items())
    return Part(end, tuple(bounds), tuple(dense), tuple(compressed), reads, quantized)


def _quantizes(value: ir.Value, root: ir.Value) -> bool:
    """Whether there is a QuantizeLinear between a root and another of its members."""
    while value is not root and (node := value.producer()) is not None and node.inputs[0] is not None:
        if node.op_type in QUANTIZING:
            return True
        value = node.inputs[0]
    return False


def output_of(matched: Matched, node: ir.Node) -> ir.Value | None:
    """The first matched value behind a product; None if there is none on a way without branches."""
    for _ in range(LONGEST_WAY):
        root = matched.dense.root.get(node.outputs[0])
        if root is None:
            return None
        if root in matched.pairs:
            return root
        readers = matched.dense.readers[root]
        if len(readers) != 1 or root.is_graph_output():
            return None
        node = readers[0]
    return None


def with_float_activations(model: ir.Model) -> ir.Model:
    """A copy of a model in normal form that quantizes no activation; constants stay as they are."""
    model = model.clone()
    side, editor = Side(model), Editor(model)
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in PAIR or source is None or node.outputs[0] not in side.root:
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            name, dtype, shape = output.name, output.type, output.shape
            output.name = editor.name(f"{name}_dequantized")
            same = editor.put(node, "Identity", [source], f"{name}_same")
            ir.convenience.replace_all_uses_with(output, same, replace_graph_outputs=True)
            same.name, same.type, same.shape = name, dtype, shape
        else:
            ir.convenience.replace_all_uses_with(output, source)
    remove_unused(model)
    clear_types(model)
    return model


class Runner:
    """A part of a model, from values to a value, ready to run. arrays: one feed, which says of what types they are."""

    def __init__(
        self, model: ir.Model, arrays: Mapping[str, Array], outputs: Sequence[str], execution: Execution
    ) -> None:
        graph = ir.convenience.extract(model.graph, list(arrays), list(outputs))
        for value in graph.inputs:
            array = arrays[str(value.name)]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * array.ndim)
        part = ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
        self._session = open_session(part, device=execution.device, threads=execution.threads, fuse=False)

    def __call__(self, arrays: Feed) -> Feed:
        """Run it."""
        return self._session.run(arrays)


@dataclass(frozen=True)
class Replacement:
    """How a part is put back: layers whose weights are given instead of their own, as the nodes see them; and whether
    the inputs stay as the compressed graph reads them, quantized."""

    weights: Mapping[str, tuple[Layer, Array]]
    quantized_inputs: bool


def put_back(
    matched: Matched, parts: Sequence[Part], how: Replacement, types: Mapping[str, np.dtype[np.generic]]
) -> ir.Model:
    """A copy of the compressed model with some parts as the dense graph has them.

    types: of the values of the compressed graph that differ from the dense one's, by name. Raises ModelError for parts
    with bodies.
    """
    model = matched.compressed.model.clone()
    editor, graph = Editor(model), model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    for part in parts:
        if any(bodies(node) for node in part.dense):
            raise ModelError(f"{part.end.name}: it depends on the body of a control flow operator")
        old = values[str(matched.pairs[part.end].name)]
        producer = old.producer()
        assert producer is not None
        known: dict[ir.Value, ir.Value] = {}
        for bound, read in part.reads.items():
            value = values[str(read.name if how.quantized_inputs else matched.pairs[bound].name)]
            if str(matched.pairs[bound].name) in types:
                value = editor.put(producer, "Cast", [value], f"{value.name}_back", to=ir.DataType.FLOAT.value)
            known[bound] = value
        new = _copied(matched.dense, part, known, how, editor, producer)
        if old.name in types:
            to = ir.DataType.from_numpy(types[str(old.name)]).value
            new = editor.put(producer, "Cast", [new], f"{new.name}_cast", to=to)
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if new.is_graph_output():
            new.type, new.shape = old.type, old.shape
            old.name, new.name = editor.name(f"{name}_old"), name
    for domain, version in matched.dense.model.graph.opset_imports.items():
        graph.opset_imports.setdefault(domain, version)
    remove_unused(model)
    graph.sort()
    return model


def _copied(
    side: Side, part: Part, known: dict[ir.Value, ir.Value], how: Replacement, editor: Editor, before: ir.Node
) -> ir.Value:
    """The dense nodes of a part, and the constants that they read, before a node; what they make."""

    def copy(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in known:
            return None if value is None else known[value]
        if side.root.get(value, value) in known:  # behind a Cast or the like
            known[value] = known[side.root[value]]
        elif (tensor := value.const_value) is not None and value.is_initializer():
            fresh = ir.Value(name=editor.name(f"back/{value.name}"), type=ir.TensorType(tensor.dtype))
            fresh.shape, fresh.const_value = value.shape, tensor
            fresh.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=fresh.name)
            editor.model.graph.register_initializer(fresh)
            known[value] = fresh
        elif (producer := value.producer()) is not None:
            place(producer)
        return known[value]

    def place(node: ir.Node) -> None:
        if node.outputs[0] in known:
            return
        inputs = [
            editor.constant(f"back/{weights[node, index][0]}", weights[node, index][1])
            if (node, index) in weights
            else copy(value)
            for index, value in enumerate(node.inputs)
        ]
        fresh = ir.node(
            node.op_type, inputs, domain=node.domain, num_outputs=len(node.outputs), name=editor.name(f"back/{node.name}")
        )
        for key, attribute in node.attributes.items():
            fresh.attributes[key] = attribute
        for value, other in zip(node.outputs, fresh.outputs, strict=True):
            other.name = editor.name(f"back/{value.name}")
            known[value] = other
        editor.model.graph.insert_before(before, fresh)

    weights = {
        (use.node, use.index): (name, array)
        for name, (layer, array) in how.weights.items()
        for use in layer.uses
    }  # fmt: skip
    for node in part.dense:
        place(node)
    return known[part.end]
