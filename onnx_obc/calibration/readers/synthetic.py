"""Random calibration data, for trying things out: what it says about a model's loss or ranges means nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples
from .feeds import deliver, fixed_batch, plan_samples
from .images import find_layout

SAMPLES = 64
FREE = 16


def open_random(inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Random samples: standard normal floats, integers in [0, 100), of which those named *mask* are
    1 and those named *type* 0, coins for bool.

    A free first dimension is the batch. Other free dimensions are 16, or `options.max_tokens`, except for the height
    and width of an input of rank 4 where `options.size` is given. What a sample holds depends on the seed and its index
    alone.
    Raises CalibrationError unless `options.allow_random`.
    """
    if not options.allow_random:
        raise CalibrationError(
            "random numbers calibrate nothing: losses and ranges would be those of noise; give real data, or say "
            "--allow-random to try things out"
        )
    count = options.samples or max(SAMPLES, fixed_batch(inputs) or 1)
    shapes = {spec.name: _shape(spec, options) for spec in inputs}
    plan = plan_samples(count, "random samples", inputs, replace(options, samples=count))

    def load(position: int) -> Feed:
        feed: Feed = {}
        for number, spec in enumerate(inputs):
            sample = position if spec.shape else 0  # an input of rank 0 is the same in all samples
            feed[spec.name] = _values(spec, shapes[spec.name], np.random.default_rng([options.seed, sample, number]))
        return feed

    return deliver(plan, load, inputs, "random numbers", "random sample {}".format, synthetic=True)


def _shape(spec: InputSpec, options: DataOptions) -> tuple[int, ...]:
    """The shape of one sample, without the batch axis."""
    shape = list(spec.shape)
    if options.size is not None and len(shape) == 4:
        first = 2 if find_layout(spec, options) == "NCHW" else 1
        for axis, size in zip((first, first + 1), options.size, strict=True):
            if shape[axis] is None:
                shape[axis] = size
    return tuple(options.max_tokens or FREE if size is None else size for size in shape[1:])


def _values(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind in "iu":
        name = spec.name.lower()
        if "mask" in name or "type" in name:
            return np.full(shape, int("mask" in name), spec.dtype)
        return np.asarray(rng.integers(0, 100, shape)).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    raise CalibrationError(f"input {spec.name!r} takes {spec.dtype.name}: no random values for that; give real data")
