from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import random

from onnx_obc.calibration import hessian_shifted as shifted
from onnx_obc.calibration import unfold
from onnx_obc.calibration.hessian import HessianSum
from onnx_obc.calibration.hessian_shifted import add_shifted, pays
from onnx_obc.calibration.unfold import output_shape, shape_of
from onnx_obc.graph.layers import Window


def window(kernel: tuple[int, ...], pads: tuple[int, ...] = (), groups: int = 1, **other: Any) -> Window:
    one = (1,) * len(kernel)
    fields = {"strides": one, "dilations": one, "auto_pad": "NOTSET", "transposed": False} | other
    return Window(kernel=kernel, pads=pads or (0,) * 2 * len(kernel), groups=groups, **fields)


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, tuple[int, ...]]:
    """A convolution of stride 1, and the shape of its input. Negative pads crop."""
    rank, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    ints = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    kernel, dilations, transposed = ints(1, 4 if rank < 3 else 2), ints(1, 2), draw(st.booleans())
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    limits = [(0, r) if transposed else (-1, 3) for r in reach * 2]
    pads = [draw(st.integers(low, high)) for low, high in limits]
    least = [r + 1 - before - after for r, before, after in zip(reach, pads[:rank], pads[rank:], strict=True)]
    if transposed:
        least = [1 + before + after - r for r, before, after in zip(reach, pads[:rank], pads[rank:], strict=True)]
    size = [max(1, least_size) + extra for least_size, extra in zip(least, ints(0, 5), strict=True)]
    how = window(tuple(kernel), tuple(pads), dilations=tuple(dilations), transposed=transposed)
    return how, (draw(st.integers(1, 3)), channels, *size)


def naive(x: Any, how: Window) -> tuple[Any, int]:
    """X Xᵀ by its definition, output pixel by output pixel, and the number of pixels."""
    (groups, columns), out = shape_of(how, x.shape), output_shape(how, x.shape[2:])
    total = np.zeros((groups, columns, columns))
    begins = how.pads[: len(out)]
    for image in x.astype(np.float64):
        for p in np.ndindex(*out):
            vectors = []
            for tap in np.ndindex(*how.kernel):
                if how.transposed:  # output p gets input q where q + tap · dilation − pad = p
                    q = [i - t * d + b for i, t, d, b in zip(p, tap, how.dilations, begins, strict=True)]
                else:
                    q = [i + t * d - b for i, t, d, b in zip(p, tap, how.dilations, begins, strict=True)]
                inside = all(0 <= i < size for i, size in zip(q, image.shape[1:], strict=True))
                vectors.append(image[(slice(None), *q)] if inside else np.zeros(len(image)))
            patch = np.array(vectors).reshape(len(vectors), groups, -1).transpose(1, 0, 2).reshape(groups, columns)
            total += patch[:, :, None] * patch[:, None]
    return total, len(x) * prod(out)


def check(x: Any, how: Window) -> None:
    """Float64 to rounding; float32 to 1e-6 of √(H_ii H_jj)."""
    expected, n = naive(x, how)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
        total = HessianSum(*shape_of(how, x.shape))
        add_shifted(total, x.astype(dtype), how)
        assert total.positions == n
        found = total.mean() * n / 2
        np.testing.assert_array_equal(found == 0, expected == 0)  # what is always padding has exact zeros
        unit = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))  # (1, columns)
        assert (np.abs(found - expected) <= tolerance * unit[:, :, None] * unit[:, None]).all()


@settings(max_examples=60, deadline=None)
@given(windows(), st.integers(0, 3), st.sampled_from([1, 20, 128]))
def test_shifted_products_are_the_naive_sum(case: tuple[Window, tuple[int, ...]], seed: int, plenty: int) -> None:
    how, shape = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shifted, "PLENTY", plenty)
        check(random(*shape, seed=seed) + 1, how)


@pytest.mark.parametrize("plenty", [1, 1000])
@pytest.mark.parametrize("block", [1, 50, 1000])
def test_neither_the_block_nor_the_precision_matters(block: int, plenty: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifted, "BLOCK", block)
    monkeypatch.setattr(shifted, "PLENTY", plenty)
    check(random(3, 4, 7, 6), window((3, 3), (1, 0, 1, 2)))


