"""Edits that many make: free names, new constants, a node that goes, a part as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from ..core.arrays import Array


def names_of(model: ir.Model) -> Iterator[str]:
    """Every name of a value or a node, those inside bodies too."""
    for graph in model.graphs():
        yield from (value.name for value in (*graph.inputs, *graph.initializers.values()) if value.name)
    for node in model.graph.all_nodes():
        if node.name:
            yield node.name
        yield from (value.name for value in node.outputs if value.name)


def free_name(name: str, taken: Collection[str]) -> str:
    """This name, or the first of name_1, name_2, … that is not taken."""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(1, len(taken) + 2))) if n not in taken)


def take_name(name: str, taken: set[str]) -> str:
    """A free name like this one, which is then taken."""
    taken.add(free := free_name(name, taken))
    return free


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new constant of a graph, under a name that is free."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def put_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put nodes behind the one that makes a value, or in front of all if it is the graph's."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)


def supersede(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """Let `value` take the place and the name of a node's output; the node goes."""
    output = node.outputs[0]
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    value.name, value.type, value.shape = output.name, output.type, output.shape
    model.graph.remove(node, safe=True)


def submodel(model: ir.Model, arrays: Mapping[str, Array], outputs: Sequence[str]) -> ir.Model:
    """What lies between some values and others as a model of its own, a copy. arrays: values of its inputs, whose types
    it has then."""
    part = ir.convenience.extract(model.graph, list(arrays), list(outputs))
    for value in part.inputs:
        array = arrays[str(value.name)]
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape([None] * array.ndim)
    return ir.Model(part, ir_version=model.ir_version, functions=list(model.functions.values()))
