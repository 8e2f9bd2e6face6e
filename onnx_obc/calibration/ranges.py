"""Activation ranges: a histogram of each tensor, and the interval that a quantizer should cover."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..core.arrays import Float64

BINS = 4096
HISTOGRAM_ELEMENTS = 2**16  # of each sample, evenly strided: plenty for 4096 bins, and cheap on large images
PERCENTILE = 99.99
SMALLEST_LIMIT = 2.0**-150  # below every float32 but 0


class RangeObserver:
    """Watches one activation: its exact smallest and largest value, and a histogram of it.

    The histogram spans [−limit, limit) where limit is the smallest power of two above everything seen. When a larger
    value comes, neighbouring bins merge, so that the result does not depend on the order of the data.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self._limit = SMALLEST_LIMIT
        self._counts: npt.NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)

    def update(self, values: npt.NDArray[np.floating], count: int) -> None:
        """Add one tensor that holds `count` samples along its first axis. Its values must be finite."""
        if values.size == 0:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = max(-self.low, self.high)
        if largest > 0:
            self._grow(2.0 ** int(np.frexp(largest)[1]))
        flat = values.reshape(count, -1) if values.ndim and values.shape[0] == count else values.reshape(1, -1)
        step = -(-flat.shape[1] // HISTOGRAM_ELEMENTS)
        sampled = flat[:, ::step].astype(np.float64).ravel()
        # Scaling by a power of two is exact, so that a value finds its bin whether or not bins merge later.
        index = np.floor(sampled * (BINS / (2 * self._limit))).astype(np.int64) + BINS // 2
        self._counts += np.bincount(index, minlength=BINS)

    def interval(
        self, method: Literal["mse", "minmax", "percentile"], bits: int, symmetric: bool
    ) -> tuple[float, float]:
        """The interval (low, high) to quantize, with low ≤ 0 ≤ high.

        minmax covers everything seen; percentile leaves out 0.01 % of the values on either side; mse minimises the
        mean squared error of quantization to `bits`, clipping included, as the histogram shows it.
        """
        low, high = self.low, self.high
        if low == high or method == "minmax":
            return low, high
        centres = np.linspace(-self._limit, self._limit, BINS, endpoint=False) + self._limit / BINS  # (BINS,)
        if method == "percentile":
            cumulative = np.cumsum(self._counts) / self._counts.sum()
            tail = 1 - PERCENTILE / 100
            half = self._limit / BINS  # of a bin
            below = float(centres[np.searchsorted(cumulative, tail)]) - half
            above = float(centres[np.searchsorted(cumulative, 1 - tail)]) + half
            return max(low, min(below, 0.0)), min(high, max(above, 0.0))
        return _best_clipping(centres, self._counts, low, high, bits, symmetric)

    def arrays(self) -> tuple[npt.NDArray[np.int64], Float64]:
        """All that was seen: counts (BINS,), and (low, high, limit)."""
        return self._counts, np.array([self.low, self.high, self._limit])

    @classmethod
    def restored(cls, counts: npt.NDArray[np.int64], limits: Float64) -> RangeObserver:
        """The observer that gave these `arrays`."""
        observer = cls()
        observer._counts = counts
        observer.low, observer.high, observer._limit = (float(x) for x in limits)
        return observer

    def _grow(self, limit: float) -> None:
        if limit <= self._limit:
            return
        merge = int(min(limit / self._limit, BINS))  # so many bins become one
        merged = np.zeros_like(self._counts)
        np.add.at(merged, (np.arange(BINS) - BINS // 2) // merge + BINS // 2, self._counts)
        self._counts, self._limit = merged, limit


def _best_clipping(
    centres: Float64, counts: npt.NDArray[np.int64], low: float, high: float, bits: int, symmetric: bool
) -> tuple[float, float]:
    """The interval inside (low, high) with the least mean squared error; both ends are shrunk in turn, in 1 % steps."""
    seen = counts > 0
    x, weight = centres[seen], counts[seen]  # (bins seen,)
    factors = np.arange(100, 19, -1)[:, None] / 100  # (81, 1)

    def best(lows: Float64, highs: Float64) -> int:
        if symmetric:
            highs = np.maximum(-lows, highs)
            scale = np.maximum(highs / (2 ** (bits - 1) - 1), np.finfo(np.float32).tiny)
            rounded = np.clip(np.round(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
        else:
            scale = np.maximum((highs - lows) / (2**bits - 1), np.finfo(np.float32).tiny)
            zero = np.round(-lows / scale)
            rounded = (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale  # (81, bins seen)
        return int(np.argmin(((rounded - x) ** 2) @ weight))

    if symmetric:
        factor = float(factors[best(low * factors, high * factors), 0])
        return low * factor, high * factor
    low_factor = high_factor = 1.0
    for _ in range(2):
        high_factor = float(factors[best(low * low_factor + 0 * factors, high * factors), 0])
        low_factor = float(factors[best(low * factors, high * high_factor + 0 * factors), 0])
    return low * low_factor, high * high_factor
