"""A compressed file as floats and Q/DQ pairs: every integer operator as the float operator that it stands for.

Then layers, values and weights of files of all makers look alike, and can be compared and exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array
from ..graph.edit import add_initializer, names_of, take_name
from ..graph.fold import fold, remove_unused
from ..graph.opset import raise_opset
from ..graph.scales import BLOCKED_OPSET, PER_AXIS_OPSET
from .integers import unpacked

CODES_SUFFIXES = ("_quantized", "_QuantizeLinear_Output", "_quant")
MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity", "Expand")
FUSED = ("FusedConv", "FusedGemm")


def opset_of(model: ir.Model) -> int:
    """The ai.onnx opset that the normal form of a model has at least."""
    pair = ("QuantizeLinear", "DequantizeLinear")  # of another domain: of 4 or 16 bits, which ONNX has since opset 21
    packed = any(node.op_type == "MatMulNBits" or (node.domain and node.op_type in pair) for node in model.graph)
    return max(model.opset_imports.get("", 0), BLOCKED_OPSET if packed else PER_AXIS_OPSET)


def normal_form(model: ir.Model, opset: int) -> tuple[ir.Model, list[str]]:
    """A copy without integer operators, constants folded, nothing fused, and sentences on what could not be folded.

    The operators are: QLinearConv and the other QLinear operators, QGemm, ConvInteger and MatMulInteger with the
    rescaling behind them, their forms in one operator, MatMulNBits, and Q/DQ of other domains. opset: `opset_of` or a
    later one. Raises ModelError where an operator cannot be raised to it.
    """
    model, notes = fold(raise_opset(model, opset), fuse=False)
    notes = [note for note in notes if "left out" in note]
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""
    editor = Editor(model)
    for node in list(model.graph):
        if (rewrite := REWRITES.get(node.op_type)) is not None:
            rewrite(editor, node)
    for node in list(model.graph):
        _float_inside(editor, node)
    remove_unused(model)
    clear_types(model)
    return model, notes


def clear_types(model: ir.Model) -> None:
    """Forget the types of what nodes compute, which may not be true any more: a runtime infers them."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type, value.shape = None, None


