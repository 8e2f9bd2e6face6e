"""The rules of TensorRT for explicitly quantized networks, as findings on any ONNX file.

Sources: the TensorRT developer guide, "Explicit Quantization" and "Q/DQ Layer-Placement Recommendations", for all rules
but these: few channels, NVIDIA's answers at github.com/NVIDIA/TensorRT #1310 (INT8 tensor cores work on 32 channels,
others are padded) and NVIDIA/Model-Optimizer #1083 (convolutions of 16 channels or fewer lose); 2:4, the guide's
"Structured Sparsity": of four consecutive input channels at most two are non-zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..attribution import node_name
from ..expected import INTEGER, THROUGH, WEIGHTED, array_behind, codes_type, constant_behind, dequantizer
from ..finding import Finding

FEW_CHANNELS = 16
INT4_BLOCKS = (64, 128)
NEARLY = 0.1  # a weight is reported as nearly 2:4 up to this fraction of broken groups
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}  # of per-channel scales; Gemm with transB 0, otherwise 1


def check(model: ir.Model) -> list[Finding]:
    """A finding for every rule that a file breaks, in the order of its graph, those of 2:4 at the end."""
    found: list[Finding] = []
    weighted = [node for node in model.graph if node.op_type in WEIGHTED and node.domain in ("", "ai.onnx")]
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _numbers(node)
            found += _scales(node)
        if node.op_type == "QuantizeLinear":
            found += _unpaired(node)
        if node.domain == "com.microsoft" or node.op_type in INTEGER:
            message = f"TensorRT has no {node.op_type} of ONNX; it reads quantization from Q/DQ"
            found.append(
                Finding("error", "operator", node_name(node), message, "write it as Q/DQ around the float operator")
            )
    for node in weighted:
        found += _operands(node)
        found += _bias(node)
        found += _output(node)
        found += _channels(node)
    found += _skips(model, weighted)
    return found + [finding for node in weighted for finding in _sparsity(node)]


def _numbers(node: ir.Node) -> Iterator[Finding]:
    """Signed integers without a zero point; small floats are no integers."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = _codes_type(node)
    if dtype is not None and not dtype.is_integer():
        return
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    if zero is None and node.op_type == "DequantizeLinear" and maker is not None and maker.op_type == "QuantizeLinear":
        return  # which says it
    if zero is None and node.op_type == "QuantizeLinear" and "output_dtype" not in node.attributes:
        message = "it has no zero point: in ONNX that means unsigned integers, which TensorRT does not have"
        yield Finding("error", "zero-point", node_name(node), message, "give it an int8 zero point of 0")
        return
    if dtype is not None and dtype.name.startswith("UINT"):
        message = f"its integers are {dtype.name.lower()}; TensorRT takes signed ones only"
        yield Finding("error", "unsigned", node_name(node), message, "quantize to int8, symmetrically")
        return
    if zero is None or dtype == ir.DataType.INT32:
        return  # symmetric, or a bias, which has a rule of its own
    tensor = constant_behind(zero)
    if tensor is None:
        message = "its zero point is computed; TensorRT wants the constant 0"
        yield Finding("error", "zero-point", node_name(node), message, "make it a constant")
    elif tensor.numpy().astype(np.int32).any():
        message = "its zero point is not 0; TensorRT's quantization is symmetric"
        yield Finding("error", "asymmetric", node_name(node), message, "quantize symmetrically")


