"""Random calibration data, for trying things out: what it says about a model's loss or ranges means nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples
from .decoder import BRANCH, IDS, POSITIONS, STATES, STEPS, is_cache, is_cross, rows_of
from .feeds import deliver, fixed_batch, plan_samples
from .images import find_layout

SAMPLES = 64
FREE = 16
TOKENS = (*IDS, "inputs_embeds")
HIGHEST = 100  # no integer is as large, nor larger than the table that it is looked up in


@dataclass(frozen=True)
class _Lengths:
    """How many tokens a model is given, how many its caches hold, and how many the encoder gave it."""

    tokens: int
    past: int
    frames: int


def open_random(inputs: list[InputSpec], options: DataOptions, model: ir.Model | None = None) -> Samples:
    """Random samples: standard normal floats, integers in [0, 100), of which those named *mask* are 1 and those named
    *type* 0, and that are rows of the table that the model looks them up in; coins for bool.

    A free first dimension is the batch. Other free dimensions are 16, or `options.max_tokens`, except for the height
    and width of an input of rank 4 where `options.size` is given. A decoder's caches are full of such numbers; its
    masks and positions count them. What a sample holds depends on the seed and its index alone.
    Raises CalibrationError unless `options.allow_random`.
    """
    if not options.allow_random:
        raise CalibrationError(
            "random numbers calibrate nothing: losses and ranges would be those of noise; give real data, or say "
            "--allow-random to try things out"
        )
    whole = _unbatched(inputs)
    count = options.samples or max(SAMPLES, 1 if whole else fixed_batch(inputs) or 1)
    lengths = _lengths(inputs, options)
    rows = {spec.name: rows_of(model, spec.name) for spec in inputs} if model is not None else {}
    highest = {spec.name: min(HIGHEST, rows.get(spec.name) or HIGHEST) for spec in inputs}
    shapes = {spec.name: _shape(spec, lengths, options) for spec in inputs}
    plan = plan_samples(count, "random samples", inputs, replace(options, samples=count), whole=whole)

    def load(position: int) -> Feed:
        feed: Feed = {}
        for number, spec in enumerate(inputs):
            sample = position if spec.shape else 0  # an input of rank 0 is the same in all samples
            rng = np.random.default_rng([options.seed, sample, number])
            shape = shapes[spec.name] if whole else shapes[spec.name][1:]
            feed[spec.name] = _values(spec, shape, lengths, highest[spec.name], rng)
        return feed

    return deliver(plan, load, inputs, "random numbers", "random sample {}".format, whole=whole, synthetic=True)


def _unbatched(inputs: list[InputSpec]) -> bool:
    """Whether samples do not lie along the first axis of every input of a decoder."""
    tokens = _tokens(inputs)
    if tokens is None:
        return False
    return any(spec.name == STEPS or (is_cache(spec) and spec.shape[0] != tokens.shape[0]) for spec in inputs)


def _tokens(inputs: list[InputSpec]) -> InputSpec | None:
    return next((spec for spec in inputs if spec.name in TOKENS and len(spec.shape) > 1), None)


def _lengths(inputs: list[InputSpec], options: DataOptions) -> _Lengths:
    free, tokens = options.max_tokens or FREE, _tokens(inputs)
    caches = [] if tokens is None else [spec for spec in inputs if is_cache(spec)]
    own = next((spec.shape for spec in caches if not is_cross(spec.name)), None)
    cross = [spec.shape[-2] for spec in caches if is_cross(spec.name)]
    cross += [spec.shape[1] for spec in inputs if spec.name in STATES]
    fixed = own is not None and None not in own[1:]
    return _Lengths(
        tokens=(None if tokens is None else tokens.shape[1]) or free,
        past=0 if own is None else (own[-2] if fixed else None) or free,
        frames=next((size for size in cross if size is not None), free),
    )


def _shape(spec: InputSpec, lengths: _Lengths, options: DataOptions) -> tuple[int, ...]:
    """The shape of one sample, with its batch axis."""
    shape = list(spec.shape)
    if options.size is not None and len(shape) == 4:
        first = 2 if find_layout(spec, options) == "NCHW" else 1
        for axis, size in zip((first, first + 1), options.size, strict=True):
            if shape[axis] is None:
                shape[axis] = size
    free = lengths.tokens
    if is_cross(spec.name) or spec.name in STATES:
        free = lengths.frames
    elif is_cache(spec):
        free = lengths.past or free
    elif _is_mask(spec) and shape and shape[-1] is None:
        shape[-1] = lengths.past + lengths.tokens
    batch = 0
    if is_cache(spec):  # which stands behind what keys and values are stacked along
        batch = next((axis for axis, size in enumerate(shape) if size is None), 0)
    if shape and shape[batch] is None and spec.name != STEPS:
        shape[batch] = 1
    return tuple(free if size is None else size for size in shape)


def _is_mask(spec: InputSpec) -> bool:
    return "mask" in spec.name.lower()


def _values(
    spec: InputSpec, shape: tuple[int, ...], lengths: _Lengths, highest: int, rng: np.random.Generator
) -> Array:
    if spec.dtype.kind == "f":
        if lengths.past and _is_mask(spec) and len(shape) > 1:  # what is added to the scores of attention
            return np.zeros(shape, spec.dtype)
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind in "iu":
        if _is_mask(spec) or "type" in spec.name.lower():
            return np.full(shape, int(_is_mask(spec)), spec.dtype)
        if spec.name.lower() in (POSITIONS, STEPS) and shape:
            return np.broadcast_to(np.arange(lengths.past, lengths.past + shape[-1]), shape).astype(spec.dtype)
        return np.asarray(rng.integers(0, highest, shape)).astype(spec.dtype)
    if spec.dtype.kind == "b":
        if spec.name == BRANCH:
            return np.full(shape, lengths.past > 0)
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    raise CalibrationError(f"input {spec.name!r} takes {spec.dtype.name}: no random values for that; give real data")
