"""What a layer costs: floating-point operations for one sample, and bytes at a level."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ..core.level import NM, Block, Choice, Level, Unstructured
from .layers import Contraction, Layer, Tap, Window

Shape = tuple[int | str | None, ...]  # a name or None where a dimension is free


@dataclass(frozen=True)
class Cost:
    """What a layer costs in float32.

    parameters: how many weights. flops: operations for one sample, two for every multiply-add, summed over the
    layer's uses; None where shapes are not known. free: the dimensions other than the batch that the model leaves
    free (their names in its inputs, or `?`), each counted as 1.
    """

    parameters: int
    flops: int | None
    free: tuple[str, ...] = ()


def layer_costs(
    model: ir.Model, layers: Sequence[Layer], run: Mapping[str, Shape] | None = None, samples: int | None = None
) -> dict[str, Cost]:
    """The cost of every layer by name, from shapes that ONNX infers on a copy of the model.

    run: the shapes of the values before and after layers in a run on so many `samples`; they are taken instead.
    """
    if run is not None:
        return {layer.name: _cost(layer, run, samples) for layer in layers}
    copy = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    values = [*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)]
    named = {size.value for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    shapes: dict[str, Shape] = {}
    for value in values:
        if value.shape is not None:
            sizes = (size if isinstance(size, int) else size.value for size in value.shape)
            shapes[str(value.name)] = tuple(x if isinstance(x, int) or x in named else None for x in sizes)
    batch = {x.shape[0].value for x in model.graph.inputs if x.shape and not isinstance(x.shape[0], int)} - {None}
    return {layer.name: _cost(layer, shapes, batch=batch) for layer in layers}


def flops(
    tap: Tap,
    rows: int,
    columns: int,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    samples: int | None = None,
) -> int:
    """Operations of one use for one sample: 2 · rows · columns · positions, summed over the groups.

    The shapes are those of so many `samples`, wherever these lie; None: axis 0 of the input is the batch and not
    counted, unless the product sums over it. Conv has a position for every output pixel, ConvTranspose for every input
    pixel, a product for every vector that is multiplied.
    """
    unfold = tap.unfold
    sizes = [1 if samples is None else input_shape[0], *input_shape[1:]]
    if isinstance(unfold, Window):  # where it is transposed, every input pixel meets the whole kernel
        pixels = sizes[0] * math.prod((input_shape if unfold.transposed else output_shape)[2:])
        return math.ceil(2 * unfold.groups * rows * columns * pixels / (samples or 1))
    axis = unfold.along(len(sizes))
    del sizes[axis]
    vectors = [sizes.pop()] if sizes else [1]  # what is left of the matrix that is multiplied
    lead = [1] * max(0, len(unfold.batch) - len(sizes)) + sizes
    batch = [1] * (len(lead) - len(unfold.batch)) + list(unfold.batch)
    return math.ceil(2 * rows * columns * math.prod(vectors) * math.prod(map(max, lead, batch)) / (samples or 1))


def density(level: Level) -> float:
    """The fraction of the weights that a level keeps: n/m, or 1 less the sparsity."""
    match level.sparsity:
        case None:
            return 1.0
        case NM(n, m):
            return n / m
        case Unstructured(sparsity) | Block(_, sparsity):
            return 1 - sparsity


def level_flops(cost: Cost, level: Level) -> float | None:
    """Operations for one sample without those that multiply by a zero; None where `cost` does not know."""
    return None if cost.flops is None else cost.flops * density(level)


def bops(cost: Cost, choice: Choice) -> float | None:
    """Bit operations: FLOPs without zeros × weight bits × activation bits, 32 for float."""
    flops, weight, activation = level_flops(cost, choice.level), choice.level.bits or 32, choice.activation_bits or 32
    return None if flops is None else flops * weight * activation


def obc_bops(cost: Cost, choice: Choice) -> float | None:
    """Bit operations as the code of OBC counts them: in proportion to the bits, not to their product.

    FLOPs without zeros × the wider of weight and activation bits: 8w8a is a quarter of float, 4w4a an eighth, 2:4
    halves either. (Frantar's database.py, get_bops: flops · 32 / 4, / 8, and / 2.)
    """
    flops, widest = level_flops(cost, choice.level), max(choice.level.bits or 32, choice.activation_bits or 32)
    return None if flops is None else flops * widest


def weight_bytes(layer: Layer, level: Level) -> int:
    """Bytes of the layer's weight at a level: packed values, a scale for every row or block, packed zero points.

    Counts the bits of the level, although 3-bit values are stored in 4. Zeros are stored like other values.
    """
    weights = layer.groups * layer.rows * layer.columns
    rows = layer.groups * layer.rows if level.block is None else weights // level.block
    if level.bits is None:
        return layer.float_bytes * weights
    zero_points = 0 if level.symmetric else math.ceil(rows * level.bits / 8)
    return table_bytes(weights, level.bits, rows, layer.float_bytes) + zero_points


def table_bytes(values: int, bits: int, scales: int, float_bytes: int) -> int:
    """Bytes of so many packed integers of `bits` bits and their scales."""
    return math.ceil(values * bits / 8) + float_bytes * scales


def _cost(
    layer: Layer, shapes: Mapping[str, Shape], samples: int | None = None, batch: Collection[str | None] = ()
) -> Cost:
    """batch: the names of the dimension that samples lie along, where `shapes` has names."""
    parameters = layer.groups * layer.rows * layer.columns
    free: dict[str, None] = {}
    total = 0
    for use in layer.uses:
        before, after = shapes.get(use.tap.value), shapes.get(str(use.node.outputs[0].name))
        if before is None or after is None:
            return Cost(parameters, None)
        elsewhere = any(size in batch for size in before[1:])  # axis 0 is another one: counted as in a run on 1 sample
        count = 1 if elsewhere else samples
        total += flops(use.tap, layer.rows, layer.columns, _fixed(before), _fixed(after), count)
        free |= dict.fromkeys(name for name in _free(use.tap, before, after) if name not in batch)
    return Cost(parameters, total, tuple(free))


def _fixed(shape: Shape) -> list[int]:
    return [size if isinstance(size, int) else 1 for size in shape]


def _free(tap: Tap, before: Shape, after: Shape) -> list[str]:
    """The names of the free dimensions that `flops` counts as 1."""
    if isinstance(tap.unfold, Contraction):
        axis = tap.unfold.along(len(before))
        counted = [size for index, size in enumerate(before) if index not in (0, axis)]
    else:
        counted = list(before[2:] if tap.unfold.transposed else after[2:])
    return [size or "?" for size in counted if not isinstance(size, int)]
