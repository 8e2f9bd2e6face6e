"""Takes constants that are added to, or multiplied with, the output of a layer into the layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..core.arrays import Float64
from .edit import free_name, names_of, supersede


def fuse_arithmetic(model: ir.Model) -> str | None:
    """Take every Mul and Add of a constant for each channel behind a Conv or ConvTranspose into its weight and bias.

    As onnxruntime does it, which quantization would otherwise keep from it. In float64, rounded once.
    """
    fused = 0
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and node.domain == "":
            while _fuse_next(model, node):
                fused += 1
    return f"{fused} Mul and Add fused into the Conv before" if fused else None


def _fuse_next(model: ir.Model, node: ir.Node) -> bool:
    """Take what reads a node's output into the node, where that is exact; whether it was."""
    value, uses = node.outputs[0], list(node.outputs[0].uses())
    if len(uses) != 1 or value.is_graph_output():
        return False
    reader, index = uses[0].node, uses[0].idx
    if reader.op_type not in ("Mul", "Add") or reader.domain != "" or reader.graph is not model.graph:
        return False
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    operand = reader.inputs[1 - index]
    if operand is None or operand.is_graph_input():  # a default that a user may replace
        return False
    held = [constant_of(v) for v in (operand, weight, *([bias] if bias is not None else []))]
    if weight is None or any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in held):
        return False
    other, w, *rest = [tensor.numpy().astype(np.float64) for tensor in held if tensor is not None]
    if w.ndim < 3 or (reader.op_type == "Mul" and (len(weight.uses()) > 1 or weight.is_graph_output())):
        return False
    rows = w.shape[0] if node.op_type == "Conv" else w.shape[1] * node.attributes.get_int("group", 1)
    channels = _for_each_channel(other, w.ndim, rows)
    if channels is None:
        return False
    b = rest[0] if rest else np.zeros(rows)
    scales = reader.op_type == "Mul"
    new_bias = (b * channels if scales else b + channels).astype(np.float32)
    new_weight = (w * along_outputs(node, channels, w.shape)).astype(np.float32) if scales else None
    if not np.isfinite(new_bias).all() or (new_weight is not None and not np.isfinite(new_weight).all()):
        return False
    if new_weight is not None:
        set_initializer(model, weight, new_weight)
    if rest or not scales:
        set_bias(model, node, new_bias)
    supersede(model, reader, value)
    return True


def _for_each_channel(array: Float64, rank: int, rows: int) -> Float64 | None:
    """A constant as one number for each channel of a value of so many axes, (rows,); None if it is none such."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in (1, rows) or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(array.reshape(-1), rows)


def flatten_biases(model: ir.Model) -> str | None:
    """Write each constant bias of a Gemm that all samples share as (N,): onnxruntime's integer Gemm takes no other."""
    for node in model.graph:
        if node.op_type != "Gemm" or node.domain != "" or len(node.inputs) < 3:
            continue
        bias, weight = constant_of(node.inputs[2]), constant_of(node.inputs[1])
        if bias is None or weight is None or bias.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
            continue
        array, rows = bias.numpy(), weight.shape.numpy()[0 if node.attributes.get_int("transB", 0) else 1]
        if array.shape != (rows,) and (array.size == 1 or array.shape == (1, rows)):
            set_bias(model, node, np.array(np.broadcast_to(array.reshape(-1), rows)))
    return None


def set_bias(model: ir.Model, node: ir.Node, array: np.ndarray) -> None:
    """Give a node this bias: in the place of the one it has, or an initializer of its own if others read that."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and len(bias.uses()) == 1 and not bias.is_graph_output():
        set_initializer(model, bias, array)
        return
    name = free_name(f"{node.inputs[1].name if node.inputs[1] else node.name}_bias", set(names_of(model)))
    fresh = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    set_initializer(model, fresh, array)
    node.resize_inputs(3)
    node.replace_input_with(2, fresh)


def along_outputs(node: ir.Node, factor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The factor of every output channel, shaped so that it multiplies a weight of this node."""
    # factor: (channels,) float64
    if node.op_type == "Conv":
        return factor.reshape(-1, *[1] * (len(shape) - 1))
    if node.op_type == "Gemm":
        return factor[:, None] if node.attributes.get_int("transB", 0) else factor
    groups = node.attributes.get_int("group", 1)  # ConvTranspose: weight (C, M/groups, kernel…)
    per_input = np.repeat(factor.reshape(groups, -1), shape[0] // groups, axis=0)  # (C, M/groups)
    return per_input.reshape(*shape[:2], *[1] * (len(shape) - 2))


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer; None for anything else."""
    return None if value is None or not value.is_initializer() else value.const_value


def set_initializer(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    """Make `value` an initializer that holds `array`; an input that was only its default goes."""
    value.const_value = ir.Tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)
    if value in model.graph.inputs:
        model.graph.inputs.remove(value)
    model.graph.register_initializer(value)
