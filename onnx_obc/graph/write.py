"""Writes solved layers back: integer weights with DequantizeLinear, and Q/DQ pairs on activations.

An activation on the range of each input has a DynamicQuantizeLinear in the place of its QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array
from ..core.mapped import in_temporary_file
from ..core.solution import Grid, Solution
from .contributed import DOMAIN
from .edit import add_initializer, names_of, put_behind, take_name
from .layers import Embedding, Layer, Use
from .scales import scale_layout, storage_type
from .tied import looked_up_in_blocks, rows_first

TINY = float(np.finfo(np.float32).tiny)
QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear")
DYNAMIC = ("quantized", "scale", "zero_point")  # what a DynamicQuantizeLinear gives, and of what types
DYNAMIC_TYPES = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)


@dataclass(frozen=True)
class Activation:
    """An activation to be quantized: its value, the type, and the node inputs that read it quantized.

    dynamic: on the range that it has when the file runs; all others have one of calibration data.
    """

    value: str
    bits: int
    symmetric: bool  # signed and without a zero point, as TensorRT wants it; else unsigned with one
    readers: tuple[tuple[ir.Node, int], ...]
    replaces_output: bool = False  # the graph output of this name, if it is one, is the dequantized value
    dynamic: bool = False


@dataclass(frozen=True)
class WrittenWeight:
    """Where a layer's weight stands in the written graph: `name` is what the nodes of `uses` read, `codes` integers.

    turned: these, their scales and zero points are stored transposed, and a Transpose turns each back.
    """

    layer: str
    name: str
    codes: str | None
    uses: tuple[Use, ...]
    turned: bool = False


@dataclass(frozen=True)
class ActivationPair:
    """Where an activation is quantized in the written graph, on a range of calibration data: `value` at `bits`.

    quantize, dequantize: the nodes, of which the second may be several. scale: the initializer that they share.
    """

    value: str
    bits: int
    scale: str
    quantize: ir.Node
    dequantize: tuple[ir.Node, ...]


class Writer:
    """Writes into one model, and knows the names that are taken in it."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        graph = model.graph
        outputs = [value for node in graph for value in node.outputs]
        self._values = {str(v.name): v for v in (*graph.inputs, *graph.initializers.values(), *outputs)}
        self._taken = set(names_of(model))

    def weight(self, layer: Layer, solution: Solution, turned: bool = False) -> WrittenWeight:
        """Replace a layer's weight by its solution: a float initializer, or codes, scale, zero point and a node.

        The old weight stays behind; fold.remove_unused removes it where nothing else reads it. turned: store integers
        transposed, for a weight of two axes. onnxruntime turns constants when it loads a file, so that a node that
        reads the codes as they are stored is no second reader of those that it makes a MatMulNBits of.
        """
        first = layer.uses[0].node
        if solution.codes is None or solution.grid is None:
            array = layer.tensor(solution.weights)
            if isinstance(solution.weights, np.memmap):  # it waited in a file, for want of memory, and goes on to
                array = in_temporary_file(array, "solved weights")
            new = self._initializer(f"{layer.name}.weight", array)
            written = WrittenWeight(layer.name, str(new.name), None, layer.uses)
        else:
            layout = scale_layout(layer, solution.grid.block)
            assert layout is not None, f"{layer.name}: a layer without a layout is left out of the plan"
            dtype = storage_type(solution.grid.bits, solution.grid.symmetric).numpy()
            name, integers = f"{layer.name}.weight", layer.tensor(solution.codes).astype(dtype)
            codes = self._initializer(f"{name}_quantized", integers.T if turned else integers)
            scale = solution.grid.scale.reshape(-1)[layout.rows]
            zero = solution.grid.zero_point.reshape(-1)[layout.rows].astype(dtype)
            if turned:
                scale, zero = scale.T, zero.T
            node = self._dequantize(codes, scale, zero, layout.axis, layout.block, name)
            self.model.graph.insert_before(first, node)
            if turned:
                self._turn_inputs(node)
            new = node.outputs[0]
            new.shape = ir.Shape(integers.shape)
            written = WrittenWeight(layer.name, str(new.name), str(codes.name), layer.uses, turned)
        for use in layer.uses:
            use.node.replace_input_with(use.index, new)
        return written

    def embedding(
        self, embedding: Embedding, codes: Array, grid: Grid, block: int | None, in_blocks: bool = False
    ) -> None:
        """Store a table as integers, `codes` in the shape of the table.

        Without `block` the rows that were looked up are dequantized, each column by its own scale: grid of
        (1, columns). With it, blocks along a row have a scale each: grid of (1, rows · blocks). ONNX's Gather does not
        take types below 8 bits, so that the DequantizeLinear stands before it, and the whole table is dequantized in
        each run. in_blocks: onnxruntime's GatherBlockQuantized is written instead where it takes such blocks.
        """
        dtype = storage_type(grid.bits, grid.symmetric)
        table = self._initializer(f"{embedding.name}_quantized", codes.astype(dtype.numpy()))
        if block is not None:
            scales: Array = grid.scale.reshape(codes.shape[0], -1)  # (rows, blocks)
            node = self._dequantize(table, scales, np.zeros(scales.shape, dtype.numpy()), 1, block, embedding.name)
            self.model.graph.insert_before(embedding.nodes[0], node)
            for gather in embedding.nodes:
                if in_blocks and looked_up_in_blocks(block):
                    self._replace_lookup(gather, [self._block_lookup(node.inputs, gather.inputs[1], block)])
                else:
                    gather.replace_input_with(0, node.outputs[0])
            return
        scale = grid.scale.reshape(-1)
        zero = np.zeros(scale.shape, dtype.numpy())
        for gather in embedding.nodes:
            found = gather.outputs[0]
            readers = tuple(found.uses())
            node = self._dequantize(found, scale, zero, -1, None, str(found.name))
            for user, index in readers:
                user.replace_input_with(index, node.outputs[0])
            gather.replace_input_with(0, table)
            self._values[str(found.name)] = node.outputs[0]
            take_over_output(self.model.graph, found, node.outputs[0])
            found.type = ir.TensorType(dtype)
            self.model.graph.insert_after(gather, node)

    def tied(self, table: Embedding, layer: Layer, written: WrittenWeight) -> None:
        """Have a table read the integers of the layer whose weight it is too; see tied.cannot_share.

        Of int8, rows or columns are looked up, with their scales and zero points. Rows in blocks of 4 bits, which
        ONNX's Gather does not take, are looked up by onnxruntime's GatherBlockQuantized.
        """
        assert written.codes is not None
        codes = self.model.graph.initializers[written.codes]
        parts = [codes, *map(_stored, _dequantizer(codes, written.name).inputs[1:])]
        if written.turned:  # nor may onnxruntime's MatMulNBits share scales and zero points
            parts[1:] = [self._copied(part) if len(part.shape or ()) == 1 else part for part in parts[1:]]
        lengthwise = written.turned or rows_first(layer)  # codes: (rows, columns)
        for gather in table.nodes:
            if parts[1].shape is not None and len(parts[1].shape) == 2:  # scales: (rows, blocks)
                assert lengthwise
                block = table.shape[1] // int(parts[1].shape.numpy()[1])
                nodes = [self._block_lookup(parts, gather.inputs[1], block)]
            else:
                nodes = self._lookup(parts, gather.inputs[1], lengthwise)
            self._replace_lookup(gather, nodes)

    def _copied(self, value: ir.Value) -> ir.Value:
        """A constant again, under another name."""
        assert value.const_value is not None
        return self._initializer(f"{value.name}_rows", value.const_value.numpy())

    def _replace_lookup(self, gather: ir.Node, nodes: list[ir.Node]) -> None:
        """Put nodes, the last of which gives the rows, in the place of a Gather."""
        found, new = gather.outputs[0], nodes[-1].outputs[0]
        for node in nodes:
            node.name = self._name(f"{found.name}_{node.op_type}")
            node.outputs[0].name = self._name(f"{node.name}_output")
        self.model.graph.insert_before(gather, nodes)
        for user, index in tuple(found.uses()):
            user.replace_input_with(index, new)
        self._values[str(found.name)] = new
        take_over_output(self.model.graph, found, new)

    def _block_lookup(self, parts: Sequence[ir.Value | None], ids: ir.Value | None, block: int) -> ir.Node:
        """onnxruntime's Gather of rows in blocks. parts: codes, scales and zero points."""
        self.model.graph.opset_imports.setdefault(DOMAIN, 1)
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block}
        inputs = [parts[0], ids, *parts[1:]]
        return ir.node("GatherBlockQuantized", inputs, domain=DOMAIN, attributes=attributes)

    def _lookup(self, parts: list[ir.Value], ids: ir.Value | None, lengthwise: bool) -> list[ir.Node]:
        """The nodes that look up rows of int8 and dequantize them. parts: codes, scales and zero points."""
        codes, scale, zero = parts
        rows = ir.node("Gather", [codes, ids], attributes={"axis": 0 if lengthwise else 1})
        nodes = [rows, ir.node("Cast", rows.outputs, attributes={"to": ir.DataType.FLOAT})]
        last = self._initializer("last_axis", np.array([-1], np.int64)) if lengthwise else None

        def beside(part: ir.Value) -> ir.Value:
            """The entry of a scale or zero point for each row, so that it goes with the rows."""
            nodes.append(ir.node("Gather", [part, ids]))
            if last is not None:  # rows: (…, columns); otherwise (columns, …)
                nodes.append(ir.node("Unsqueeze", [nodes[-1].outputs[0], last]))
            return nodes[-1].outputs[0]

        value = nodes[1].outputs[0]
        if zero.const_value is not None and np.asarray(zero.const_value.numpy()).any():
            shift = ir.node("Cast", [beside(zero)], attributes={"to": ir.DataType.FLOAT})
            nodes += [shift, ir.node("Sub", [value, shift.outputs[0]])]
            value = nodes[-1].outputs[0]
        nodes.append(ir.node("Mul", [value, beside(scale)]))
        if not lengthwise:
            assert ids is not None and ids.shape is not None
            order = [*range(1, len(ids.shape) + 1), 0]
            nodes.append(ir.node("Transpose", nodes[-1].outputs, attributes={"perm": order}))
        return nodes

    def _turn_inputs(self, node: ir.Node) -> None:
        """Put a Transpose in front of each input of a node that has two axes."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.shape is not None and len(value.shape) == 2:
                turn = ir.node("Transpose", [value], attributes={"perm": [1, 0]}, name=self._name(f"{value.name}_T"))
                new = turn.outputs[0]
                new.name, new.shape = self._name(f"{value.name}_turned"), ir.Shape(tuple(value.shape)[::-1])
                new.type = value.type
                self.model.graph.insert_before(node, turn)
                node.replace_input_with(index, new)

    def activation(self, activation: Activation, low: float, high: float) -> None:
        """Put a QuantizeLinear and a DequantizeLinear behind a value, for the interval (low, high)."""
        value = self._values[activation.value]
        scale, zero = activation_grid(low, high, activation.bits, activation.symmetric)
        dtype = storage_type(activation.bits, activation.symmetric)
        name = activation.value
        parts = [
            self._initializer(f"{name}_scale", np.array(scale, dtype=np.float32)),
            self._initializer(f"{name}_zero_point", np.array(zero).astype(dtype.numpy())),
        ]
        quantize = ir.node("QuantizeLinear", [value, *parts], name=self._name(f"{name}_QuantizeLinear"))
        codes = quantize.outputs[0]
        codes.name, codes.dtype, codes.shape = self._name(f"{name}_quantized"), dtype, value.shape
        dequantize = ir.node("DequantizeLinear", [codes, *parts], name=self._name(f"{name}_DequantizeLinear"))
        new = dequantize.outputs[0]
        new.name = self._name(f"{name}_dequantized")
        _copy_type(value, new)
        for node, index in activation.readers:
            node.replace_input_with(index, new)
        if activation.replaces_output:
            take_over_output(self.model.graph, value, new)
        put_behind(self.model.graph, value, [quantize, dequantize])

    def dynamic(self, activation: Activation) -> None:
        """Put a DynamicQuantizeLinear and a DequantizeLinear behind what the readers of an activation read.

        That is the value itself, or what an `activation` that was put behind it before made of it.
        """
        sources = dict.fromkeys(node.inputs[index] for node, index in activation.readers)
        for value in sources:
            assert value is not None
            name = activation.value
            quantize = ir.node(
                "DynamicQuantizeLinear", [value], num_outputs=3, name=self._name(f"{name}_DynamicQuantizeLinear")
            )
            for output, end, dtype in zip(quantize.outputs, DYNAMIC, DYNAMIC_TYPES, strict=True):
                output.name, output.type = self._name(f"{name}_{end}"), ir.TensorType(dtype)
                output.shape = value.shape if end == DYNAMIC[0] else ir.Shape(())
            dequantize = ir.node("DequantizeLinear", quantize.outputs, name=self._name(f"{name}_DequantizeLinear"))
            new = dequantize.outputs[0]
            new.name = self._name(f"{name}_dequantized")
            _copy_type(value, new)
            readers = [(node, index) for node, index in activation.readers if node.inputs[index] is value]
            for node, index in readers:
                node.replace_input_with(index, new)
            put_behind(self.model.graph, value, [quantize, dequantize])

    def _dequantize(
        self, codes: ir.Value, scale: Array, zero: Array, axis: int | None, block: int | None, name: str
    ) -> ir.Node:
        attributes = {key: value for key, value in (("axis", axis), ("block_size", block)) if value is not None}
        parts = [
            codes,
            self._initializer(f"{name}_scale", np.asarray(scale, dtype=np.float32)),
            self._initializer(f"{name}_zero_point", zero),
        ]
        node = ir.node("DequantizeLinear", parts, attributes=attributes, name=self._name(f"{name}_DequantizeLinear"))
        node.outputs[0].name = self._name(f"{name}_dequantized")
        node.outputs[0].dtype = ir.DataType.FLOAT
        return node

    def _initializer(self, name: str, array: Array) -> ir.Value:
        array = np.ascontiguousarray(array) if array.ndim else array
        return add_initializer(self.model.graph, self._name(name), array)

    def _name(self, name: str) -> str:
        """This name, or the first of name_1, name_2, … that no value or node of the model has."""
        return take_name(name, self._taken)


def rewrite(model: ir.Model, layer: Layer, written: WrittenWeight, solution: Solution) -> None:
    """Put another solution, at the same level, where that of a layer was written."""
    initializers = model.graph.initializers
    if written.codes is None or solution.grid is None or solution.codes is None:
        _set(initializers[written.name], layer.tensor(solution.weights))
        return
    codes = initializers[written.codes]
    layout, scale = scale_layout(layer, solution.grid.block), _stored(_dequantizer(codes, written.name).inputs[1])
    assert layout is not None
    integers = layer.tensor(solution.codes).astype(storage_type(solution.grid.bits, solution.grid.symmetric).numpy())
    scales = solution.grid.scale.reshape(-1)[layout.rows]
    _set(codes, integers.T if written.turned else integers)
    _set(scale, scales.T if written.turned else scales)


def _dequantizer(codes: ir.Value, name: str) -> ir.Node:
    """The DequantizeLinear that gives the value of this name, from codes that may be turned on the way."""
    readers = [use.node for use in codes.uses()]
    readers += [use.node for node in readers if node.op_type == "Transpose" for use in node.outputs[0].uses()]
    return next(node for node in readers if node.outputs[0].name == name)


def _stored(value: ir.Value | None) -> ir.Value:
    """The constant that a value is, or is turned from."""
    assert value is not None
    node = value.producer()
    if node is None:
        return value
    assert node.inputs[0] is not None
    return node.inputs[0]


def _set(value: ir.Value, array: Array) -> None:
    value.const_value = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=value.name)


def unquantized(value: ir.Value) -> ir.Value:
    """What a value was before it was quantized, as an activation is."""
    while (node := value.producer()) is not None and node.op_type == "DequantizeLinear":
        codes = node.inputs[0]
        quantize = None if codes is None else codes.producer()
        if quantize is None or quantize.op_type not in QUANTIZING or (source := quantize.inputs[0]) is None:
            break
        value = source
    return value


def activation_pairs(model: ir.Model) -> Iterator[ActivationPair]:
    """The Q/DQ pairs of activations in a written graph, where one scale is read by one pair alone."""
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or len(node.inputs) < 3:  # the user's own may have no zero point
            continue
        value, scale, zero = node.inputs
        readers = tuple(use.node for use in node.outputs[0].uses())
        if value is None or scale is None or zero is None or zero.dtype is None:
            continue
        if scale.is_initializer() and {use.node for use in scale.uses()} == {node, *readers}:
            yield ActivationPair(str(value.name), int(zero.dtype.bitwidth), str(scale.name), node, readers)


def activation_grid(low: float, high: float, bits: int, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of an activation that spans (low, high), low ≤ 0 ≤ high."""
    if symmetric:
        scale = max(-low, high) / (2 ** (bits - 1) - 1)
        return (scale, 0) if scale >= TINY else (1.0, 0)
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return (scale, round(-low / scale)) if scale >= TINY else (1.0, 0)


def take_over_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """`new` gets the type and shape of `old`; if `old` is a graph output, `new` becomes that, under its name."""
    _copy_type(old, new)
    if not old.is_graph_output():
        return
    for position in [i for i, output in enumerate(graph.outputs) if output is old]:
        graph.outputs[position] = new
    name = old.name
    old.name, new.name = new.name, name


def _copy_type(source: ir.Value, target: ir.Value) -> None:
    # A copy: setting the dtype of a value changes its type object, and two values must not share one.
    target.type = None if source.dtype is None else ir.TensorType(source.dtype)
    target.shape = source.shape
