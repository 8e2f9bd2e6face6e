"""Weights in blocks as MatMulNBits, which says itself how accurately it computes; of Q/DQ, the session decides that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...core.arrays import Array
from ...graph.constants import Constant, trace
from ...graph.contributed import DOMAIN
from ...graph.edit import add_initializer, names_of, take_name
from ...graph.fold import remove_unused
from .lowering import lower
from .rules import in_few_bits, split_gemm


def as_few_bits(model: ir.Model, accuracy_level: int) -> ir.Model:
    """A copy of a Q/DQ model in which each MatMul or Gemm by a weight in blocks is a MatMulNBits of this accuracy
    level, with an Add for the bias behind it.

    What is quantized on its own range is lowered too.
    """
    copy = lower(model).clone()
    taken = set(names_of(copy))
    for node in list(copy.graph):
        if node.domain == "" and in_few_bits(node) and (dequantize := _in_blocks(node.inputs[1])) is not None:
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                split_gemm(copy, node)
            _replace(copy, node, dequantize, accuracy_level, taken)
            copy.graph.opset_imports.setdefault(DOMAIN, 1)
    remove_unused(copy)
    return copy


def _in_blocks(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of constants that a weight in blocks along its first axis comes from."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    constants = [None if value is None else trace(value) for value in node.inputs]
    if not all(isinstance(constant, Constant) and constant.array.ndim == 2 for constant in constants):
        return None
    blocks = node.attributes.get_int("block_size", 0) != 0 and node.attributes.get_int("axis", 1) == 0
    return node if blocks else None


def _replace(model: ir.Model, node: ir.Node, dequantize: ir.Node, accuracy_level: int, taken: set[str]) -> None:
    found = [trace(value) for value in dequantize.inputs if value is not None]
    codes, scale, zero = (constant for constant in found if isinstance(constant, Constant))
    dtype, (k, n) = ir.DataType.from_numpy(codes.array.dtype), codes.array.shape
    bits, block = int(dtype.bitwidth), dequantize.attributes.get_int("block_size")
    shift = 2 ** (bits - 1) if dtype.is_signed() else 0
    zeros = zero.array.astype(np.int32).T + shift  # (N, blocks)
    shifted = codes.array.astype(np.int32).T + shift  # (N, K)
    padded = np.zeros((n, zeros.shape[1] * block), np.int32)
    padded[:, :k] = shifted
    name = str(dequantize.inputs[0].name if dequantize.inputs[0] is not None else node.name)
    parts: list[Array] = [
        _packed(padded, bits).reshape(n, zeros.shape[1], -1),  # (N, blocks, bytes of a block)
        np.ascontiguousarray(scale.array.T),  # (N, blocks)
        _packed(zeros, bits),  # (N, bytes)
    ]
    values = []
    for part, end in zip(parts, ("packed", "scales", "zero_points"), strict=True):
        values.append(add_initializer(model.graph, take_name(f"{name}_{end}", taken), part))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    node.op_type, node.domain = "MatMulNBits", DOMAIN
    node.resize_inputs(4)
    for index, value in enumerate(values, 1):
        node.replace_input_with(index, value)
    node.attributes.clear()
    node.attributes.update({key: ir.AttrInt64(key, int(number)) for key, number in attributes.items()})
    lookups = [use.node for use in codes.root.uses() if use.node.op_type == "GatherBlockQuantized"]
    if lookups and k % block == 0:  # a table that reads the same integers
        shape = add_initializer(model.graph, take_name(f"{name}_rows", taken), np.array([n, -1], np.int64))
        rows = ir.node("Reshape", [values[0], shape], name=take_name(f"{name}_Reshape", taken))
        rows.outputs[0].name = take_name(f"{name}_packed_rows", taken)
        model.graph.insert_before(lookups[0], rows)
        for lookup in lookups:
            for index, value in zip((0, 2, 3), (rows.outputs[0], *values[1:]), strict=True):
                lookup.replace_input_with(index, value)
            lookup.attributes["bits"] = ir.AttrInt64("bits", bits)


def _packed(codes: Array, bits: int) -> Array:
    """Codes (N, count) as bytes (N, ⌈count · bits / 8⌉), the first in the lowest bits."""
    each = 8 // bits
    full = np.zeros((codes.shape[0], -(-codes.shape[1] // each) * each), np.uint8)
    full[:, : codes.shape[1]] = codes
    groups = full.reshape(codes.shape[0], -1, each)  # (N, bytes, codes in a byte)
    packed = np.zeros(groups.shape[:2], np.uint8)
    for place in range(each):
        packed |= groups[:, :, place] << np.uint8(bits * place)
    return packed
