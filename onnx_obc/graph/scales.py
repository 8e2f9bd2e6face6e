"""How the scales of a weight lie in ONNX, and what can be written at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core.level import Choice
from .layers import Embedding, Layer

PER_AXIS_OPSET = 13  # DequantizeLinear with a scale for every channel

BLOCKED_OPSET = 21  # DequantizeLinear with block_size; the 4-bit types, and 16 bits

INT2_OPSET = 25

WIDEST_BLOCK, NARROWEST_BLOCK = 32, 8  # columns that share a scale in a table of 4-bit integers

WIDEST_BLOCK, NARROWEST_BLOCK = 32, 8  # columns that share a scale in a table of 4-bit integers


@dataclass(frozen=True)
class ScaleLayout:
    """How the rows' scales lie along a weight tensor.

    axis and block are the attributes of DequantizeLinear: neither for one scale, axis alone for one scale for each
    index of that axis, both where only blocks along `axis` can express it (batched and grouped weights).
    rows: the flat index (group · rows + row) of the row whose scale stands at each place of the scale tensor.
    """

    axis: int | None
    block: int | None
    rows: npt.NDArray[np.intp]


def storage_type(bits: int, symmetric: bool) -> ir.DataType:
    """The ONNX type that codes are stored in: the smallest that holds them. There is none for 3 bits: 4 are used."""
    width = next(width for width in (2, 4, 8, 16) if width >= bits)
    return ir.DataType[f"{'' if symmetric else 'U'}INT{width}"]


def scale_layout(layer: Layer, block: int | None = None) -> ScaleLayout | None:
    """The layout with the fewest scales that gives every row of the weight matrix its own.

    None where there is none: rows of one column each that fill several axes. block: columns that share a scale; the
    layout's `rows` are then indices (row · blocks + block) of a matrix, whose columns lie along one axis.
    """
    if block is not None:
        return _blocked_layout(layer, block)
    shape = (layer.groups, layer.rows, layer.columns)
    flat = np.arange(layer.groups * layer.rows, dtype=np.intp).reshape(shape[0], shape[1], 1)
    owner = layer.tensor(np.broadcast_to(flat, shape))  # as the weight tensor: the row of every element
    if layer.groups * layer.rows == 1:
        return ScaleLayout(None, None, np.zeros((), dtype=np.intp))
    for axis in range(owner.ndim):
        along = np.moveaxis(owner, axis, 0).reshape(owner.shape[axis], -1)  # (size of axis, the rest)
        if (along == along[:, :1]).all():
            return ScaleLayout(axis, None, along[:, 0])
    best: ScaleLayout | None = None
    for axis in range(owner.ndim):
        for block in range(owner.shape[axis], 1, -1):
            if owner.shape[axis] % block:
                continue
            firsts = owner.take(range(0, owner.shape[axis], block), axis=axis)
            if np.array_equal(np.repeat(firsts, block, axis=axis), owner):
                if best is None or firsts.size < best.rows.size:
                    best = ScaleLayout(axis, block, firsts)
                break
    return best


def runs_in_integers(layer: Layer) -> bool:
    """Whether a product of integers can have the layer's scales: one, or one for each row, of a weight of two axes.

    Of a weight of more axes, onnxruntime's MatMulInteger takes one scale only, and other engines none at all.
    """
    layout = scale_layout(layer)
    if layout is None or layout.block is not None:
        return False
    return "Conv" in layer.op or layer.weight.ndim <= 2 or layout.axis is None


def _blocked_layout(layer: Layer, block: int) -> ScaleLayout | None:
    index = np.arange(layer.rows * (layer.columns // block), dtype=np.intp).reshape(1, layer.rows, -1)
    owner = layer.tensor(np.repeat(index, block, axis=2))  # as the weight tensor: the block of every element
    for axis in range(owner.ndim):
        firsts = owner.take(range(0, owner.shape[axis], block), axis=axis)
        if owner.shape[axis] % block == 0 and np.array_equal(np.repeat(firsts, block, axis=axis), owner):
            return ScaleLayout(axis, block, firsts)
    return None


def unwritable(layer: Layer, choice: Choice) -> str | None:
    """Why no ONNX file can hold this layer so, on any target; None if one can."""
    if choice.level.bits is not None and scale_layout(layer, choice.level.block) is None:
        return "no DequantizeLinear can give each of its rows a scale; it stays float"
    return None


def table_block(columns: int, bits: int) -> int | None:
    """How many columns of a table's row share a scale: the widest block that divides a row. None: all rows share them.

    onnxruntime cannot look up types below 8 bits, so that their scales must lie along the rows.
    """
    if bits == 8:
        return None
    return next(size for size in range(min(WIDEST_BLOCK, columns), 0, -1) if columns % size == 0)


def unwritable_table(embedding: Embedding, bits: int) -> str | None:
    """Why a table cannot be stored in integers of so many bits, or None."""
    if not np.isfinite(embedding.table()).all():
        return "NaN or infinity in the table: it stays float"
    columns = embedding.shape[1]
    block = table_block(columns, bits)
    if block is not None and block < NARROWEST_BLOCK:
        blocks = f"blocks of {NARROWEST_BLOCK} to {WIDEST_BLOCK}"
        return f"{columns} columns do not divide into {blocks}, which share a scale: it stays float; int8 needs none"
    return None


def opset_needed(layer: Layer, choice: Choice) -> int:
    """The ai.onnx opset that this layer needs to be written so; 0 if any will do."""
    level = choice.level
    if level.bits is None:
        return 0
    narrowest = min(storage_type(level.bits, level.symmetric).bitwidth, choice.activation_bits or 8)
    if narrowest == 2:
        return INT2_OPSET
    layout = scale_layout(layer, level.block)
    blocked = narrowest == 4 or choice.activation_bits == 16 or (layout is not None and layout.block is not None)
    return BLOCKED_OPSET if blocked else PER_AXIS_OPSET
