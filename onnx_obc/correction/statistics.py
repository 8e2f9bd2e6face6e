"""Brings the statistics of a compressed model's values back to those of the dense model, one site after the other.

At a site y is the dense value and ŷ the compressed one, on a prefix that is corrected already. Per channel, over all
samples and positions, ŷ becomes f ŷ + s with f = σ / σ̂ and s = μ − f μ̂ ("batch-norm tuning" and "statistics correction"
of OBC, appendix; Hubara et al. 2021). Where only a shift can be taken in, f = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed, Float32, Float64
from ..core.machine import workers
from ..core.solution import Solution
from ..graph.edit import free_name, names_of
from ..graph.layers import Layer
from ..graph.write import WrittenWeight, rewrite
from ..runtime.session import Execution, is_finite
from ..runtime.stepper import Stepper
from .sites import Site

LARGEST_FACTOR = 2.0  # of a standard deviation, and its inverse: what is off by more is no drift
NEGLIGIBLE = 1e-4  # a channel with a standard deviation below this share of the value's largest one keeps its factor 1
ROUNDING = 1e-6  # of a factor, and of a shift relative to the largest statistic: what is off by less is left alone


@dataclass(frozen=True)
class Corrected:
    """What was found at a site.

    value, kind: the site's. mean_off: μ̂ − μ in standard deviations σ of the dense channel, spread_off: σ̂ / σ − 1, each
    the root mean square over the channels; of a channel that hardly varies, σ counts as the least that is no
    negligible share of the largest.
    """

    value: str
    kind: str
    mean_off: float
    spread_off: float


@dataclass(frozen=True)
class WrittenLayer:
    """A compressed layer, its solution, and where its weight was written."""

    layer: Layer
    solution: Solution
    weight: WrittenWeight


def correct(
    dense: ir.Model,
    written: ir.Model,
    sites: Sequence[Site],
    layers: Mapping[str, WrittenLayer],
    feeds: Sequence[Feed],
    *,
    execution: Execution = Execution(),
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Corrected], dict[str, Solution]]:
    """Correct a model that was written, in place, on feeds; both models are run once, step by step.

    dense: the model before it was written into. sites: those to correct, in the order of the graph. layers: those
    that were compressed, by name; others take their factor into the float weight that they have.

    Returns what was done, and the solutions as they are then: a factor goes into float weights or into scales, never
    into integers. progress: called with 1 for every site. Raises ModelError if a model does not run.
    """
    half = replace(execution, memory=execution.memory / 2)
    reference, compressed = Stepper(dense, feeds, half), Stepper(written, feeds, half)
    found, changed = [], {name: layer.solution for name, layer in layers.items()}
    for site in sites:
        name = str(site.node.outputs[0].name)
        wanted = [feed[site.value] for feed in reference.advance([site.value])]
        given = [feed[name] for feed in compressed.advance([name])]
        factor, shift, corrected = affine(wanted, given, site)
        del wanted, given
        found.append(corrected)
        progress(1)
        if not (factor != 1).any() and not shift.any():
            continue
        if site.kind == "batchnorm" and site.layer is not None and (factor != 1).any():
            if site.layer in changed:
                changed[site.layer] = scaled(changed[site.layer], factor)
                rewrite(written, layers[site.layer].layer, layers[site.layer].weight, changed[site.layer])
            else:
                _scale_float(written, site, factor)
        elif site.gain is not None and (factor != 1).any():
            _replace(written, *site.gain, lambda old, f=factor: old * f.reshape(old.shape))  # type: ignore[misc]
        if site.shift is not None:
            _replace(
                written, *site.shift, lambda old, f=factor, s=shift: old * f + s, zeros=site.channels  # type: ignore[misc]
            )  # fmt: skip
        compressed.update(name, lambda y, f=factor, s=shift, at=site: apply_affine(y, f, s, at.axis))  # type: ignore[misc]
    return found, changed


def affine(dense: Sequence[Array], compressed: Sequence[Array], site: Site) -> tuple[Float64, Float64, Corrected]:
    """The factor and the shift of every channel, (channels,) each, from a value on all feeds, and how far it was off.

    A factor is clipped to ½ … 2. Channels that hardly vary keep the factor 1, and what is off by no more than rounding
    is left as it is: the factor is 1 and the shift 0.
    """
    dense, compressed, axis = _finite(dense, compressed, site.axis)
    mean, spread = moments(dense, axis)  # (channels,) float64 each
    found_mean, found_spread = moments(compressed, axis)
    largest = max(float(spread.max(initial=0)), float(found_spread.max(initial=0)), float(np.finfo(np.float32).tiny))
    least = NEGLIGIBLE * largest
    factor = np.ones_like(mean)
    if site.kind != "bias":
        varies = (spread > least) & (found_spread > least)
        factor[varies] = np.clip(spread[varies] / found_spread[varies], 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        factor[np.abs(factor - 1) <= ROUNDING] = 1
        factor = factor.astype(np.float32).astype(np.float64)
    shift = mean - factor * found_mean if site.shift is not None else np.zeros_like(mean)
    shift[np.abs(shift) <= ROUNDING * max(largest, float(np.abs(mean).max(initial=0)))] = 0
    unit = np.maximum(spread, least)
    mean_off, spread_off = (found_mean - mean) / unit, (np.maximum(found_spread, least) - unit) / unit
    return factor, shift, Corrected(site.value, site.kind, _rms(mean_off), _rms(spread_off))


def _finite(
    dense: Sequence[Array], compressed: Sequence[Array], axis: int
) -> tuple[Sequence[Array], Sequence[Array], int]:
    """Both values where both are finite in all channels, and the axis of the channels then."""
    if all(map(is_finite, (*dense, *compressed))):
        return dense, compressed, axis
    kept: tuple[list[Array], list[Array]] = ([], [])
    for pair in zip(dense, compressed, strict=True):
        flat = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in pair]  # (positions, channels) each
        good = np.isfinite(flat[0]).all(axis=1) & np.isfinite(flat[1]).all(axis=1)
        for values, x in zip(kept, flat, strict=True):
            values.append(x[good])
    return *kept, -1


def _rms(values: Float64) -> float:
    return float(np.sqrt(np.mean(values**2)))


def moments(values: Sequence[Array], axis: int, threads: int | None = None) -> tuple[Float64, Float64]:
    """Mean and standard deviation of every channel, (channels,) float64, over all arrays and other axes.

    values: at least one array, of any size along the other axes; 0 and 0 where there is nothing to see. Planes are
    summed in the values' type, pairwise, and the rest in float64; all in float64 where they are too large for that.
    Shared out over `threads` threads, which changes no digit.
    """
    channels = values[0].shape[axis]
    count, mean, square = 0, np.zeros(channels), np.zeros(channels)  # of the deviations from the mean
    with ThreadPoolExecutor(workers(threads), "moments") as pool:
        parts = pool.map(lambda value: _sums(value, axis), values)
        for positions, part, spread in parts:
            if not positions:
                continue
            total = count + positions
            square = square + spread + (part - mean) ** 2 * (count * positions / total)
            mean, count = mean + (part - mean) * (positions / total), total
    return mean, np.sqrt(square / max(count, 1))


def _sums(value: Array, axis: int) -> tuple[int, Float64, Float64]:
    """How many positions an array has, and of every channel their mean and the sum of squares around it."""
    axis %= value.ndim
    channels, inner = value.shape[axis], math.prod(value.shape[axis + 1 :])
    x = value.reshape(math.prod(value.shape[:axis]), channels, inner)  # (outer, channels, inner)
    positions = len(x) * inner
    if not positions:
        return 0, np.zeros(channels), np.zeros(channels)
    with np.errstate(over="ignore", invalid="ignore"):
        near = (x.sum(axis=2).sum(axis=0, dtype=np.float64) / positions).astype(x.dtype)  # (channels,), to rounding
        away = x - near[:, None]  # (outer, channels, inner)
        off = away.sum(axis=2).sum(axis=0, dtype=np.float64) / positions  # (channels,), what rounding left
        square = np.einsum("oci,oci->oc", away, away).sum(axis=0, dtype=np.float64) - positions * off**2  # (channels,)
    if x.dtype != np.float64 and not np.isfinite(square).all():
        return _sums(value.astype(np.float64), axis)
    mean = near.astype(np.float64) + off
    return positions, mean, square


def apply_affine(value: Array, factor: Float64, shift: Float64, axis: int) -> Array:
    """f ŷ + s along the channels, in the value's type."""
    shape = [1] * value.ndim
    shape[axis] = -1
    changed: Array = value * factor.reshape(shape).astype(value.dtype)
    changed += shift.reshape(shape).astype(value.dtype)
    return changed


