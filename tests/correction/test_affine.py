"""Moments of channels, and the factors and shifts that follow from them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import random

from onnx_obc.correction.sites import Kind, Site
from onnx_obc.correction.statistics import LARGEST_FACTOR, Corrected, affine, apply_affine, moments


@given(
    channels=st.integers(1, 5),
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    offset=st.sampled_from([0.0, -3.0, 1e3]),
    axis=st.sampled_from([0, 1, -1]),
)
def test_moments(channels: int, counts: list[int], offset: float, axis: int) -> None:
    if not sum(counts):
        return
    parts = [random(channels, 3, count, seed=count) + np.float32(offset) for count in counts]  # channels first
    mean, spread = moments([np.moveaxis(part, 0, axis) for part in parts], axis)
    whole = np.concatenate(parts, axis=2).reshape(channels, -1).astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(axis=1), rtol=1e-6, atol=1e-6)  # planes are summed in float32
    np.testing.assert_allclose(spread, whole.std(axis=1), rtol=1e-6)


@pytest.mark.parametrize("size", [1e18, 1e30, 1e38])
def test_moments_of_values_whose_squares_float32_cannot_hold(size: float) -> None:
    part = (random(4, 50) * size / 8).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, spread = moments([part, np.ones((4, 50), np.float32)], 0)
        *_, found = affine([part], [part * np.float32(1.5)], site("batchnorm", 50))
    whole = np.concatenate([part, np.ones_like(part)], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(axis=1), rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(spread, whole.std(axis=1), rtol=1e-6)
    assert found.spread_off == pytest.approx(0.5, rel=1e-4)


def site(kind: Kind, channels: int, shifted: bool = True) -> Site:
    relu = ir.node("Relu", [ir.Value(name="x")])
    return Site(kind, relu, "y", 1, channels, shift=(relu, 0) if shifted else None)


def test_channels_that_hardly_vary_and_factors_out_of_range() -> None:
    y = random(1000, 5).astype(np.float64)
    y = ((y - y.mean(axis=0)) / y.std(axis=0)).astype(np.float32)  # σ = 1, μ = 0
    dense = y * np.array([1, 1, 1, 0, 1e-6], np.float32) + np.float32(3)
    found = y * np.array([0.8, 0.1, 10, 1, 0], np.float32) + np.float32(1)
    factor, shift, done = affine([dense], [found], site("batchnorm", 5))
    np.testing.assert_allclose(factor, [1.25, LARGEST_FACTOR, 1 / LARGEST_FACTOR, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(shift, 3 - factor, rtol=1e-5)
    assert factor[3] == factor[4] == 1
    factor, shift, same = affine([dense], [found], site("bias", 5))
    assert (factor == 1).all() and same == replace(done, kind="bias")
    np.testing.assert_allclose(shift, 2, rtol=1e-5)
    factor, shift, _ = affine([dense], [found], site("norm", 5, shifted=False))
    assert factor[0] != 1 and not shift.any()


def test_how_far_off() -> None:
    y = random(1000, 2).astype(np.float64)
    y = ((y - y.mean(axis=0)) / y.std(axis=0)).astype(np.float32)  # σ = 1, μ = 0
    scale = np.array([2, 4], np.float32)
    *_, done = affine([scale * y], [scale * y * np.float32(1.1) - np.float32(1)], site("batchnorm", 2))
    assert isinstance(done, Corrected) and (done.value, done.kind) == ("y", "batchnorm")
    assert done.mean_off == pytest.approx(np.sqrt((0.5**2 + 0.25**2) / 2), rel=1e-4)
    assert done.spread_off == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("mean", [0, 50])
def test_rounding_is_no_drift(mean: int) -> None:
    dense = random(200, 3) + np.float32(mean)
    found = dense * np.float32(1 + 2e-7)
    factor, shift, _ = affine([dense], [found], site("batchnorm", 3))
    assert (factor == 1).all() and not shift.any()


def test_without_positions_nothing_is_known() -> None:
    empty = np.zeros((0, 3), np.float32)
    factor, shift, _ = affine([empty], [empty], site("batchnorm", 3))
    assert not (factor != 1).any() and not shift.any()


@pytest.mark.parametrize("axis", [1, -1])
def test_apply_affine(axis: int) -> None:
    value, factor, shift = random(2, 3, 3), np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, -1.0])
    new = apply_affine(value, factor, shift, axis)
    assert new.dtype == np.float32
    for channel in range(3):
        at = (slice(None), channel) if axis == 1 else (..., channel)
        np.testing.assert_allclose(new[at], value[at] * factor[channel] + shift[channel], rtol=1e-6, atol=1e-7)
