"""Tables that are the weight of a layer too: the embedding of a language model, and its head.

Files hold such a weight once, turned by a Transpose or by Gemm's transB, or, as exporters fold constants, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.level import Choice
from .layers import Embedding, Layer
from .scales import storage_type


@dataclass(frozen=True)
class Tie:
    """A table with the name of the layer whose weight matrix it is: a row of it for each output."""

    table: Embedding
    layer: str


def find_ties(tables: Sequence[Embedding], layers: Sequence[Layer]) -> list[Tie]:
    """The tables whose numbers are those of a layer's weight, whether the file holds them once or twice."""
    return [
        Tie(table, layer.name)
        for table in tables
        if (layer := next((layer for layer in layers if _same(table, layer)), None)) is not None
    ]


def _same(table: Embedding, layer: Layer) -> bool:
    if layer.op not in ("MatMul", "Gemm") or layer.weight.ndim != 2 or (layer.rows, layer.columns) != table.shape:
        return False
    numbers, weight = table.table(), layer.weight if rows_first(layer) else layer.weight.T  # (rows, columns) each
    return np.array_equal(numbers[0], weight[0]) and np.array_equal(numbers, weight)


def rows_first(layer: Layer) -> bool:
    """Whether the weight of a product, as its nodes see it, is (rows, columns), as a table is."""
    return layer.view.order == (0, 1, 2)


def cannot_share(tie: Tie, layer: Layer, choice: Choice, integers: bool, blocks: bool) -> str | None:
    """Why the table cannot read the integers of the layer at this level, or None.

    integers, blocks: whether the target looks up rows of int8, and rows of 4 bits in blocks.
    """
    level = choice.level
    if level.bits is None:
        return "the layer's weights are floats"
    if level.sparsity is not None:
        return "the layer's zeros would be the table's"
    bits = storage_type(level.bits, level.symmetric).bitwidth
    if bits == 8 and level.block is None:
        ranked = rows_first(layer) or all(_has_shape(node.inputs[1]) for node in tie.table.nodes)
        return None if integers and ranked else "its rows cannot be looked up in the layer's integers"
    if bits == 4 and level.block is not None:
        return None if blocks and looked_up_in_blocks(level.block) else "rows of 4 bits cannot be looked up there"
    return f"rows of {level} cannot be looked up: int8, or blocks of 4 bits, could be"


def looked_up_in_blocks(block: int) -> bool:
    """Whether onnxruntime's GatherBlockQuantized takes blocks of this size: powers of 2 from 16."""
    return block >= 16 and block & (block - 1) == 0


def _has_shape(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None
