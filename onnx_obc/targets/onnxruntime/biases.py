"""Scales of weights that suit the biases behind them.

onnxruntime rounds the float bias of a product that runs in integers to int32, in steps of x_scale · w_scale, and adds
it to the integer sums. In the steps of its row a bias can be too large for int32, and then it saturates; where all
weights of a row are zero, whatever scale the row has decides how the bias is rounded. ONNX says neither.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ...core.arrays import Float32, Float64
from ...core.solution import Solution
from ...graph.layers import Layer

DIGITS = 2.0**24  # steps of a bias over a row of zeros: as many as float32 tells apart
MOST = 2.0**30  # steps of a bias: sums of 33 000 products of 8 bits still fit into an int32 beside it
SMALLEST, LARGEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def fit_to_biases(layer: Layer, solution: Solution, shared_scale: bool = False) -> Solution:
    """A layer's solution on scales that its biases fit, for a layer that stands in a model with Q/DQ.

    A row of zeros gets a scale in which its bias keeps all digits. A row whose bias is beyond `MOST` steps is rounded
    to a coarser grid, in which the bias has half of that. What this changes is next to nothing beside the bias: for k
    columns some √k · 2⁻²⁵ of it, about what float32 rounds the sum to. Other rows stay as they are, and layers with
    float inputs.

    shared_scale: all rows of a group have the same scale; then it is changed only where all of them are zero.
    """
    if solution.grid is None or solution.codes is None or solution.grid.block is not None:
        return solution
    reach = _reach(layer)  # (groups, rows)
    if reach is None:
        return solution
    scale = solution.grid.scale  # (groups, rows)
    zero = (solution.weights == 0).all(axis=2)
    if shared_scale:
        reach = np.broadcast_to(reach.max(axis=1, keepdims=True), reach.shape)
        zero = np.broadcast_to(zero.all(axis=1, keepdims=True), zero.shape)
    free = zero & (reach > 0)
    tight = ~zero & (reach > MOST * scale) & (not shared_scale)
    if not (free | tight).any():
        return solution
    wanted = np.where(free, reach / DIGITS, np.where(tight, 2 * reach / MOST, scale))
    grid = replace(solution.grid, scale=np.clip(wanted, SMALLEST, LARGEST).astype(np.float32))
    coarser = np.rint(solution.weights / grid.scale[:, :, None].astype(np.float64)) + grid.zero_point[:, :, None]
    coarser = np.clip(coarser, grid.qmin, grid.qmax).astype(np.int32)  # (groups, rows, columns)
    codes = np.where(tight[:, :, None], coarser, solution.codes)
    return solution.recoded(grid, codes)


def _reach(layer: Layer) -> Float64 | None:
    """|bias| / x_scale of every row, (groups, rows), the largest over the nodes; None where no bias is rounded."""
    found = np.zeros((layer.groups, layer.rows))
    for use in layer.uses:
        if use.index != 1:
            continue
        step, bias = _input_scale(use.node), _bias(use.node)
        if step is not None and bias is not None and bias.size in (1, found.size):
            size = np.abs(np.broadcast_to(bias.reshape(-1), found.size).reshape(found.shape)).astype(np.float64)
            found = np.maximum(found, size / step)
    return found if found.any() else None


def _input_scale(node: ir.Node) -> float | None:
    """The scale of a node's dequantized input; None where it is float."""
    source = None if node.inputs[0] is None else node.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear" or source.inputs[1] is None:
        return None
    tensor = ir.convenience.get_const_tensor(source.inputs[1])
    return None if tensor is None or tensor.size != 1 else float(tensor.numpy().reshape(()))


def _bias(node: ir.Node) -> Float32 | None:
    """The constant bias of a product, its own or that of an Add behind it, which onnxruntime merges into it."""
    if len(node.inputs) > 2:
        value = node.inputs[2]
    else:
        uses = list(node.outputs[0].uses())
        if node.op_type != "MatMul" or len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        value = uses[0].node.inputs[1 - uses[0].idx]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.dtype != ir.DataType.FLOAT else np.asarray(tensor.numpy(), np.float32)
