"""Moves scale from the inputs of products into their weights, channel by channel (SmoothQuant, Xiao et al. 2023).

y = W x = (W S)(S⁻¹ x) with S = diag(s). One step serves all channels of a quantized input, so that a few large channels
cost the others their precision, while every row of a weight has a step of its own, and is rounded by a solver that
makes up for it. s takes the difference out of the input: by a division in front of the product, or of the constants
that made the input, where these products alone read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...core.arrays import Array, Float32, Float64
from ...graph.edit import add_initializer, free_name, names_of
from ...graph.layers import Layer, Use

BITS = 8  # of the inputs that scale is moved out of
EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # α of s = (max |x|)^α / (max |w|)^(1 − α)
LEAST = 1e-4  # of the largest channel's range: what a channel that is hardly used counts as


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known of an input's channels: low, high, the ends of their ranges, and square, the mean of x²; each
    (channels,)."""

    low: Float64
    high: Float64
    square: Float64


def movable(layers: Sequence[Layer], quantized: Collection[str]) -> dict[str, list[Layer]]:
    """The layers whose inputs can give scale to their weights, by the name of the input.

    quantized: the names of the layers with integer weights and inputs. Of an input that another layer reads too, which
    is not among them, none can.
    """
    found: dict[str, list[Layer]] = {}
    others: set[str] = set()
    for layer in layers:
        for use in layer.uses:
            if layer.name in quantized and len(layer.uses) == 1 and _is_product(layer, use):
                found.setdefault(use.tap.value, []).append(layer)
            else:
                others.add(use.tap.value)
    return {value: readers for value, readers in found.items() if value not in others}


def _is_product(layer: Layer, use: Use) -> bool:
    """Whether the layer is x W with the channels of x along its last axis, and its weight a constant of its own."""
    node, weight = use.node, use.node.inputs[use.index]
    if use.index != 1 or layer.weight.ndim != 2 or node.op_type not in ("MatMul", "Gemm"):
        return False
    own = weight is not None and weight.is_initializer() and len(list(weight.uses())) == 1
    return own and not node.attributes.get_int("transA", 0)


def look_at_channels(values: Sequence[str], runs: Iterable[Mapping[str, Array]]) -> dict[str, Channels]:
    """The channels of values over runs of a model; the last axis holds them. Of a value that none reaches all are zero.

    runs: what each run makes of the values.
    """
    seen: dict[str, list[tuple[Channels, int]]] = {value: [] for value in values}
    for run in runs:
        for value, array in run.items():
            x = array.reshape(-1, array.shape[-1])  # (positions, channels)
            if len(x):
                square = np.square(x, dtype=np.float64).mean(axis=0)
                seen[value].append((Channels(x.min(axis=0), x.max(axis=0), square), len(x)))
    return {value: _together(parts) for value, parts in seen.items()}


def _together(parts: Sequence[tuple[Channels, int]]) -> Channels:
    """The channels of all positions, from those of parts and how many positions each has."""
    if not parts:
        return Channels(np.zeros(1), np.zeros(1), np.zeros(1))
    total = sum(count for _, count in parts)
    return Channels(
        np.min([part.low for part, _ in parts], axis=0).astype(np.float64),
        np.max([part.high for part, _ in parts], axis=0).astype(np.float64),
        np.sum([part.square * (count / total) for part, count in parts], axis=0),
    )


