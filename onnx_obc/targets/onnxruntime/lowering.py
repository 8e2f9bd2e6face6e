"""From Q/DQ to the integer operators that onnxruntime fuses where an input is quantized on its own range.

A product y = dq(x) · dq(w) + b of codes x with scale s and zero point z, which DynamicQuantizeLinear finds, and codes w
with scales t and zero points v, is

    y = s t (Σ (x − z) (w − v)) + b,

which is MatMulInteger, a Cast, a Mul by s · t, and an Add. onnxruntime makes DynamicQuantizeMatMul of it, or, where
several products read x, MatMulIntegerToFloat of each. It does so with DequantizeLinear too, but then leaves the Add to
itself, and what could merge with it. A Gemm whose weight alone is one of integers has it turned in the file, as
MatMulNBits, which onnxruntime makes of it, takes no other. Everything but such products stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...graph.edit import add_initializer, names_of, supersede, take_name
from ...graph.fold import remove_unused
from .rules import in_few_bits


def lower(model: ir.Model) -> ir.Model:
    """A copy of a Q/DQ model in which products of inputs quantized on their own range are integer operators, and no
    Gemm turns a weight of integers that has a float input; the model itself where there is none such.

    Nodes keep their names: the integer operator has that of the product it comes from.
    """
    if not any(_lowered(node) or _turned(node) for node in model.graph):
        return model
    copy = model.clone()
    taken = set(names_of(copy))
    for node in list(copy.graph):
        if _lowered(node):
            _replace(copy, node, taken)
        elif _turned(node):
            _turn(node)
    remove_unused(copy)
    return copy


def dynamic_input(node: ir.Node) -> ir.Node | None:
    """The DynamicQuantizeLinear that a product's input comes from through a DequantizeLinear; None if it does not."""
    dequantize = _producer(node.inputs[0], "DequantizeLinear") if node.inputs else None
    return None if dequantize is None else _producer(dequantize.inputs[0], "DynamicQuantizeLinear")


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _lowered(node: ir.Node) -> bool:
    """Whether a node is a product of such an input that integer operators can take over."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or dynamic_input(node) is None:
        return False
    weight = _producer(node.inputs[1], "DequantizeLinear")
    if weight is None or weight.attributes.get_int("block_size", 0) != 0:
        return False
    codes, scale = (None if x is None else ir.convenience.get_const_tensor(x) for x in weight.inputs[:2])
    if codes is None or scale is None or codes.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return False
    rows = len(codes.shape) - 1
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0) != 0:
            return False
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        constant = bias is None or ir.convenience.get_const_tensor(bias) is not None
        if node.attributes.get_float("beta", 1.0) != 1.0 and not constant:
            return False
        rows = 0 if node.attributes.get_int("transB", 0) != 0 else 1
    return scale.size == 1 or (len(codes.shape) == 2 and weight.attributes.get_int("axis", 1) % 2 == rows)


def _turned(node: ir.Node) -> bool:
    """Whether a Gemm turns a weight of integers that nothing else reads, and could become MatMulNBits if it did not."""
    if node.domain != "" or node.op_type != "Gemm" or node.attributes.get_int("transB", 0) == 0:
        return False
    weight = _producer(node.inputs[1], "DequantizeLinear")
    if weight is None or _producer(node.inputs[0], "DequantizeLinear") is not None:
        return False
    parts = [value for value in weight.inputs if value is not None]
    tensors = [ir.convenience.get_const_tensor(value) if value.is_initializer() else None for value in parts]
    if any(tensor is None for tensor in tensors) or any(len(value.uses()) > 1 for value in (*parts, *weight.outputs)):
        return False
    codes = tensors[0]
    assert codes is not None
    wrong = codes.dtype.bitwidth == 2 and codes.shape.numpy()[0] % 4 != 0  # see rules.py
    return not wrong and len(codes.shape) == 2 and in_few_bits(node, turned=("transA",))


def _turn(node: ir.Node) -> None:
    """Turn a weight of integers in the file, in place, and let its Gemm not turn it."""
    weight = _producer(node.inputs[1], "DequantizeLinear")
    assert weight is not None
    for value in weight.inputs:
        if value is not None and _array(value).ndim == 2:
            array = np.ascontiguousarray(_array(value).T)  # (columns, rows)
            value.const_value = ir.Tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
    weight.outputs[0].shape = None
    weight.attributes["axis"] = ir.AttrInt64("axis", 1 - weight.attributes.get_int("axis", 1) % 2)
    node.attributes.pop("transB")


def _replace(model: ir.Model, node: ir.Node, taken: set[str]) -> None:
    """Put the integer operators in the place of a product."""
    graph, name = model.graph, str(node.name or node.outputs[0].name)
    source, weight = dynamic_input(node), _producer(node.inputs[1], "DequantizeLinear")
    assert source is not None and weight is not None
    codes, factor = weight.inputs[0], weight.inputs[1]
    zero = weight.inputs[2] if len(weight.inputs) > 2 else None
    assert codes is not None and factor is not None
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        codes = _constant(model, f"{name}_weight", np.ascontiguousarray(_array(codes).T), taken)  # (columns, rows)
    if (alpha := node.attributes.get_float("alpha", 1.0)) != 1.0 and node.op_type == "Gemm":
        factor = _constant(model, f"{name}_scale", np.asarray(_array(factor) * np.float32(alpha), np.float32), taken)
    inputs = [source.outputs[0], codes, source.outputs[2]]
    if zero is not None and _array(zero).any():
        inputs.append(zero)
    product = ir.node("MatMulInteger", inputs, name=name)
    cast = ir.node("Cast", [product.outputs[0]], attributes={"to": 1}, name=take_name(f"{name}_cast", taken))
    scale = ir.node("Mul", [source.outputs[1], factor], name=take_name(f"{name}_factor", taken))
    nodes = [product, cast, scale]
    nodes.append(ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=take_name(f"{name}_rescaled", taken)))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and (beta := node.attributes.get_float("beta", 1.0)) != 1.0:
        bias = _constant(model, f"{name}_bias", np.asarray(_array(bias) * np.float32(beta), np.float32), taken)
    if bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], bias], name=take_name(f"{name}_biased", taken)))
    for one in nodes[:-1]:
        one.outputs[0].name = take_name(f"{one.name}_output", taken)
    graph.insert_before(node, nodes)
    supersede(model, node, nodes[-1].outputs[0])


def _array(value: ir.Value) -> np.ndarray:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return tensor.numpy()


def _constant(model: ir.Model, name: str, array: np.ndarray, taken: set[str]) -> ir.Value:
    return add_initializer(model.graph, take_name(name, taken), array)