def _scales(node: ir.Node) -> Iterator[Finding]:
    """Activations per tensor, weights per channel along the outputs, int4 in blocks."""
    scale = constant_behind(node.inputs[1])
    if scale is None:
        yield Finding("error", "scale", node_name(node), "its scale is computed; TensorRT wants a constant", "fold it")
        return
    values = scale.numpy()
    if not (np.isfinite(values).all() and (values > 0).all()):
        yield Finding("error", "scale", node_name(node), "a scale is not a positive number", "fit the scales again")
    constant = constant_behind(node.inputs[0]) is not None
    if not constant and values.size > 1:
        message = "an activation has several scales; TensorRT takes one for each"
        yield Finding("error", "per-tensor", node_name(node), message, "use one scale")
    block, dtype = node.attributes.get_int("block_size", 0), _codes_type(node)
    if _narrow(node) and node.op_type == "DequantizeLinear":
        if not constant:
            message = "4-bit integers are for weights alone in TensorRT"
            yield Finding("error", "int4", node_name(node), message, "leave the activation in float or int8")
        elif block not in INT4_BLOCKS:
            message = f"4-bit weights have blocks of {block or 'a whole axis'}; TensorRT takes 64 or 128"
            yield Finding("error", "int4", node_name(node), message, "use blocks of 64 or 128 along the input channels")
    elif block != 0 and (dtype is None or dtype.is_integer()):
        message = "8-bit integers in blocks; TensorRT takes one scale for a tensor or a channel"
        yield Finding("error", "block", node_name(node), message, "use scales per output channel")


def _unpaired(node: ir.Node) -> Iterator[Finding]:
    uses = list(node.outputs[0].uses())
    others = {use.node.op_type for use in uses} - {"DequantizeLinear", *THROUGH}
    if others or not uses:
        readers = ", ".join(sorted(others)) or "nothing"
        message = f"its integers go to {readers}; TensorRT wants a DequantizeLinear behind every QuantizeLinear"
        yield Finding("error", "unpaired", node_name(node), message, "put a DequantizeLinear behind it")


def _operands(node: ir.Node) -> Iterator[Finding]:
    """Both operands quantized or none; per-channel scales along the outputs."""
    data, weight = (dequantizer(value) for value in node.inputs[:2])
    constant = [constant_behind(value) is not None for value in node.inputs[:2]]
    directly = data is not None and node.inputs[0] is data.outputs[0]  # further away it is another node's
    if weight is None and directly and not constant[0]:
        message = "its input is quantized and its weight is not: it runs in float, after a conversion"
        yield Finding("slow", "one-sided", node_name(node), message, "quantize the weight too, or leave the input")
    if weight is not None and constant[1] and data is None and not _narrow(weight):
        message = "its weight is quantized and its input is not: it runs in float"
        yield Finding("slow", "one-sided", node_name(node), message, "quantize its input too")
    if weight is not None and constant[1] and not _narrow(weight):
        scale, array = constant_behind(weight.inputs[1]), array_behind(node.inputs[1])
        axis = weight.attributes.get_int("axis", 1)
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        wanted = CHANNEL_AXIS.get(node.op_type, 0 if transposed else 1)
        if node.op_type == "MatMul" and array is not None:
            wanted = array.ndim - 1
        seen = _axis_behind(node.inputs[1], axis)
        if scale is not None and scale.size > 1 and seen is not None and seen != wanted:
            message = (
                f"the scales of its weight lie along axis {seen}; TensorRT wants axis {wanted}, that of the outputs"
            )
            yield Finding("error", "axis", node_name(node), message, f"use axis {wanted}")


