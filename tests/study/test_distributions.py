"""Moments between edges, what pruning leaves of them, and kurtosis, against closed forms, quadrature and plain sums."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma
from scipy.stats import norm

from onnx_obc.core.arrays import Float64
from onnx_obc.core.errors import ModelError
from onnx_obc.study.distributions import (
    Distribution,
    Family,
    gaussian,
    generalised_gaussian,
    laplace,
    of_kurtosis,
    partial_moments,
    sample,
    truncated_t,
    uniform,
)

X = np.array([-9.0, -3.0, -0.7, -1e-3, 0.0, 1e-3, 0.4, 2.0, 9.0])
RANDOM = np.random.default_rng(0)
SAMPLES = {
    "gaussian": RANDOM.standard_normal(501),
    "skewed": RANDOM.exponential(size=400) - 0.3,
    "positive": RANDOM.exponential(size=99),
    "ties": RANDOM.integers(-3, 4, 300) * 0.5,
    "one": np.array([-2.0]),
}


def generalised_density(shape: float) -> Callable[[float], float]:
    scale = (gamma(1 / shape) / gamma(3 / shape)) ** 0.5
    return lambda w: float(shape / (2 * scale * gamma(1 / shape)) * np.exp(-((abs(w) / scale) ** shape)))


def student_density(r: float) -> Callable[[float], float]:
    return lambda w: float((2 + w * w) ** -1.5 / (r / np.sqrt(2 + r * r)) * (abs(w) < r))


DENSITIES: dict[str, tuple[Distribution, Callable[[float], float]]] = {
    "gaussian": (gaussian(), generalised_density(2.0)),
    "laplace": (laplace(), generalised_density(1.0)),
    "shape 0.5": (generalised_gaussian(0.5), generalised_density(0.5)),
    "shape 4": (generalised_gaussian(4.0), generalised_density(4.0)),
    "uniform": (uniform(), lambda w: 0.5 * (abs(w) < 1)),
    "t, 0.05": (truncated_t(0.05), student_density(0.05)),
    "t, 1.3": (truncated_t(1.3), student_density(1.3)),
    "t, 100": (truncated_t(100.0), student_density(100.0)),
}


def test_partial_moments_of_a_gaussian() -> None:
    expected = np.stack([norm.cdf(X), -norm.pdf(X), norm.cdf(X) - X * norm.pdf(X)])
    np.testing.assert_allclose(partial_moments(gaussian(), X), expected, rtol=1e-12, atol=1e-16)
    far = gaussian().between(np.array([-np.inf, -30.0]))[:, 0]  # nothing cancels where little is left
    np.testing.assert_allclose(far, [norm.sf(30), -norm.pdf(30), norm.sf(30) + 30 * norm.pdf(30)], rtol=1e-11)


def test_upper_tails_of_laplace() -> None:
    """With p = ½ exp(−|w|), whose variance is 2: ½e^−a, ½(a+1)e^−a, ½(a²+2a+2)e^−a."""
    a = np.array([0.0, 0.5, 3.0, 40.0, 300.0])
    found = laplace().between(np.stack([a / np.sqrt(2), np.full_like(a, np.inf)], axis=-1))[..., 0]
    expected = 0.5 * np.exp(-a) * np.stack([np.ones_like(a), a + 1, a * a + 2 * a + 2])
    np.testing.assert_allclose(found * np.sqrt(2) ** np.arange(3)[:, None], expected, rtol=1e-12)


def test_partial_moments_of_a_uniform_distribution() -> None:
    x = np.array([-1.0, -0.3, 0.0, 0.8, 1.0])
    expected = np.stack([(x + 1) / 2, (x * x - 1) / 4, (x**3 + 1) / 6])
    np.testing.assert_allclose(partial_moments(uniform(), x), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", DENSITIES)
def test_moments_between_edges_are_integrals_of_the_density(name: str) -> None:
    distribution, density = DENSITIES[name]
    reach = min(distribution.extent, 20.0)
    edges = np.array([-1.0, -0.99, -0.2, 0.0, 1e-3, 0.5, 1.0]) * reach  # zero is an edge: a kink of some
    found = distribution.between(edges)
    for k in range(3):
        for i in range(len(edges) - 1):
            expected = quad(lambda w, k=k: w**k * density(w), edges[i], edges[i + 1], epsabs=0, epsrel=1e-11, limit=200)
            assert found[k, i] == pytest.approx(expected[0], rel=1e-7, abs=1e-14), (k, i)
    across = distribution.between(edges[[0, 2, 5]])  # over zero as well
    np.testing.assert_allclose(across, np.stack([found[:, :2].sum(1), found[:, 2:5].sum(1)], axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", DENSITIES)
def test_the_whole_is_one_and_edges_may_be_of_any_shape(name: str) -> None:
    distribution, _ = DENSITIES[name]
    whole = distribution.between(np.array([-np.inf, np.inf]))[:, 0]
    np.testing.assert_allclose(whole, [1, 0, distribution.square], rtol=1e-14, atol=1e-15)
    edges = np.sort(RANDOM.standard_normal((2, 4, 5)))
    assert distribution.between(edges).shape == (3, 2, 4, 4)
    np.testing.assert_array_equal(distribution.between(edges)[:, 1, 2], distribution.between(edges[1, 2]))


@pytest.mark.parametrize("name", DENSITIES)
def test_variance_and_kurtosis_are_integrals_of_the_density(name: str) -> None:
    distribution, density = DENSITIES[name]
    reach = distribution.extent
    middles = np.array([0, 0.01, 0.1, 0.4, 1]) * reach
    second, fourth = (
        2 * sum(quad(lambda w, k=k: w**k * density(w), *middles[i : i + 2])[0] for i in range(4)) for k in (2, 4)
    )
    assert distribution.variance == pytest.approx(second, rel=1e-6) and distribution.variance == distribution.square
    assert distribution.kurtosis == pytest.approx(fourth / second**2, rel=1e-5)


def test_kurtosis_is_pearsons() -> None:
    assert gaussian().kurtosis == pytest.approx(3, rel=1e-14)
    assert laplace().kurtosis == pytest.approx(6, rel=1e-14)
    assert uniform().kurtosis == 1.8
    assert sample(np.array([-1.0, 1.0])).kurtosis == 1


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("sparsity", [0.0, 1e-3, 0.5, 0.9, 1 - 1e-6, 1.0])
def test_pruning_takes_the_middle(name: str, sparsity: float) -> None:
    distribution, _ = DENSITIES[name]
    t = distribution.threshold(sparsity)
    inside = distribution.between(np.array([-t, t]))[:, 0]
    assert inside[0] == pytest.approx(sparsity, rel=1e-9, abs=1e-15)
    lost, rest = distribution.pruned(sparsity)
    assert lost == pytest.approx(inside[2], rel=1e-9, abs=1e-15)
    edges = np.array([-np.inf, -0.7, -0.1, 0.2, 1.0, np.inf])
    clipped = np.clip(edges, -t, t)
    expected = distribution.between(edges) - distribution.between(clipped)
    np.testing.assert_allclose(rest(edges), expected, atol=1e-14)


@pytest.mark.parametrize("family", ["truncated-t", "generalised-gaussian"])
def test_a_family_has_a_member_for_every_kurtosis(family: Family) -> None:
    for kurtosis in (1.82, 2.0, 3.0, 6.0, 100.0, 1e6, 1e12):
        assert of_kurtosis(kurtosis, family).kurtosis == pytest.approx(kurtosis, rel=1e-8)
    for kurtosis in (1.0, 1.8, np.nan):
        assert of_kurtosis(kurtosis, family).extent == 1.0  # the uniform distribution
    assert of_kurtosis(3.0, "generalised-gaussian").threshold(0.5) == pytest.approx(norm.ppf(0.75), rel=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_has_the_moments_of_its_numbers(name: str) -> None:
    w = SAMPLES[name]
    distribution = sample(w.reshape(-1, 1))
    edges = np.array([-np.inf, -1.5, -1.0, 0.0, 0.1, 0.5, 2.0, np.inf])
    np.testing.assert_allclose(distribution.between(edges), plain_moments(w, edges, len(w)), atol=1e-14)
    assert distribution.square == pytest.approx(np.mean(w * w)) and distribution.variance == pytest.approx(w.var())
    assert distribution.extent == np.abs(w).max() and distribution.signed == bool((w < 0).any())
    if len(w) > 1:
        assert distribution.kurtosis == pytest.approx(np.mean((w - w.mean()) ** 4) / w.var() ** 2)
    else:
        assert np.isnan(distribution.kurtosis)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.5, 0.875, 0.999, 1.0])
def test_a_sample_loses_its_smallest_numbers(name: str, sparsity: float) -> None:
    w = SAMPLES[name]
    distribution, removed = sample(w), round(sparsity * len(w))
    magnitudes = np.sort(np.abs(w))
    lost, rest = distribution.pruned(sparsity)
    assert lost == pytest.approx((magnitudes[:removed] ** 2).sum() / len(w), abs=1e-14)
    assert distribution.threshold(sparsity) == (magnitudes[removed - 1] if removed else 0)
    edges = np.array([-np.inf, -1.0, 0.0, 0.6, np.inf])
    if name != "ties":
        kept = w[np.argsort(np.abs(w))[removed:]]
        np.testing.assert_allclose(rest(edges), plain_moments(kept, edges, len(w)), atol=1e-14)
    count, _, square = rest(edges).sum(axis=1)
    assert count == pytest.approx(1 - removed / len(w)) and square == pytest.approx(distribution.square - lost)


def test_a_large_sample_keeps_its_digits() -> None:
    w = RANDOM.standard_t(2, 400_000).astype(np.float32)
    edges = np.linspace(-5, 5, 60)
    np.testing.assert_allclose(sample(w).between(edges), plain_moments(w.astype(np.float64), edges, len(w)), atol=1e-11)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 0.0], [-np.inf, 2.0]])
def test_a_weight_without_finite_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ModelError, match=r"^A weight is empty or holds infinities or NaN[^\n]*$"):
        sample(np.array(values))


def plain_moments(w: Float64, edges: Float64, n: int) -> Float64:
    """Sums over the numbers of each cell, divided by n: (3, cells)."""
    cells = [w[(w > low) & (w <= high)] for low, high in pairwise(edges)]
    return np.array([[(cell**k).sum() / n for cell in cells] for k in range(3)])