def test_planes_smaller_than_the_kernel() -> None:
    check(random(2, 2, 1, 1), window((3, 3), (1, 1, 1, 1)))
    check(random(2, 2, 1, 9), window((3, 5), (1, 2, 1, 2)))


def test_a_channel_that_is_always_zero_stays_so() -> None:
    x = random(4, 3, 6, 6)
    x[:, 1] = 0
    check(x, window((3, 3), (1, 1, 1, 1)))


def test_large_planes() -> None:
    check(random(2, 2, 17, 16) + 1, window((3, 3), (1, 1, 1, 1)))
    check(random(2, 2, 1600), window((4,), (1, 2)))


@pytest.mark.parametrize("size", [9, 20])
def test_batches_differ_by_no_more_than_float64_rounds(size: int) -> None:
    x, how = random(9, 8, size, size), window((3, 3), (1, 1, 1, 1))
    one, other = HessianSum(1, 72), HessianSum(1, 72)
    add_shifted(one, x, how)
    for start in range(0, 9, 4):
        add_shifted(other, x[start : start + 4], how)
    np.testing.assert_allclose(one.mean(), other.mean(), rtol=1e-12, atol=1e-12)


def test_unfolding_gives_the_same() -> None:
    x, how = random(3, 5, 9, 8), window((3, 3), (1, 1, 1, 1))
    one, other = HessianSum(1, 45), HessianSum(1, 45)
    add_shifted(one, x, how)
    for vectors in unfold.unfold(x, how, None, 3):
        other.add(vectors)
    assert one.positions == other.positions
    np.testing.assert_allclose(one.mean(), other.mean(), rtol=1e-6, atol=1e-6)


def test_where_it_pays() -> None:
    """13 products of 64 × 64 against half of one of 576 × 576, on planes of any useful size."""
    same = window((3, 3), (1, 1, 1, 1))
    assert pays(same, (32, 64, 32, 32))
    assert pays(window((5, 5), (2, 2, 2, 2)), (32, 64, 28, 28))
    assert not pays(window((3, 3)), (32, 64, 3, 3))  # 9 pixels are read for one position
    assert not pays(window((1, 1)), (32, 64, 32, 32))
    assert not pays(window((3, 3), (1, 1, 1, 1), strides=(2, 2)), (32, 64, 32, 32))
    assert not pays(window((3,), strides=(2,)), (32, 64, 32))
    assert all(pays(same, (n, 64, 32, 32)) for n in (1, 7))  # whatever the batch


@settings(max_examples=60, deadline=None)
@given(windows())
def test_what_pays_counts_is_what_is_done(case: tuple[Window, tuple[int, ...]]) -> None:
    how, shape = case
    taps, out = unfold.offsets(how, shape[2:]), output_shape(how, shape[2:])
    shifts, zones = shifted._shifts(taps), list(shifted._zones(taps, shape[2:], out))
    assert len(shifts) == (prod(2 * k - 1 for k in how.kernel) + 1) // 2
    assert len(zones) <= prod(min(2 * k + 1, size) for k, size in zip(how.kernel, shape[2:], strict=True))
    reads = shifted._reads(zones, taps, out)
    starts = [a for pairs in shifts.values() for a, _ in pairs]
    np.testing.assert_array_equal(reads @ np.arange(len(taps), 0, -1), reads[:, starts].sum(axis=1))


def test_a_kernel_as_large_as_its_input_is_decided_on_without_a_look_at_its_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has k² zones for its k⁴ pairs of taps."""
    monkeypatch.setattr(shifted, "_zones", lambda *args: pytest.fail("zones"))
    monkeypatch.setattr(shifted, "_shifts", lambda *args: pytest.fail("pairs"))
    for k in (20, 64, 224):
        assert not pays(window((k, k)), (32, 1, k, k))
    assert not pays(window((31, 31), (15,) * 4), (32, 64, 56, 56))