def _bias(node: ir.Node) -> Iterator[Finding]:
    bias = dequantizer(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        message = "its bias comes from a DequantizeLinear, of int32 for most tools; TensorRT refuses that"
        yield Finding("error", "bias", node_name(node), message, "leave the bias in float")


def _output(node: ir.Node) -> Iterator[Finding]:
    """A quantized product followed by Q/DQ that only an Add reads: the sum cannot be fused into it."""
    if dequantizer(node.inputs[1]) is None:
        return
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "QuantizeLinear":
        behind = [use for one in uses[0].node.outputs[0].uses() for use in one.node.outputs[0].uses()]
        if behind and all(use.node.op_type == "Add" for use in behind):
            message = "its output is quantized before a residual sum, which TensorRT could have fused into it"
            yield Finding("slow", "output", node_name(node), message, "quantize the other branch of the sum instead")


def _channels(node: ir.Node) -> Iterator[Finding]:
    weight = array_behind(node.inputs[1])
    if node.op_type != "Conv" or weight is None or weight.ndim < 3 or dequantizer(node.inputs[1]) is None:
        return
    outputs, inputs = weight.shape[:2]
    groups = node.attributes.get_int("group", 1)
    if groups == 1 and min(inputs, outputs) <= FEW_CHANNELS:
        message = f"it has {inputs} input and {outputs} output channels: int8 kernels work on 32 and are slower here"
        yield Finding("slow", "few-channels", node_name(node), message, "leave it in float")


def _skips(model: ir.Model, weighted: list[ir.Node]) -> Iterator[Finding]:
    """The other branch of a residual sum behind a quantized convolution is quantized."""
    quantized = {node for node in weighted if node.op_type == "Conv" and dequantizer(node.inputs[1]) is not None}
    for node in model.graph:
        if node.op_type != "Add" or len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
            continue
        sources = [value.producer() for value in node.inputs if value is not None]
        branches = [source in quantized for source in sources]
        if not any(branches):
            continue
        other = node.inputs[branches.index(True) ^ 1]
        constant = constant_behind(other) is not None
        if not constant and not all(branches) and dequantizer(other) is None:
            message = "it adds a float branch to the output of a quantized convolution, which keeps the two apart"
            yield Finding("slow", "skip", node_name(node), message, "quantize the other branch")


def _sparsity(node: ir.Node) -> Iterator[Finding]:
    """2:4 along the input channels, through Q/DQ, of floats and of integers."""
    weight = array_behind(node.inputs[1])
    if weight is None or weight.size == 0 or node.op_type == "ConvTranspose":
        return
    if node.op_type != "MatMul" and weight.ndim < 2:
        return  # which no engine loads
    channels = channels_first(node, weight)
    if channels.shape[0] % 4:
        if channels.size and (channels == 0).mean() >= 0.45:
            message = f"half of its weight is zero, but {channels.shape[0]} input channels do not divide by 4"
            yield Finding("note", "2:4", node_name(node), message, "pad the channels, or leave it dense")
        return
    broken, groups = broken_groups(channels)
    if broken == 0 and groups:
        message = "its weight is 2:4 along the input channels: sparse kernels can run it"
        yield Finding("note", "2:4", node_name(node), message, "build with --sparsity=enable")
    elif 0 < broken <= NEARLY * groups:
        message = f"{broken} of {groups} groups of four input channels have more than two non-zeros: it is nearly 2:4"
        yield Finding(
            "slow", "2:4", node_name(node), message, "prune those groups: one is enough to rule sparse kernels out"
        )


def channels_first(node: ir.Node, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A weight with its input channels in front, (channels, the rest)."""
    if node.op_type == "Conv":
        axis = 1
    elif node.op_type == "Gemm":
        axis = 1 if node.attributes.get_int("transB", 0) != 0 else 0
    else:
        axis = max(weight.ndim - 2, 0)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def broken_groups(channels: npt.NDArray[Any]) -> tuple[int, int]:
    """How many groups of four consecutive rows of (channels, the rest) hold more than two non-zeros, and of how many.

    A weight without zeros in a group of four is dense, not broken: 0 of 0 where fewer than two in ten are zero.
    """
    if (channels == 0).mean() < 0.2:
        return 0, 0
    kept = (channels.reshape(channels.shape[0] // 4, 4, -1) != 0).sum(axis=1)  # (channels / 4, the rest)
    return int((kept > 2).sum()), int(kept.size)


def _axis_behind(value: ir.Value | None, axis: int) -> int | None:
    """Along which axis of a value the scales of its DequantizeLinear lie; None where nodes in between hide it."""
    node, turns = None if value is None else value.producer(), []
    while node is not None and node.op_type in ("Identity", "Transpose") and node.inputs[0] is not None:
        turns.append(node)
        node = node.inputs[0].producer()
    array = None if node is None or node.op_type != "DequantizeLinear" else array_behind(node.inputs[0])
    if array is None:
        return None
    axis %= array.ndim
    for turn in reversed(turns):
        if turn.op_type == "Transpose":
            axis = list(turn.attributes.get_ints("perm", range(array.ndim)[::-1])).index(axis)
    return axis


def _codes_type(node: ir.Node) -> ir.DataType | None:
    """The type of the integers that a QuantizeLinear writes or a DequantizeLinear reads."""
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    return None if codes is None else codes_type(codes)


def _narrow(node: ir.Node) -> bool:
    return _codes_type(node) in (ir.DataType.INT4, ir.DataType.UINT4)
