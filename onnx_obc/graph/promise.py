"""What the form of a file promises: which of its products an engine could run in integers, whoever wrote the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
THROUGH = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")  # leave every element as it is

Form = Literal["int8", "weights", "float32"]


@dataclass(frozen=True)
class Promise:
    """One product with a constant weight, and what its form stands for.

    form: `int8` where both operands are dequantized 8-bit integers, or the operator takes integers; `weights` where
    the weight alone is an integer, of `bits` bits; `float32` for the rest. sparsity: the fraction of the weight that is
    zero. largest: the largest magnitude in it, if it is signed; 0 otherwise.
    """

    node: ir.Node
    form: Form
    bits: int
    sparsity: float
    largest: int

    @property
    def name(self) -> str:
        """The node's name, or that of its output where it has none."""
        return str(self.node.name or self.node.outputs[0].name)


def promises(model: ir.Model) -> list[Promise]:
    """The products of a file's main graph, in its order; those of two activations are left out."""
    found = []
    for node in model.graph:
        if node.op_type not in (*WEIGHTED, *INTEGER):
            continue
        operands = [value for value in node.inputs[: _operands(node)] if value is not None]
        constants = [value for value in operands if constant_behind(value) is not None]
        if not constants:
            continue
        weight = constant_behind(constants[-1])
        assert weight is not None
        if node.op_type in INTEGER:
            form: Form = "int8"
        else:
            widths = [dequantized_bits(value) for value in operands]
            own = dequantized_bits(constants[-1])
            form = "float32" if own is None else "int8" if widths == [8, 8] else "weights"
        array = weight.numpy()
        zeros = float((array == 0).mean()) if array.size else 0.0
        integers = np.issubdtype(array.dtype, np.signedinteger) and array.size
        largest = int(np.abs(array.astype(np.int32)).max()) if integers else 0
        found.append(Promise(node, form, int(weight.dtype.bitwidth), zeros, largest))
    return found


def dequantized_bits(value: ir.Value | None) -> int | None:
    """The width of the integers that a value was dequantized from; None if it was not."""
    node = dequantizer(value)
    if node is None or node.inputs[0] is None:
        return None
    codes = node.inputs[0]
    if codes.dtype is not None:
        return int(codes.dtype.bitwidth)
    producer = codes.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        zero = producer.inputs[2] if len(producer.inputs) > 2 else None
        return 8 if zero is None or zero.dtype is None else int(zero.dtype.bitwidth)
    tensor = constant_behind(codes)
    return None if tensor is None else int(tensor.dtype.bitwidth)


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


def _operands(node: ir.Node) -> int:
    """Among how many inputs the two operands are, those of the integer operators with scales in between included."""
    return 5 if node.op_type in ("QLinearConv", "QLinearMatMul", "QGemm") else 2