def add_to_bias(model: ir.Model, site: Site, shift: Float32) -> None:
    """Add a shift, (channels,), to the bias of a layer, in place; it gets one where it has none."""
    assert site.shift is not None
    _replace(model, *site.shift, lambda old: old + shift.reshape(-1), zeros=site.channels)


def scaled(solution: Solution, factor: Float64) -> Solution:
    """A solution whose rows are multiplied by a factor, (groups · rows,): the scales where there are any."""
    rows: Float32 = factor.reshape(solution.weights.shape[:2]).astype(np.float32)
    if solution.grid is None or solution.codes is None:
        return replace(solution, weights=solution.weights * rows[:, :, None])
    scale = solution.grid.scale
    grid = replace(solution.grid, scale=scale * rows.repeat(scale.shape[1] // rows.shape[1], axis=1))
    return replace(solution, grid=grid, weights=grid.dequantize(solution.codes))


def _scale_float(model: ir.Model, site: Site, factor: Float64) -> None:
    """Multiply the rows of a weight that was left in float: (M, C/groups, …), or (C, M/groups, …) if transposed."""
    node = site.node

    def change(old: Array) -> Array:
        rest = (1,) * (old.ndim - 2)
        if node.op_type == "Conv":
            return old * factor.reshape(-1, 1, *rest)
        if node.op_type == "Gemm":
            return old * (factor[:, None] if node.attributes.get_int("transB", 0) else factor)
        groups = node.attributes.get_int("group", 1)
        rows = np.repeat(factor.reshape(groups, -1), old.shape[0] // groups, axis=0)  # (C, M/groups)
        return old * rows.reshape(*rows.shape, *rest)

    _replace(model, node, 1, change)


def _replace(
    model: ir.Model, node: ir.Node, index: int, change: Callable[[Array], Array], zeros: int | None = None
) -> None:
    """Change a constant input of a node, which gets one of its own where others read it too. zeros: what to start from
    where it has none."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        assert zeros is not None
        old: Array = np.zeros(zeros, np.float32)
    else:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None, f"{value.name} is no constant: it is no site"
        old = tensor.numpy()
    new = np.asarray(change(old.astype(np.float64)), np.float32)
    if value is not None and value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output():
        _set(value, new)
        return
    name = free_name(f"{node.name or node.outputs[0].name}_corrected", set(names_of(model)))
    fresh = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    _set(fresh, new)
    model.graph.register_initializer(fresh)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)


def _set(value: ir.Value, array: Array) -> None:
    array = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    value.const_value = ir.Tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)
