"""Weights in blocks as MatMulNBits, which says itself how accurately it computes; of Q/DQ, the session decides that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...core.arrays import Array
from ...graph.contributed import DOMAIN
from ...graph.edit import add_initializer, free_name, names_of
from ...graph.fold import remove_unused
from .lowering import lower


def as_few_bits(model: ir.Model, accuracy_level: int) -> ir.Model:
    """A copy of a Q/DQ model in which each MatMul by a weight in blocks is a MatMulNBits of this accuracy level.

    What is quantized on its own range is lowered too.
    """
    copy = lower(model).clone()
    taken = set(names_of(copy))
    for node in list(copy.graph):
        if node.op_type == "MatMul" and node.domain == "" and (dequantize := _in_blocks(node.inputs[1])) is not None:
            _replace(copy, node, dequantize, accuracy_level, taken)
            copy.graph.opset_imports.setdefault(DOMAIN, 1)
    remove_unused(copy)
    return copy


def _in_blocks(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of constants that a weight in blocks along its first axis comes from."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    constants = [None if value is None else value.const_value for value in node.inputs]
    first = constants[0]
    blocks = node.attributes.get_int("block_size", 0) != 0 and node.attributes.get_int("axis", 1) == 0
    return node if blocks and None not in constants and first is not None and len(first.shape) == 2 else None


def _replace(model: ir.Model, node: ir.Node, dequantize: ir.Node, accuracy_level: int, taken: set[str]) -> None:
    codes, scale, zero = (value.const_value for value in dequantize.inputs if value is not None)
    assert codes is not None and scale is not None and zero is not None
    bits, block, (k, n) = int(codes.dtype.bitwidth), dequantize.attributes.get_int("block_size"), codes.shape.numpy()
    shift = 2 ** (bits - 1) if codes.dtype.is_signed() else 0
    zeros = np.asarray(zero.numpy()).astype(np.int32).T + shift  # (N, blocks)
    shifted = np.asarray(codes.numpy()).astype(np.int32).T + shift  # (N, K)
    padded = np.zeros((n, zeros.shape[1] * block), np.int32)
    padded[:, :k] = shifted
    name = str(dequantize.inputs[0].name if dequantize.inputs[0] is not None else node.name)
    parts: list[Array] = [
        _packed(padded, bits).reshape(n, zeros.shape[1], -1),  # (N, blocks, bytes of a block)
        np.ascontiguousarray(scale.numpy().T),  # (N, blocks)
        _packed(zeros, bits),  # (N, bytes)
    ]
    values = []
    for part, end in zip(parts, ("packed", "scales", "zero_points"), strict=True):
        taken.add(free := free_name(f"{name}_{end}", taken))
        values.append(add_initializer(model.graph, free, part))
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    node.op_type, node.domain = "MatMulNBits", DOMAIN
    node.resize_inputs(4)
    for index, value in enumerate(values, 1):
        node.replace_input_with(index, value)
    node.attributes.update({key: ir.AttrInt64(key, int(number)) for key, number in attributes.items()})


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