def best_factors(channels: Channels, weights: Sequence[Float32]) -> Float64 | None:
    """The factors s, (channels,), with which rounding inputs and weights to 8 bits costs the outputs least; None for
    s = 1. Weights of fewer bits are taken for ones of 8: a solver makes up for most of what rounding them costs.

    weights: those that read the input, (rows, channels) each. The cost is the variance of uniform rounding noise: of
    the input Δ²/12 · Σ s²‖w‖², of the weights Σ Δ²/12 · Σ E[x²]/s², Δ the steps that the ranges leave. Candidates are
    those of `EXPONENTS`.
    """
    largest = np.maximum(np.abs(channels.low), np.abs(channels.high))  # (channels,)
    if not np.isfinite(largest).all() or largest.max() == 0:
        return None
    largest = np.maximum(largest, LEAST * largest.max())
    weight = np.concatenate(weights).astype(np.float64)  # (rows, channels)
    peak = np.abs(weight).max(axis=0)
    peak = np.maximum(peak, LEAST * peak.max()) if peak.max() > 0 else np.ones_like(peak)
    energy = np.square(weight).sum(axis=0)  # (channels,)

    def cost(s: Float64) -> float:
        low, high = min((channels.low / s).min(), 0.0), max((channels.high / s).max(), 0.0)
        step = (high - low) / (2**BITS - 1)
        rows = np.abs(weight * s).max(axis=1) / (2 ** (BITS - 1) - 1)  # (rows,) steps
        return float(step**2 * (np.square(s) * energy).sum() + np.square(rows).sum() * (channels.square / s**2).sum())

    candidates = [largest**alpha / peak ** (1 - alpha) for alpha in EXPONENTS]
    candidates = [s / np.exp(np.log(s).mean()) for s in candidates]
    best = min(candidates, key=cost)
    return best if cost(best) < cost(np.ones_like(best)) else None


def migrate(model: ir.Model, readers: Mapping[str, Sequence[Layer]], factors: Mapping[str, Float64]) -> None:
    """Divide inputs by their factors and multiply the weights that read them, in place; what is computed stays.

    readers: the layers of this model by the input that they read, see `movable`. factors: (channels,) by input.
    """
    for value, layers in readers.items():
        if value not in factors:
            continue
        s = factors[value]
        for layer in layers:
            (use,) = layer.uses
            _scale_weight(use, s)
        nodes = [use.node for layer in layers for use in layer.uses]
        source = nodes[0].inputs[0]
        assert source is not None
        alone = not source.is_graph_output() and all(use.node in nodes and use.idx == 0 for use in source.uses())
        if not (alone and _divide_constants(source, s)):
            _divide(model, source, nodes, s)


def _scale_weight(use: Use, s: Float64) -> None:
    weight = use.node.inputs[use.index]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy()  # (channels, rows), or (rows, channels) if transposed
    along = s[None] if use.node.attributes.get_int("transB", 0) else s[:, None]
    weight.const_value = ir.Tensor((array * along).astype(array.dtype), name=weight.name)


def _divide_constants(source: ir.Value, s: Float64) -> bool:
    """Divide the constants of the normalisation that makes a value, if there is one that this can be done to."""
    norm = source.producer()
    if norm is None or norm.op_type != "LayerNormalization" or norm.domain != "":
        return False
    if len(norm.inputs) < 3 or source is not norm.outputs[0]:
        return False
    constants = norm.inputs[1:3]
    arrays: list[Array] = []
    for constant in constants:
        tensor = None if constant is None else constant.const_value
        if constant is None or tensor is None or not constant.is_initializer() or tensor.shape != s.shape:
            return False
        arrays.append(tensor.numpy())
    graph = norm.graph
    if not isinstance(graph, ir.Graph):
        return False
    taken = {str(name) for name in graph.initializers}
    for index, (constant, array) in enumerate(zip(constants, arrays, strict=True), 1):
        assert constant is not None
        name = free_name(f"{constant.name}_scaled", taken)
        taken.add(name)
        norm.replace_input_with(index, add_initializer(graph, name, (array / s).astype(array.dtype)))
    return True


def _divide(model: ir.Model, source: ir.Value, nodes: Sequence[ir.Node], s: Float64) -> None:
    """Put a multiplication by 1/s between a value and some of its readers."""
    taken = set(names_of(model))
    constant = add_initializer(model.graph, free_name(f"{source.name}_factors", taken), (1 / s).astype(np.float32))
    taken.add(str(constant.name))
    division = ir.node("Mul", [source, constant], name=free_name(f"{source.name}_divided_node", taken))
    divided = division.outputs[0]
    divided.name, divided.type, divided.shape = free_name(f"{source.name}_divided", taken), source.type, source.shape
    order = {node: place for place, node in enumerate(model.graph)}
    model.graph.insert_before(min(nodes, key=lambda node: order[node]), division)
    for node in nodes:
        node.replace_input_with(0, divided)
