from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_obc.calibration.ranges import BINS, HISTOGRAM_ELEMENTS, RangeObserver
from onnx_obc.graph.write import activation_grid

METHODS = ("minmax", "mse", "percentile")


def observe(*batches: Any) -> RangeObserver:
    observer = RangeObserver()
    for batch in batches:
        observer.update(batch, len(batch))
    return observer


def squared_error(x: Any, interval: tuple[float, float], bits: int, symmetric: bool) -> float:
    """The mean squared error of x through QuantizeLinear and DequantizeLinear of this interval."""
    scale, zero = activation_grid(*interval, bits, symmetric)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    codes = np.clip(np.rint(x.astype(np.float64) / scale) + zero, low, high)
    return float((((codes - zero) * scale - x) ** 2).mean())


def normal(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


DATA = {
    "normal": normal(20, 500),
    "relu": np.maximum(normal(20, 500), 0),
    "shifted": normal(20, 500) * 0.1 + 5,
    "negative": -np.abs(normal(20, 500)),
    "outlier": np.where(np.arange(10000).reshape(20, 500) == 777, np.float32(50), normal(20, 500)),
    "heavy": (normal(20, 500) ** 5).astype(np.float32),
    "silu": normal(20, 500) / (1 + np.exp(-normal(20, 500))),
    "tiny": normal(20, 500) * np.float32(1e-30),
    "huge": normal(20, 500) * np.float32(1e30),
    "binary": (normal(20, 500) > 0).astype(np.float32),
    "powers of two": np.float32(2) ** np.arange(-10, 10).repeat(500).reshape(20, 500).astype(np.float32),
}


@pytest.mark.parametrize("name", DATA)
def test_smallest_and_largest_are_exact(name: str) -> None:
    x = DATA[name]
    observer = observe(x[:7], x[7:])
    assert observer.low == min(0.0, x.min())
    assert observer.high == max(0.0, x.max())
    for bits, symmetric in ((8, False), (4, True)):
        assert observer.interval("minmax", bits, symmetric) == (observer.low, observer.high)


@pytest.mark.parametrize("name", DATA)
def test_order_and_batches_do_not_matter(name: str) -> None:
    x = np.concatenate([np.zeros((2, 500), np.float32), DATA[name]])
    x = x[np.argsort(np.abs(x).max(axis=1), kind="stable")]  # the hardest order: the histogram grows and grows
    reference = observe(x)
    for batches in ([x[::-1]], x[:, None], x[::-1][:, None], np.array_split(x, 5)):
        other = observe(*batches)
        for method in METHODS:
            for bits, symmetric in ((8, False), (8, True), (4, False)):
                assert other.interval(method, bits, symmetric) == reference.interval(method, bits, symmetric)
    for mine, theirs in zip(observe(*np.array_split(x, 3)).arrays(), reference.arrays(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert reference.linear()[1].sum() == x.size


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=20), st.randoms())
def test_order_of_any_values(values: list[float], random: Any) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    one, other = (observe(*(np.array([[value]], np.float32) for value in order)) for order in (values, shuffled))
    for mine, theirs in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_histogram_counts_what_numpy_counts() -> None:
    x = DATA["normal"] * 3
    counts, _ = np.histogram(x.astype(np.float64), bins=BINS, range=(-16, 16))
    assert 8 < np.abs(x).max() < 16
    np.testing.assert_array_equal(observe(x).linear()[1], counts)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_mse_is_no_worse_than_minmax(name: str, symmetric: bool, bits: int) -> None:
    x = DATA[name]
    observer = observe(x)
    found = squared_error(x, observer.interval("mse", bits, symmetric), bits, symmetric)
    simple = squared_error(x, observer.interval("minmax", bits, symmetric), bits, symmetric)
    bin_width = 4 * np.abs(x).max().astype(np.float64) / BINS
    assert found <= simple * 1.05 + bin_width**2


def test_mse_clips_an_outlier_at_four_bits_and_is_near_the_best() -> None:
    x = DATA["outlier"]
    observer = observe(x)
    low, high = observer.interval("mse", 4, True)
    assert max(-low, high) < 25
    errors = [squared_error(x, (-limit, limit), 4, True) for limit in np.linspace(1, 50, 400)]
    assert squared_error(x, (low, high), 4, True) < 1.3 * min(errors) or high == pytest.approx(10, rel=0.2)
    assert squared_error(x, (low, high), 4, True) < 0.5 * squared_error(x, (-50, 50), 4, True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DATA)
def test_interval_lies_inside_and_includes_zero(name: str, method: Any) -> None:
    observer = observe(DATA[name])
    for bits, symmetric in ((8, False), (8, True), (4, False), (4, True)):
        low, high = observer.interval(method, bits, symmetric)
        assert observer.low <= low <= 0 <= high <= observer.high
        assert high > low


def test_percentile_of_a_uniform_distribution() -> None:
    x = np.linspace(-1, 3, 400_001, dtype=np.float32)[None]
    observer = RangeObserver()
    for part in np.array_split(x, 40, axis=1):
        observer.update(part, 1)
    low, high = observer.interval("percentile", 8, False)
    assert low == pytest.approx(-0.9996, abs=8 / BINS)
    assert high == pytest.approx(2.9996, abs=8 / BINS)


def test_percentile_leaves_an_outlier_out() -> None:
    x = np.concatenate([normal(100_000), [np.float32(1000)]])[None].astype(np.float32)
    observer = RangeObserver()
    for part in np.array_split(x, 10, axis=1):
        observer.update(part, 1)
    low, high = observer.interval("percentile", 8, False)
    assert high < 6
    assert low > -6
    assert observer.interval("minmax", 8, False)[1] == 1000


@pytest.mark.parametrize("outlier", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_percentiles_are_numpy_s_however_far_out_an_outlier_lies(outlier: float, sign: int) -> None:
    x = np.concatenate([normal(200_000), [np.float32(outlier)]]).astype(np.float32) * sign
    observer = observe(*np.array_split(x, 20))
    wanted = np.percentile(x, [0.01, 99.99], method="inverted_cdf")
    np.testing.assert_allclose(observer.interval("percentile", 8, False), wanted, rtol=2e-3)


def test_what_is_not_finite_is_left_out() -> None:
    x = normal(20, 500)
    holes = np.concatenate([x, np.full((20, 3), np.nan, np.float32), np.full((20, 3), -np.inf, np.float32)], axis=1)
    for mine, theirs in zip(observe(holes).arrays(), observe(x).arrays(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert observe(np.full((2, 3), np.inf, np.float32)).interval("mse", 8, False) == (0, 0)


def test_arrays_restore_it() -> None:
    observer = observe(DATA["heavy"])
    restored = RangeObserver.restored(*observer.arrays())
    for method in METHODS:
        assert restored.interval(method, 8, False) == observer.interval(method, 8, False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e30, 1e-30, 1e-45])
def test_constants(value: float, symmetric: bool, method: Any) -> None:
    x = np.full((3, 10), value, np.float32)
    interval = observe(x).interval(method, 8, symmetric)
    assert interval == (min(0.0, float(x[0, 0])), max(0.0, float(x[0, 0])))
    error = squared_error(x, interval, 8, symmetric)
    assert error <= (max(abs(value), 1e-38) / 1000) ** 2 or abs(value) < 1e-36


def test_nothing_seen() -> None:
    observer = RangeObserver()
    observer.update(np.zeros((0, 4), np.float32), 0)
    observer.update(np.zeros((2, 0), np.float32), 2)
    for method in METHODS:
        assert observer.interval(method, 8, False) == (0.0, 0.0)


def test_large_samples_are_thinned_evenly_but_never_lose_their_extremes() -> None:
    x = np.zeros((2, 4 * HISTOGRAM_ELEMENTS), np.float32)
    x[:, 1], x[:, 2] = -7, 9
    observer = observe(x)
    assert (observer.low, observer.high) == (-7, 9)
    assert observer.linear()[1].sum() == 2 * HISTOGRAM_ELEMENTS + 4  # and the extremes of each sample


def test_values_without_a_batch_axis() -> None:
    observer = RangeObserver()
    observer.update(np.float32(3), 4)
    observer.update(np.arange(-2, 3, dtype=np.float32), 4)
    assert (observer.low, observer.high) == (-2, 3)
    assert observer.linear()[1].sum() == 6


@pytest.mark.parametrize(("bits", "least"), [(16, 690), (8, 300)])
def test_a_value_between_the_strides_counts(bits: int, least: float) -> None:
    """Massive activations of transformers are few: the error of clipping them is more than that of longer steps."""
    x = normal(4, 2 * HISTOGRAM_ELEMENTS + 1)
    x[:, 1] = 700  # every third value counts, from the first on
    low, high = observe(x).interval("mse", bits, False)
    assert high > least and -10 < low < 0
