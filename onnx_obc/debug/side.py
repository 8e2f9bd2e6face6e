"""A graph as it is walked: values that mean the same up to rounding are one, and what constants make is none."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir
from onnx_ir.analysis import analyze_implicit_usage

from ..graph.layers import bodies
from .normal import constant_array

FLOATS = {x.value for x in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)}
CLIPPING = ("Relu", "Clip")


class Side:
    """One of the two graphs.

    root: of each value that depends on the model's inputs, the value that it is but for Q/DQ, Cast and Identity.
    members: of each root, all such values, itself first. readers: of each root, the nodes that read one of them and
    compute something else. place: the order of roots in the graph, inputs first.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        inside = analyze_implicit_usage(model.graph)
        self.root: dict[ir.Value, ir.Value] = {}
        self.members: defaultdict[ir.Value, list[ir.Value]] = defaultdict(list)
        self.readers: defaultdict[ir.Value, list[ir.Node]] = defaultdict(list)
        self.reads: dict[ir.Node, list[ir.Value]] = {}
        for value in model.graph.inputs:
            if not value.is_initializer():
                self._add(value, value)
        for node in model.graph:
            read = [value for value in node.inputs if value is not None]
            read += [value for body in bodies(node) for value in inside[body]]
            self.reads[node] = [value for value in read if value in self.root]
            if not self.reads[node]:
                continue
            source = self.reads[node][0] if same(node) and node.inputs[0] is self.reads[node][0] else None
            for number, value in enumerate(node.outputs):
                if not value.uses() and not value.is_graph_output():  # such as means beside a normalized value
                    continue
                self._add(value, value if source is None or number else self.root[source])
            if source is None:
                for root in dict.fromkeys(self.root[value] for value in self.reads[node]):
                    self.readers[root].append(node)
        self.place = {root: number for number, root in enumerate(self.members)}

    def _add(self, value: ir.Value, root: ir.Value) -> None:
        self.root[value] = root
        self.members[root].append(value)

    def roots_read(self, node: ir.Node) -> list[ir.Value]:
        """The roots of what a node reads, in order."""
        return [self.root[value] for value in self.reads.get(node, ())]

    def named(self) -> dict[str, ir.Value]:
        """Every name of a value to its root."""
        return {str(value.name): root for value, root in self.root.items()}

    def part(self, end: ir.Value, cut: set[ir.Value]) -> tuple[list[ir.Node], list[ir.Value]]:
        """The nodes that make a root of those in `cut`, in the order of the graph, and the roots of `cut` they read."""
        nodes: set[ir.Node] = set()
        bounds: dict[ir.Value, None] = {}
        pending = [end]
        while pending:
            node = pending.pop().producer()
            if node is None or node in nodes:
                continue
            nodes.add(node)
            for root in self.roots_read(node):
                if root in cut or root.producer() is None:
                    bounds[root] = None
                else:
                    pending.append(root)
        return [node for node in self.reads if node in nodes], sorted(bounds, key=lambda root: self.place[root])


def same(node: ir.Node) -> bool:
    """Whether a node's output is its input but for rounding."""
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 0) in FLOATS
    return node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Identity")


def lowest_is_zero(side: Side, root: ir.Value) -> bool:
    """Whether all that read a value read it quantized to integers of which the lowest stands for 0: negatives are 0."""
    readers = [use.node for use in root.uses()]
    if not readers or root.is_graph_output():
        return False
    for node in readers:
        if node.op_type != "QuantizeLinear":
            return False
        zero = constant_array(node.inputs[2] if len(node.inputs) > 2 else None)
        if zero is None:
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                return False
            zero = np.zeros((), np.uint8)
        if zero.dtype.kind not in "iu" or (zero != np.iinfo(zero.dtype).min).any():
            return False
    return True


def highest(node: ir.Node) -> float:
    """The largest value that a QuantizeLinear with a zero point at its lower end can give; infinite if not known."""
    scale = constant_array(node.inputs[1])
    zero = constant_array(node.inputs[2] if len(node.inputs) > 2 else None)
    limits = np.iinfo(np.uint8 if zero is None else zero.dtype)
    return np.inf if scale is None else float(scale.max()) * (int(limits.max) - int(limits.min))
