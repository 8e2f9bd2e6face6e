"""From Q/DQ to the integer operators that DeepSparse accelerates.

A product y = dq(x) · dq(w) + b of codes x with scale s and zero point z, and codes w with scales t and zero point 0, is

    y = s t (Σ (x − z) w + round(b / (s t))),

which is ConvInteger or MatMulInteger, an Add of an int32 bias, a Cast, and a Mul. onnxruntime rounds biases so too when
it fuses Q/DQ. Everything else stays, and what nothing reads any more is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...graph.edit import add_initializer, names_of, supersede, take_name
from ...graph.fold import remove_unused

IR_VERSION = 8
INT32 = 2**31 - 1


@dataclass(frozen=True)
class Operand:
    """A dequantized operand: its codes, scale, zero point (None: 0), and the axis of its scales."""

    codes: ir.Value
    scale: npt.NDArray[Any]
    zero: ir.Value | None
    axis: int


def lower(model: ir.Model) -> ir.Model:
    """A copy of a Q/DQ model in which products of 8-bit integers are integer operators.

    Nodes keep their names: the integer operator has that of the product it comes from. Products of another form stay
    between Q/DQ, where DeepSparse runs them slowly; `rules.check` names them.
    """
    copy = model.clone()
    taken = set(names_of(copy))
    for node in list(copy.graph):
        if node.domain == "" and node.op_type in ("Conv", "MatMul", "Gemm"):
            data, weight = (_operand(value) for value in node.inputs[:2])
            if data is not None and weight is not None and _fits(node, data, weight):
                _replace(copy, node, data, weight, taken)
    remove_unused(copy)
    copy.ir_version = IR_VERSION
    for domain in [name for name in copy.opset_imports if name not in ("", "ai.onnx")]:
        if all(node.domain != domain for node in copy.graph.all_nodes()):
            del copy.opset_imports[domain]
    return copy


def _operand(value: ir.Value | None) -> Operand | None:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.attributes.get_int("block_size", 0) != 0:
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    constant = None if scale is None else ir.convenience.get_const_tensor(scale)
    if codes is None or constant is None:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return Operand(codes, constant.numpy(), zero, node.attributes.get_int("axis", 1))


def _fits(node: ir.Node, data: Operand, weight: Operand) -> bool:
    """Whether a product has the form that integer operators can take over."""
    codes = ir.convenience.get_const_tensor(weight.codes)
    zero = None if weight.zero is None else ir.convenience.get_const_tensor(weight.zero)
    if codes is None or codes.dtype != ir.DataType.INT8 or data.scale.size != 1:
        return False
    if data.codes.dtype not in (None, ir.DataType.UINT8, ir.DataType.INT8) or (zero is not None and zero.numpy().any()):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = ir.convenience.get_const_tensor(node.inputs[2])
        if bias is None or any(size != 1 for size in list(bias.shape)[:-1]):
            return False  # a bias that is computed, or another one for every sample
    rows = {"Conv": 0, "MatMul": codes.numpy().ndim - 1}.get(node.op_type)
    if node.op_type == "Gemm":
        plain = [node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta")]
        if not all(plain) or node.attributes.get_int("transA", 0) != 0:
            return False
        rows = 0 if node.attributes.get_int("transB", 0) != 0 else 1
    return weight.scale.size == 1 or weight.axis % codes.numpy().ndim == rows


def _replace(model: ir.Model, node: ir.Node, data: Operand, weight: Operand, taken: set[str]) -> None:
    """Put the integer operators in the place of a product."""
    graph, name = model.graph, str(node.name or node.outputs[0].name)
    tensor = ir.convenience.get_const_tensor(weight.codes)
    assert tensor is not None
    codes, source = tensor.numpy(), weight.codes
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        source = _constant(model, f"{name}_weight", np.ascontiguousarray(codes.T), taken)  # (columns, rows)
    scale = np.float32(data.scale.reshape(())) * weight.scale.astype(np.float32).reshape(-1)  # (rows,) or (1,)
    if (scale == scale[0]).all():
        scale = scale[:1]
    shape = (1, -1, *[1] * (codes.ndim - 2)) if node.op_type == "Conv" else (-1,)
    unsigned = np.array(0, np.uint8 if data.codes.dtype != ir.DataType.INT8 else np.int8)
    zero = data.zero or _constant(model, f"{name}_input_zero_point", unsigned, taken)
    inputs = [data.codes, source, zero, _constant(model, f"{name}_weight_zero_point", np.array(0, np.int8), taken)]
    if node.op_type == "Conv":
        nodes = [ir.node("ConvInteger", inputs, attributes=dict(node.attributes), name=name)]
    else:
        nodes = [ir.node("MatMulInteger", inputs, name=name)]
    bias = None if len(node.inputs) < 3 or node.inputs[2] is None else ir.convenience.get_const_tensor(node.inputs[2])
    units = None if bias is None else bias.numpy().astype(np.float64).reshape(-1) / scale  # (rows,)
    whole = units is not None and bool(np.abs(units).max(initial=0) < INT32 / 2)
    if units is not None and whole:
        nodes.append(_add(model, nodes[-1], np.rint(units).astype(np.int32).reshape(shape), f"{name}_bias", taken))
    nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], attributes={"to": 1}, name=take_name(f"{name}_cast", taken)))
    factor = _constant(model, f"{name}_scale", scale.reshape(shape) if scale.size > 1 else scale.reshape(()), taken)
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor], name=take_name(f"{name}_rescaled", taken)))
    if bias is not None and not whole:  # out of the range of int32: it stays float
        array = bias.numpy().astype(np.float32).reshape(shape)
        nodes.append(_add(model, nodes[-1], array, f"{name}_bias", taken))
    for one in nodes[:-1]:
        one.outputs[0].name = take_name(f"{name}_{one.op_type}", taken)
    graph.insert_before(node, nodes)
    supersede(model, node, nodes[-1].outputs[0])


def _add(model: ir.Model, before: ir.Node, array: npt.NDArray[Any], name: str, taken: set[str]) -> ir.Node:
    """A node that adds a constant to the output of another."""
    value = _constant(model, name, array, taken)
    return ir.node("Add", [before.outputs[0], value], name=take_name(f"{name}_added", taken))


def _constant(model: ir.Model, name: str, array: npt.NDArray[Any], taken: set[str]) -> ir.Value:
    return add_initializer(model.graph, take_name(name, taken), array)
