"""Layers quantized without a solver, and small models written for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from small_graphs import Array, random, run

from onnx_obc.core.level import Choice, Level, parse_level
from onnx_obc.core.solution import Grid, Solution
from onnx_obc.graph.fold import remove_unused
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.opset import raise_opset
from onnx_obc.graph.scales import opset_needed
from onnx_obc.graph.write import Writer
from onnx_obc.pipeline.plan import fitted
from onnx_obc.targets.registry import TARGETS


def random_solution(layer: Layer, level: Level, seed: int = 0) -> Solution:
    """Random codes on a random grid, extreme codes among them."""
    assert level.bits is not None
    rng = np.random.default_rng([seed, layer.rows, layer.columns])
    shape = (layer.groups, layer.rows)
    scale = rng.uniform(0.001, 0.3, shape).astype(np.float32)
    top = 2**level.bits
    zero = np.zeros(shape, np.int32) if level.symmetric else rng.integers(0, top, shape, dtype=np.int32)
    grid = Grid(scale, zero, level.bits, level.symmetric)
    codes = rng.integers(grid.qmin, grid.qmax + 1, (*shape, layer.columns), dtype=np.int32)
    return Solution(level, grid.dequantize(codes), codes, grid, None, 0.0)


def rounded(layer: Layer, level: Level) -> Solution:
    """Every weight to the nearest value of a grid that spans its row; 0 where there are no bits."""
    weights = layer.matrix()  # (groups, rows, columns)
    if level.bits is None:
        return Solution(level, weights, None, None, None, 0.0)
    if level.symmetric:
        scale = np.abs(weights).max(axis=2) / (2 ** (level.bits - 1) - 1)
        zero = np.zeros(scale.shape)
    else:
        low, high = np.minimum(weights.min(axis=2), 0), np.maximum(weights.max(axis=2), 0)
        scale = (high - low) / (2**level.bits - 1)
        zero = np.rint(-low / scale)
    grid = Grid(scale.astype(np.float32), zero.astype(np.int32), level.bits, level.symmetric)
    codes = np.rint(weights / grid.scale[:, :, None]) + grid.zero_point[:, :, None]
    codes = np.clip(codes, grid.qmin, grid.qmax).astype(np.int32)
    return Solution(level, grid.dequantize(codes), codes, grid, None, 0.0)


@dataclass(frozen=True)
class Written:
    """A model written for a target, the activations that were quantized, the remarks, and a feed for it."""

    model: onnx.ModelProto
    activations: tuple[str, ...]
    remarks: Mapping[str, str]
    refused: Mapping[str, str]
    feed: dict[str, Array]

    def nodes(self, *types: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type in types]

    def producer(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self.model.graph.node if name in node.output), None)

    def constant(self, name: str) -> Array:
        return next(onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer if t.name == name)


def write_for(
    target: str,
    proto: onnx.ModelProto,
    level: str | Mapping[str, str] = "int8",
    activations: int | None = 8,
    skip: Sequence[str] = (),
    dynamic: bool = False,
) -> Written:
    """Round every layer to its level, and write the model with the ranges that it has on one random feed."""
    rules, model = TARGETS[target], ir.from_proto(proto)
    choices, remarks, refused = {}, {}, {}
    for layer in find_layers(model)[0]:
        choice = Choice(parse_level(level if isinstance(level, str) else level[layer.name]), activations, dynamic)
        reason = "skipped" if layer.name in skip else rules.unsupported(layer, choice)
        if reason is not None:
            refused[layer.name] = reason
            continue
        choices[layer.name], remark = fitted(layer, choice, target)
        if remark is not None:
            remarks[layer.name] = remark
    needed = max((opset_needed(x, choices[x.name]) for x in find_layers(model)[0] if x.name in choices), default=0)
    model = raise_opset(model, needed)
    layers, _ = find_layers(model)
    rules.prepare(model, layers, choices)
    placed = rules.place_qdq(model, layers, choices)

    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    feed = {name: random(*shape, seed=5) for name, shape in sizes.items()}
    probe = ir.to_proto(model)  # after `place`, which may have moved biases
    inner = [activation.value for activation in placed if activation.value not in feed]
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner)
    values = feed | (dict(zip(inner, run(probe, feed), strict=True)) if inner else {})

    writer = Writer(model)
    for layer in layers:
        if layer.name in choices:
            writer.weight(layer, rounded(layer, choices[layer.name].level))
    for activation in placed:
        value = values[activation.value]
        if activation.dynamic:
            writer.dynamic(activation)
        else:
            writer.activation(activation, min(0.0, float(value.min())), max(0.0, float(value.max())))
    remove_unused(model)
    lower = rules.weight_forms["dq"] if dynamic else None
    return Written(
        ir.to_proto(model if lower is None else lower(model)), tuple(a.value for a in placed), remarks, refused, feed
    )
