"""Distributions of weights, as what expected errors need: moments between edges, and what pruning leaves of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import brentq
from scipy.special import gamma, gammaincc, gammaincinv, hyp2f1

from ..core.arrays import Array, Float64
from ..core.errors import ModelError

Moments: TypeAlias = Callable[[Float64], Float64]
Family = Literal["truncated-t", "generalised-gaussian"]

UNIFORM_KURTOSIS = 1.8  # both families begin there
_BEYOND = 1e-12  # the share of an unbounded distribution beyond its extent
_POWERS = np.arange(3)


@dataclass(frozen=True)
class Distribution:
    """A weight W, centred at zero or a sample.

    between: edges (..., n + 1) float64, ascending, ±inf allowed, to (3, ..., n) float64: ∫ wᵏ p dw between neighbours,
        k = 0, 1, 2. That is the difference of the partial moments F_k, without its cancellation in the tails.
    square: E[W²], the signal of an SNR. kurtosis: Pearson's, 3 for a Gaussian, nan for a constant.
    extent: the largest |W|, or what all but 1e-12 of an unbounded distribution lies within.
    signed: whether there are negative weights.
    threshold: sparsity c, 0 to 1, to the t with P(|W| ≤ t) = c.
    pruned: sparsity c to (∫ w² p dw over the share c of smallest magnitude, `between` of the rest).
    """

    between: Moments
    square: float
    variance: float
    kurtosis: float
    extent: float
    signed: bool
    threshold: Callable[[float], float]
    pruned: Callable[[float], tuple[float, Moments]]


def partial_moments(distribution: Distribution, x: Float64) -> Float64:
    """F_k(x) = ∫ wᵏ p dw from −∞ to x, k = 0, 1, 2. x: (n,) float64. Returns (3, n) float64."""
    return distribution.between(np.stack([np.full_like(x, -np.inf), x], axis=-1))[..., 0]


def generalised_gaussian(shape: float) -> Distribution:
    """p ∝ exp(−|w/α|^shape) of variance 1: shape 2 is N(0, 1), 1 is Laplace, less has heavier tails. shape > 0."""
    scale = float(np.sqrt(gamma(1 / shape) / gamma(3 / shape)))
    whole = 0.5 * scale**_POWERS * gamma((_POWERS + 1) / shape) / gamma(1 / shape)

    def tail(x: Float64) -> Float64:
        return np.stack([whole[k] * gammaincc((k + 1) / shape, (x / scale) ** shape) for k in _POWERS])

    def threshold(sparsity: float) -> float:
        return float(scale * gammaincinv(1 / shape, sparsity) ** (1 / shape))

    kurtosis = float(gamma(5 / shape) * gamma(1 / shape) / gamma(3 / shape) ** 2)
    return _even(tail, threshold, kurtosis, threshold(1 - _BEYOND))


def gaussian() -> Distribution:
    """N(0, 1): F_0 = Φ, F_1 = −φ, F_2 = Φ − xφ."""
    return generalised_gaussian(2.0)


def laplace() -> Distribution:
    """The Laplace distribution of variance 1."""
    return generalised_gaussian(1.0)


def uniform() -> Distribution:
    """U(−1, 1)."""

    def tail(x: Float64) -> Float64:
        return np.stack([(1 - np.minimum(x, 1) ** (k + 1)) / (2 * (k + 1)) for k in _POWERS])

    return _even(tail, float, UNIFORM_KURTOSIS, 1.0)


def truncated_t(r: float) -> Distribution:
    """Student's t with two degrees of freedom, truncated to (−r, r), r > 0: p ∝ (2 + w²)^(−3/2).

    Kuzmin et al. (2023) vary the kurtosis by it ("Comparison on statistical distributions"); it rises with r from 1.8.
    """
    root_r, second = float(np.sqrt(2 + r * r)), _second(r)
    half = r / (2 * root_r)  # ∫ from 0 to r of (2 + w²)^(−3/2) dw

    def tail(x: Float64) -> Float64:
        x = np.minimum(x, r)
        root = np.sqrt(2 + x * x)
        span = (r - x) * (r + x) / (root * root_r)  # the differences of closed forms, without their cancellation
        tails: Float64 = np.stack([span / (r * root + x * root_r), span / (root + root_r), second - _second(x)])
        return tails / (2 * half)

    def threshold(sparsity: float) -> float:
        g = sparsity * half
        return float(2 * np.sqrt(2) * g / np.sqrt(1 - 4 * g * g))

    return _even(tail, threshold, float(_fourth(r) * half / second**2), r)


FAMILIES: dict[Family, tuple[Callable[[float], Distribution], float, float]] = {  # with the parameter's range
    "truncated-t": (truncated_t, 1e-2, 1e9),
    "generalised-gaussian": (generalised_gaussian, 0.05, 50.0),
}


@lru_cache(16)  # its root is looked for at every budget
def of_kurtosis(kurtosis: float, family: Family = "truncated-t") -> Distribution:
    """The member of a family that has a kurtosis (to 1e13): the uniform distribution up to its 1.8, and for nan."""
    make, *ends = FAMILIES[family]

    def excess(log_parameter: float) -> float:
        return float(np.log(make(float(np.exp(log_parameter))).kurtosis / kurtosis))

    if not kurtosis > max(UNIFORM_KURTOSIS, min(make(end).kurtosis for end in ends)):
        return uniform()
    return make(float(np.exp(brentq(excess, *np.log(ends), xtol=1e-13))))


def sample(values: Array) -> Distribution:
    """The distribution of the numbers in an array, such as a weight. values: any shape, any real dtype.

    Sorted once; then a call of `between` is a binary search for each edge. A number on an edge lies below it. Pruned
    are round(c · n) numbers, of equal ones any. Raises ModelError where there are no numbers, or one is not finite.
    """
    ordered = np.sort(np.ravel(values).astype(np.float64))
    n = len(ordered)
    if not n or not np.isfinite(ordered[[0, -1]]).all():
        raise ModelError("A weight is empty or holds infinities or NaN: leave its layer out of the study")
    sums = np.zeros((2, n + 1))
    np.cumsum(ordered, out=sums[0, 1:])
    np.cumsum(ordered * ordered, out=sums[1, 1:])

    def without(first: int, last: int) -> Moments:
        """`between` for all but ordered[first:last]."""

        def between(edges: Float64) -> Float64:
            at = np.searchsorted(ordered, edges, side="right")
            below, above = np.minimum(at, first), np.maximum(at, last)
            count = np.diff(below + above)[None]
            return np.concatenate([count, np.diff(sums[:, below]) + np.diff(sums[:, above])]) / n

        return between

    def smallest(sparsity: float) -> tuple[int, int]:
        """The slice of `ordered` that holds the share of smallest magnitude."""
        k = round(sparsity * n)
        first = bisect_left(range(n - k), 0.0, key=lambda i: ordered[i] + ordered[i + k])
        return first, first + k

    def threshold(sparsity: float) -> float:
        first, last = smallest(sparsity)
        return float(np.abs(ordered[[first, last - 1]]).max()) if last > first else 0.0

    def pruned(sparsity: float) -> tuple[float, Moments]:
        first, last = smallest(sparsity)
        return float(sums[1, last] - sums[1, first]) / n, without(first, last)

    deviations = (ordered - ordered.mean()) ** 2
    variance = float(deviations.mean())
    kurtosis = float(np.mean(deviations**2)) / variance**2 if variance > 0 else np.nan
    extent = float(max(-ordered[0], ordered[-1]))
    square = float(np.mean(ordered * ordered))
    return Distribution(without(0, 0), square, variance, kurtosis, extent, bool(ordered[0] < 0), threshold, pruned)


def _even(tail: Moments, threshold: Callable[[float], float], kurtosis: float, extent: float) -> Distribution:
    """A distribution with p(−w) = p(w). tail: x ≥ 0, (...) to (3, ...): ∫ wᵏ p dw from x to ∞."""

    def rest(t: float) -> Moments:
        """`between` for |w| > t."""
        whole = tail(np.full(1, t))

        def between(edges: Float64) -> Float64:
            tails = tail(np.maximum(np.abs(edges), t))
            half = whole.reshape(3, *[1] * edges.ndim)
            sign = np.array([1.0, -1.0, 1.0]).reshape(half.shape)
            right, left = np.where(edges > 0, tails, half), np.where(edges < 0, tails, half)
            return sign * np.diff(left) - np.diff(right)

        return between

    def pruned(sparsity: float) -> tuple[float, Moments]:
        t = threshold(sparsity)
        return float(2 * (tail(np.zeros(1)) - tail(np.full(1, t)))[2, 0]), rest(t)

    square = 2 * float(tail(np.zeros(1))[2, 0])
    return Distribution(rest(0.0), square, square, kurtosis, extent, True, threshold, pruned)


def _second(x: Float64 | float) -> Float64:
    """∫ w² (2 + w²)^(−3/2) dw from 0 to x."""
    closed = np.arcsinh(x / np.sqrt(2)) - x / np.sqrt(2 + np.square(x))
    return np.where(np.less(x, 1), _series(2, np.minimum(x, 1)), closed)


def _fourth(x: float) -> float:
    """∫ w⁴ (2 + w²)^(−3/2) dw from 0 to x."""
    root = np.sqrt(2 + x * x)
    return float(x * (x * x + 6) / (2 * root) - 3 * np.arcsinh(x / np.sqrt(2)) if x >= 1 else _series(4, x))


def _series(k: int, x: Float64 | float) -> Float64:
    """∫ wᵏ (2 + w²)^(−3/2) dw from 0 to x ≤ 1, where the closed forms cancel."""
    power: Float64 = x ** (k + 1) / ((k + 1) * 2**1.5) * hyp2f1(1.5, (k + 1) / 2, (k + 3) / 2, -np.square(x) / 2)
    return power
