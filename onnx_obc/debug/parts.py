"""The parts of both graphs that lie between matched values, and models of them that run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..core.arrays import Array, Feed
from ..graph.edit import submodel
from ..graph.fold import remove_unused
from ..graph.write import QUANTIZING
from ..runtime.session import Execution, open_session
from .match import Matched
from .normal import Editor, clear_types
from .side import Side

LONGEST_WAY = 8  # nodes behind a product until a value is matched


@dataclass(frozen=True, eq=False)
class Part:
    """What both graphs do from matched values to the next.

    end: the value made, in the dense graph; bounds: the matched values that either side makes it of, in the dense
    graph. dense, compressed: the nodes. reads: for each bound, what the compressed part reads of it: the value itself,
    or what it is behind Q/DQ; quantized: whether the latter is so of any. inside: whether the compressed part
    quantizes a value of its own, such as an input that was divided channel by channel in front of a product.
    """

    end: ir.Value
    bounds: tuple[ir.Value, ...]
    dense: tuple[ir.Node, ...]
    compressed: tuple[ir.Node, ...]
    reads: Mapping[ir.Value, ir.Value]
    quantized: bool
    inside: bool


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
        read = dict.fromkeys(value for node in compressed for value in matched.compressed.reads[node])
        floats = [v for v in read if matched.compressed.root[v] is other and not _is_code(v)]
        reads[bound] = next((value for value in floats if value is not other), other)
    quantized = any(_quantizes(value, matched.pairs[bound]) for bound, value in reads.items())
    root, others = matched.compressed.root, {matched.pairs[bound] for bound in reads}
    own = [value for node in compressed for value in matched.compressed.reads[node] if root[value] not in others]
    inside = any(_quantizes(value, root[value]) for value in own)
    return Part(end, tuple(bounds), tuple(dense), tuple(compressed), reads, quantized, inside)


def _is_code(value: ir.Value) -> bool:
    """Whether a value is what a QuantizeLinear gives: integers, which an operator that is not known here reads."""
    node = value.producer()
    return node is not None and node.op_type in QUANTIZING


def _quantizes(value: ir.Value, root: ir.Value) -> bool:
    """Whether there is a QuantizeLinear between a root and another of its members."""
    while value is not root and (node := value.producer()) is not None and node.inputs[0] is not None:
        if node.op_type in QUANTIZING:
            return True
        value = node.inputs[0]
    return False


def on_its_own_range(value: ir.Value) -> bool:
    """Whether a value was dequantized from what a DynamicQuantizeLinear gives."""
    node = value.producer()
    codes = None if node is None or node.op_type != "DequantizeLinear" else node.inputs[0]
    quantizer = None if codes is None else codes.producer()
    return quantizer is not None and quantizer.op_type == "DynamicQuantizeLinear"


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
        quantizer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "DequantizeLinear" or node.outputs[0] not in side.root:
            continue
        if quantizer is None or quantizer.op_type not in QUANTIZING or (source := quantizer.inputs[0]) is None:
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
        part = submodel(model, arrays, outputs)
        self._session = open_session(part, device=execution.device, threads=execution.threads, fuse=False)

    def __call__(self, arrays: Feed) -> Feed:
        """Run it."""
        return self._session.run(arrays)