class Editor:
    """Puts nodes before others, under names that are free."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken = set(names_of(model))

    def name(self, name: str) -> str:
        """A free name like this one, which is then taken."""
        return take_name(name, self._taken)

    def constant(self, name: str, array: Array) -> ir.Value:
        """A new initializer."""
        return add_initializer(self.model.graph, self.name(name), array)

    def put(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value | None], name: str, **attributes: Any
    ) -> ir.Value:
        """A node before another; its output has the name."""
        known = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op, inputs, attributes=known, name=self.name(f"{name}/{op}"))
        node.outputs[0].name = self.name(name)
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def dequantized(
        self, before: ir.Node, codes: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None = None
    ) -> ir.Value:
        """What integers stand for. axis: of a scale for each channel."""
        one = _size(scale) in (1, None)
        parts = [codes, self.scalar(scale) if one else scale]
        if zero is not None:
            parts.append(self.scalar(zero) if one else zero)
        return self.put(before, "DequantizeLinear", parts, f"{codes.name}_float", axis=None if one else axis)

    def scalar(self, value: ir.Value) -> ir.Value:
        """A constant of one element without axes; another value as it is."""
        tensor = value.const_value if value.is_initializer() else None
        if tensor is None or tensor.size != 1 or not tensor.shape.numpy():
            return value
        return self.constant(f"{value.name}_scalar", tensor.numpy().reshape(()))

    def replace(self, node: ir.Node, new: ir.Value) -> None:
        """`new` instead of a node's output, under its name; the node goes."""
        old = node.outputs[0]
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if new.is_graph_output():
            new.type, new.shape = old.type, old.shape
        old.name, new.name = self.name(f"{name}_old"), name
        self.model.graph.remove(node, safe=True)

    def quantized(self, node: ir.Node, y: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> None:
        """A float value, quantized, in the place of the integers that a node gives; without a scale as it is."""
        if scale is None:
            self.replace(node, y)
            return
        parts = [y, self.scalar(scale)] + ([self.scalar(zero)] if zero is not None else [])
        self.replace(node, self.put(node, "QuantizeLinear", parts, f"{node.outputs[0].name}_codes"))


def float_name(codes: ir.Value) -> str:
    """What the float value is called that integers of this name stand for."""
    name = str(codes.name)
    return next((name.removesuffix(end) for end in CODES_SUFFIXES if name.endswith(end)), f"{name}_value")


def constant_array(value: ir.Value | None) -> Array | None:
    """The array of an initializer; None for anything else."""
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return None if tensor is None else tensor.numpy()


def _size(value: ir.Value) -> int | None:
    array = constant_array(value)
    return None if array is None else array.size


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    return [node.inputs[i] if i < len(node.inputs) else None for i in range(count)]


def _attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    return {name: node.attributes[name].value for name in names if name in node.attributes}


CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _qlinear_conv(editor: Editor, node: ir.Node) -> None:
    x, xs, xz, w, ws, wz, ys, yz, bias = _inputs(node, 9)
    assert x is not None and xs is not None and w is not None and ws is not None
    parts: list[ir.Value | None] = [editor.dequantized(node, x, xs, xz), editor.dequantized(node, w, ws, wz, 0)]
    if bias is not None:
        parts.append(_bias(editor, node, bias, xs, ws))
    y = editor.put(node, "Conv", parts, float_name(node.outputs[0]), **_attributes(node, *CONV))
    editor.quantized(node, y, ys, yz)


def _bias(editor: Editor, node: ir.Node, bias: ir.Value, xs: ir.Value, ws: ir.Value, alpha: float = 1.0) -> ir.Value:
    """An int32 bias at the scale of the products."""
    arrays = [constant_array(value) for value in (bias, xs, ws)]
    if all(array is not None for array in arrays):
        integers, one, other = (np.asarray(array, np.float64) for array in arrays)
        return editor.constant(f"{bias.name}_float", (integers * one * other * alpha).astype(np.float32))
    scale = editor.put(node, "Mul", [xs, ws], f"{bias.name}_scale")
    cast = editor.put(node, "Cast", [bias], f"{bias.name}_cast", to=ir.DataType.FLOAT.value)
    return editor.put(node, "Mul", [cast, scale], f"{bias.name}_float")


def _qlinear_matmul(editor: Editor, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, ys, yz = _inputs(node, 8)
    assert a is not None and a_scale is not None and b is not None and b_scale is not None
    parts = [editor.dequantized(node, a, a_scale, a_zero), editor.dequantized(node, b, b_scale, b_zero, -1)]
    editor.quantized(node, editor.put(node, "MatMul", parts, float_name(node.outputs[0])), ys, yz)


def _qgemm(editor: Editor, node: ir.Node) -> None:
    a, a_scale, a_zero, b, b_scale, b_zero, bias, ys, yz = _inputs(node, 9)
    assert a is not None and a_scale is not None and b is not None and b_scale is not None
    rows = 0 if node.attributes.get_int("transB", 0) else 1
    parts: list[ir.Value | None] = [editor.dequantized(node, a, a_scale, a_zero)]
    parts.append(editor.dequantized(node, b, b_scale, b_zero, rows))
    if bias is not None:
        parts.append(_bias(editor, node, bias, a_scale, b_scale, node.attributes.get_float("alpha", 1.0)))
    found = _attributes(node, "alpha", "transA", "transB")
    editor.quantized(node, editor.put(node, "Gemm", parts, float_name(node.outputs[0]), **found), ys, yz)


def _elementwise(operator: str, operands: int, *attributes: str) -> Callable[[Editor, ir.Node], None]:
    """The rewriting of an operator with so many operands, each with scale and zero point, and those of the output."""

    def rewrite(editor: Editor, node: ir.Node) -> None:
        found = _inputs(node, 3 * operands + 2)
        parts = []
        for value, scale, zero in zip(*(found[i : 3 * operands : 3] for i in range(3)), strict=True):
            assert value is not None and scale is not None
            parts.append(editor.dequantized(node, value, scale, zero))
        given = _attributes(node, *attributes)
        y = editor.put(node, operator, parts, float_name(node.outputs[0]), **given)
        editor.quantized(node, y, found[-2], found[-1])

    return rewrite


def _concat(editor: Editor, node: ir.Node) -> None:
    ys, yz, *rest = node.inputs
    parts = []
    for value, scale, zero in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        assert value is not None and scale is not None
        parts.append(editor.dequantized(node, value, scale, zero))
    y = editor.put(node, "Concat", parts, float_name(node.outputs[0]), **_attributes(node, "axis"))
    editor.quantized(node, y, ys, yz)


def _integer_product(editor: Editor, node: ir.Node) -> None:
    """ConvInteger or MatMulInteger with the int32 bias, the Cast and the Mul of scales that follow it."""
    a, b, a_zero, b_zero = _inputs(node, 4)
    assert a is not None and b is not None
    followed, bias = _only_reader(node), None
    if followed is not None and followed.op_type == "Add":
        bias = next(value for value in followed.inputs if value is not node.outputs[0])
        followed = _only_reader(followed)
    if followed is None or followed.op_type != "Cast":
        return
    cast, followed = followed, _only_reader(followed)
    if followed is None or followed.op_type != "Mul":
        return
    scale = next((value for value in followed.inputs if value is not cast.outputs[0]), None)
    scales = None if scale is None else _scales(a, scale)
    if scales is None or not isinstance(b, ir.Value):
        return
    a_scale, b_scale = scales
    first = editor.dequantized(followed, a, a_scale, a_zero)
    array, codes = constant_array(b_scale), constant_array(b)
    if codes is not None and array is not None and array.size > 1:  # (1, M, 1, 1) behind a Conv
        flat = editor.constant(f"{b_scale.name}_flat", array.reshape(-1))
        zero = b_zero if _size(b_zero) == array.size else None  # type: ignore[arg-type]
        axis = 0 if node.op_type == "ConvInteger" else codes.ndim - 1
        second = editor.dequantized(followed, b, flat, zero, axis)
    else:
        second = editor.dequantized(followed, b, b_scale, b_zero)
    name = str(followed.outputs[0].name)
    if node.op_type == "ConvInteger":
        y = editor.put(followed, "Conv", [first, second], f"{name}_product", **_attributes(node, *CONV))
    else:
        y = editor.put(followed, "MatMul", [first, second], f"{name}_product")
    if bias is not None:
        factor = editor.put(followed, "Mul", [a_scale, b_scale], f"{name}_scale")
        floats = editor.put(followed, "Cast", [bias], f"{name}_bias_cast", to=ir.DataType.FLOAT.value)
        y = editor.put(followed, "Add", [y, editor.put(followed, "Mul", [floats, factor], f"{name}_bias")], f"{name}_s")
    editor.replace(followed, y)


def _scales(a: ir.Value, factor: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The scales of input and weight whose product is `factor`; None where that is not how it was made."""
    producer, source = factor.producer(), a.producer()
    own = source.outputs[1] if source is not None and source.op_type == "DynamicQuantizeLinear" else None
    if own is None and source is not None and source.op_type == "QuantizeLinear":
        own = source.inputs[1]
    if own is None:
        return None
    if producer is not None and producer.op_type == "Mul" and own in producer.inputs:
        other = next((value for value in producer.inputs if value is not own), None)
        return None if other is None else (own, other)
    scale, product = constant_array(own), constant_array(factor)
    if scale is None or product is None or scale.size != 1 or producer is not None or factor.graph is None:
        return None
    array = np.asarray(product / scale.reshape(()), np.float32)
    return own, add_initializer(factor.graph, f"{factor.name}_of_{own.name}", array)


def _only_reader(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _dynamic_matmul(editor: Editor, node: ir.Node) -> None:
    """DynamicQuantizeMatMul, and MatMulIntegerToFloat, whose input is quantized already."""
    if node.op_type == "DynamicQuantizeMatMul":
        x, b, b_scale, b_zero, bias = _inputs(node, 5)
        assert x is not None
        quantize = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=editor.name(f"{x.name}_quantize"))
        for value, end in zip(quantize.outputs, ("codes", "scale", "zero_point"), strict=True):
            value.name = editor.name(f"{x.name}_{end}")
        editor.model.graph.insert_before(node, quantize)
        a: ir.Value | None
        a, a_scale, a_zero = quantize.outputs
    else:
        a, b, a_scale, b_scale, a_zero, b_zero, bias = _inputs(node, 7)  # type: ignore[assignment]
    assert a is not None and b is not None and a_scale is not None and b_scale is not None
    parts = [editor.dequantized(node, a, a_scale, a_zero), editor.dequantized(node, b, b_scale, b_zero, -1)]
    y = editor.put(node, "MatMul", parts, f"{node.outputs[0].name}_product")
    editor.replace(node, y if bias is None else editor.put(node, "Add", [y, bias], f"{node.outputs[0].name}_sum"))


def _nbits(editor: Editor, node: ir.Node) -> None:
    """MatMulNBits, whose weight of few bits is packed: a MatMul with what the codes stand for."""
    x, packed, scales, zeros, groups, bias = _inputs(node, 6)
    arrays = [constant_array(value) for value in (packed, scales, zeros, groups)]
    if arrays[0] is None or arrays[1] is None or groups is not None or (zeros is not None and arrays[2] is None):
        return
    sizes = {name: node.attributes.get_int(name, 4) for name in ("K", "N", "bits", "block_size")}
    codes, zero, scale = unpacked(arrays[0], arrays[1], arrays[2], sizes)  # (K, N) and (K / block, N)
    name = str(packed.name if packed is not None else node.name)
    weight = editor.put(
        node,
        "DequantizeLinear",
        [editor.constant(name, codes), editor.constant(f"{name}_s", scale), editor.constant(f"{name}_z", zero)],
        f"{name}_float",
        axis=0,
        block_size=sizes["block_size"],
    )
    y = editor.put(node, "MatMul", [x, weight], f"{node.outputs[0].name}_product")
    editor.replace(node, y if bias is None else editor.put(node, "Add", [y, bias], f"{node.outputs[0].name}_sum"))


def _fused(editor: Editor, node: ir.Node) -> None:
    """FusedConv and FusedGemm as the operator and its activation."""
    kind = node.attributes.get_string("activation", "")
    if kind not in ("Relu", "Tanh", "Sigmoid", "") or len(node.inputs) > 3:
        return
    name, operator = str(node.outputs[0].name), node.op_type.removeprefix("Fused")
    names = CONV if operator == "Conv" else ("alpha", "beta", "transA", "transB")
    y = editor.put(node, operator, list(node.inputs), f"{name}_product", **_attributes(node, *names))
    editor.replace(node, editor.put(node, kind, [y], f"{name}_activation") if kind else y)


def _float_inside(editor: Editor, node: ir.Node) -> None:
    """Let an operator that only moves elements move floats, not integers, between a QuantizeLinear and its reader."""
    if node.op_type not in MOVES or node.domain != "" or node.inputs[0] is None or not node.outputs:
        return
    codes = node.inputs[0]
    source = codes.producer()
    if source is not None and source.op_type == "QuantizeLinear":
        if _size(source.inputs[1]) != 1 or len(node.outputs) > 1:  # type: ignore[arg-type]
            return
        scale, zero = source.inputs[1], source.inputs[2] if len(source.inputs) > 2 else None
        assert scale is not None
        floats = editor.dequantized(node, codes, scale, zero)
        rest = list(node.inputs[1:])
        moved = ir.node(node.op_type, [floats, *rest], name=editor.name(f"{node.name}_float"))
        for key, attribute in node.attributes.items():
            moved.attributes[key] = attribute
        moved.outputs[0].name = editor.name(float_name(node.outputs[0]))
        editor.model.graph.insert_before(node, moved)
        editor.quantized(node, moved.outputs[0], scale, zero)
    elif node.op_type == "Gather" and (table := constant_array(codes)) is not None:
        reader = _only_reader(node)
        if reader is None or reader.op_type != "DequantizeLinear" or node.attributes.get_int("axis", 0) != 0:
            return
        scale, zero = reader.inputs[1], reader.inputs[2] if len(reader.inputs) > 2 else None
        assert scale is not None
        if "block_size" in reader.attributes or (_size(scale) != 1 and _size(scale) != table.shape[-1]):
            return
        node.replace_input_with(0, editor.dequantized(node, codes, scale, zero, table.ndim - 1))
        editor.replace(reader, node.outputs[0])


REWRITES: Mapping[str, Callable[[Editor, ir.Node], None]] = {
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "QLinearAdd": _elementwise("Add", 2),
    "QLinearMul": _elementwise("Mul", 2),
    "QLinearSigmoid": _elementwise("Sigmoid", 1),
    "QLinearLeakyRelu": _elementwise("LeakyRelu", 1, "alpha"),
    "QLinearSoftmax": _elementwise("Softmax", 1, "axis"),
    "QLinearGlobalAveragePool": _elementwise("GlobalAveragePool", 1),
    "QLinearAveragePool": _elementwise(
        "AveragePool", 1, "auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"
    ),
    "QLinearConcat": _concat,
    "ConvInteger": _integer_product,
    "MatMulInteger": _integer_product,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _dynamic_matmul,
    "MatMulNBits": _nbits,
    **dict.fromkeys(FUSED, _fused),
}
