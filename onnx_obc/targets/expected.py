"""What the form of a file promises: which of its products an engine could run in integers, whoever wrote the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph.constants import rearranged
from .attribution import node_name

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
THROUGH = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")  # leave every element as it is

Form = Literal["int8", "weights", "float"]


@dataclass(frozen=True)
class ExpectedKernel:
    """One product with a constant weight, and what its form stands for.

    form: `int8` where both operands are dequantized 8-bit integers, or the operator takes integers; `weights` where
    the weight alone is an integer, of `bits` bits; `float` for the rest. type: of the weight's constant, such as
    `float16`. sparsity: the fraction of the weight that is zero. largest: the largest magnitude in it, if it is signed;
    0 otherwise. data_bits: of the integers that the other operand was dequantized from, None if it was not.
    """

    node: ir.Node
    form: Form
    bits: int
    type: str
    sparsity: float
    largest: int
    data_bits: int | None = None

    @property
    def name(self) -> str:
        """The node's name, or that of its output where it has none."""
        return node_name(self.node)


def expected_kernels(model: ir.Model) -> list[ExpectedKernel]:
    """The products of a file's main graph, in its order; those of two activations are left out."""
    found = []
    for node in model.graph:
        if node.op_type not in (*WEIGHTED, *INTEGER, "MatMulNBits"):
            continue
        operands = [node.inputs[index] for index in _operands(node)]
        constants = [value for value in operands if constant_behind(value) is not None]
        if not constants:
            continue
        weight, own = constant_behind(constants[-1]), dequantized_bits(constants[-1])
        assert weight is not None
        data = next((value for value in operands if value is not constants[-1]), None)
        widths = [dequantized_bits(value) for value in operands]
        if node.op_type == "MatMulNBits":
            form: Form = "weights"
            own = node.attributes.get_int("bits", 4)
        elif node.op_type in INTEGER:
            form = "int8"
        else:
            form = "float" if own is None else "int8" if widths == [8, 8] else "weights"
        array = weight.numpy()
        integers = np.issubdtype(array.dtype, np.signedinteger) and array.size
        largest = int(np.abs(array.astype(np.int32)).max()) if integers else 0
        bits, zeros = own or int(weight.dtype.bitwidth), _zeros(constants[-1])
        found.append(ExpectedKernel(node, form, bits, array.dtype.name, zeros, largest, dequantized_bits(data)))
    return found


def _zeros(value: ir.Value | None) -> float:
    """The fraction of a constant that is zero: of codes, that is their zero point."""
    tensor, node = constant_behind(value), dequantizer(value)
    assert tensor is not None
    array, zero = tensor.numpy(), np.zeros((), np.int32)
    point = None if node is None or len(node.inputs) < 3 else constant_behind(node.inputs[2])
    if node is not None and point is not None and node.inputs[0] is not None and node.inputs[0].is_initializer():
        zero = point.numpy()
        axis = node.attributes.get_int("axis", 1)
        if block := node.attributes.get_int("block_size", 0):
            zero = np.repeat(zero, block, axis=axis).take(range(array.shape[axis]), axis=axis)
        elif zero.size > 1:
            zero = np.expand_dims(zero, tuple(set(range(array.ndim)) - {axis % array.ndim}))
    return float((array == zero).mean()) if array.size else 0.0


def dequantized_bits(value: ir.Value | None) -> int | None:
    """The width of the integers that a value was dequantized from; None if it was not, or from floats of few bits."""
    node = dequantizer(value)
    if node is None or node.inputs[0] is None:
        return None
    dtype = codes_type(node.inputs[0])
    return None if dtype is None or not dtype.is_integer() else int(dtype.bitwidth)


def code_span(quantize: ir.Node) -> tuple[float, float] | None:
    """The least and the largest value that a QuantizeLinear with one constant scale can give; None of any other.

    In single precision, as engines have them: 255 steps of 6/255 end at 6.
    """
    dtype, scale = codes_type(quantize.outputs[0]), constant_behind(quantize.inputs[1])
    if dtype is None or not dtype.is_integer() or scale is None or scale.size != 1:
        return None
    point = constant_behind(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    zero = 0 if point is None else int(point.numpy().item())
    step = np.float32(scale.numpy().item())
    low, high = (float(step * np.float32(int(end) - zero)) for end in (dtype.min, dtype.max))
    return low, high


def stretch_to_clip(clip: ir.Node, quantize: ir.Node) -> float:
    """What the range of a QuantizeLinear could be multiplied by until it ends where the Clip in front of it does.

    Below 1 it reaches further than the Clip; infinite where nothing bounds it.
    """
    most = math.inf
    for bound, end, sign in zip(clip.inputs[1:], code_span(quantize) or (), (-1, 1), strict=False):
        tensor = constant_behind(bound)
        limit = None if tensor is None else tensor.numpy().item()
        if limit is not None and end != 0:
            most = min(most, limit / end)
        elif limit is not None and sign * limit < 0:  # integers end at 0, and the Clip lets that not pass
            most = min(most, 0.0)
    return most


def codes_type(codes: ir.Value) -> ir.DataType | None:
    """The type of what a QuantizeLinear gives or a DequantizeLinear reads; None where the file does not say."""
    if codes.dtype is not None:
        return codes.dtype
    producer = codes.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        if wanted := producer.attributes.get_int("output_dtype", 0):
            return ir.DataType(wanted)
        zero = producer.inputs[2] if len(producer.inputs) > 2 else None
        return ir.DataType.UINT8 if zero is None else zero.dtype
    tensor = constant_behind(codes)
    return None if tensor is None else tensor.dtype


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind a value, through operators that leave every element as it is."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in THROUGH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def constant_behind(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that a value is, seen through Q/DQ and operators that only move elements; None if it is none."""
    while value is not None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return tensor
        node = value.producer()
        if node is None or node.op_type not in (*THROUGH, "QuantizeLinear", "DequantizeLinear"):
            return None
        value = node.inputs[0]
    return None


def array_behind(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The same constant with its axes as a reader of the value sees them; None where a node's effect is not known."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy()
    node = value.producer()
    if node is None or node.op_type not in (*THROUGH, "QuantizeLinear", "DequantizeLinear"):
        return None
    array = array_behind(node.inputs[0])
    if array is None or node.op_type not in THROUGH:
        return array
    found = rearranged(node, array)
    return None if found is None else found[1]


def _operands(node: ir.Node) -> tuple[int, int]:
    """Which inputs the two operands are: some integer operators have scale and zero point in between."""
    return (0, 3) if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else (0, 1)
