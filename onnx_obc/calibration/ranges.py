"""Activation ranges: a histogram of each tensor, and the interval that a quantizer should cover."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..core.arrays import Float32, Float64

BINS = 4096  # that the mean squared error is computed on
HISTOGRAM_ELEMENTS = 2**16  # of each sample, evenly strided: plenty for the bins, and cheap on large images
PERCENTILE = 99.99
STEP = 13  # bits of a float32 that its bin does not depend on: 1024 bins from one power of two to the next
WIDTH = 24 * 2 ** (23 - STEP)  # bins on either side of zero: 24 powers of two below the largest value
SMALLEST = 2.0**-149  # float32


class RangeObserver:
    """Watches one activation: its exact smallest and largest value, and a histogram of it. NaN and infinity are left
    out.

    Bins are as wide as a thousandth of their values, so that a few huge values leave all others as far apart as they
    were. The bin of a value is the first bits of its float32; what lies 24 powers of two below the largest magnitude
    counts as zero. Of large samples every so many-th value counts, and the smallest and largest one. The result does
    not depend on the order of the data.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self._zeros = 0
        self._top = (
            WIDTH - 1
        )  # the largest bin that counts; bins top − WIDTH + 1 … top, of positive and negative values
        self._counts: npt.NDArray[np.int64] = np.zeros((2, WIDTH), dtype=np.int64)

    def update(self, values: npt.NDArray[np.floating], count: int) -> None:
        """Add one tensor that holds `count` samples along its first axis."""
        if values.size == 0:
            return
        flat = values.reshape(count, -1) if values.ndim and values.shape[0] == count else values.reshape(1, -1)
        lows, highs = flat.min(axis=1), flat.max(axis=1)  # of each sample
        low, high = lows.min(), highs.max()
        whole = bool(np.isfinite(low) and np.isfinite(high))
        if not whole:
            finite = np.isfinite(values)
            low, high = (f(where=finite, initial=0) for f in (values.min, values.max))
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        step = -(-flat.shape[1] // HISTOGRAM_ELEMENTS)
        sampled = flat[:, ::step].ravel()
        if step > 1:  # a few values far from the others, as transformers have, fall between the strides
            sampled = np.concatenate([sampled, lows, highs])
        bits = _float32(sampled if whole else sampled[np.isfinite(sampled)]).view(np.uint32)
        self._grow(int(_float32(np.array([max(abs(self.low), self.high)])).view(np.uint32)[0] >> STEP))
        place = ((bits & 0x7FFFFFFF) >> STEP).view(np.int32) - (self._top - WIDTH + 1)
        seen = place >= 0
        if not seen.all():
            self._zeros += int(seen.size - np.count_nonzero(seen))
            place, bits = place[seen], bits[seen]
        self._counts += np.bincount(place + (bits >> 31).view(np.int32) * WIDTH, minlength=2 * WIDTH).reshape(2, WIDTH)

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
        if method == "percentile":
            edges, (positive, negative) = self._edges(), self._counts  # edges: (WIDTH + 1,)
            least = (1 - PERCENTILE / 100) * (self._zeros + self._counts.sum())  # values outside, on either side
            return max(low, -_tail(edges, negative, least)), min(high, _tail(edges, positive, least))
        centres, counts = self.linear()
        return _best_clipping(centres, counts, low, high, bits, symmetric)

    def linear(self) -> tuple[Float64, npt.NDArray[np.int64]]:
        """The histogram in BINS equal bins up to the power of two above everything seen: centres and counts."""
        limit = 2.0 ** int(np.frexp(max(-self.low, self.high, SMALLEST))[1])
        half = limit / BINS  # of a bin; powers of two, so that each bin of ours lies within one of them
        index = np.minimum(self._edges()[:-1] / (2 * half), BINS // 2 - 1).astype(np.int64)  # (WIDTH,)
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, BINS // 2 + index, self._counts[0])
        np.add.at(counts, BINS // 2 - 1 - index, self._counts[1])
        counts[BINS // 2] += self._zeros
        return np.linspace(-limit, limit, BINS, endpoint=False) + half, counts

    def arrays(self) -> tuple[npt.NDArray[np.int64], Float64]:
        """All that was seen: the bins that are not empty and their counts, (2, bins), and (low, high, top, zeros)."""
        flat = self._counts.ravel()
        (bins,) = flat.nonzero()
        return np.stack([bins, flat[bins]]), np.array([self.low, self.high, self._top, self._zeros])

    @classmethod
    def restored(cls, counts: npt.NDArray[np.int64], limits: Float64) -> RangeObserver:
        """The observer that gave these `arrays`."""
        observer = cls()
        observer._counts.ravel()[counts[0]] = counts[1]
        observer.low, observer.high = float(limits[0]), float(limits[1])
        observer._top, observer._zeros = int(limits[2]), int(limits[3])
        return observer

    def _edges(self) -> Float64:
        """Where the bins of magnitudes begin and end, (WIDTH + 1,)."""
        places = np.arange(self._top - WIDTH + 1, self._top + 2, dtype=np.uint32)
        return np.minimum((places << STEP).view(np.float32).astype(np.float64), np.finfo(np.float32).max)

    def _grow(self, top: int) -> None:
        shift = top - self._top
        if shift <= 0:
            return
        lost = min(shift, WIDTH)
        self._zeros += int(self._counts[:, :lost].sum())
        kept = np.zeros_like(self._counts)
        kept[:, : WIDTH - lost] = self._counts[:, lost:]
        self._counts, self._top = kept, top


def _float32(values: npt.NDArray[np.floating]) -> Float32:
    largest = np.finfo(np.float32).max
    clipped: Float32 = np.clip(values, -largest, largest).astype(np.float32, copy=False)
    return clipped


def _tail(edges: Float64, counts: npt.NDArray[np.int64], least: float) -> float:
    """The smallest magnitude above which fewer than `least` values lie, as the bins (WIDTH,) show it; 0 if all do."""
    above = np.cumsum(counts[::-1])[::-1]  # (WIDTH,) in this bin or above
    reached = np.flatnonzero(above >= least)
    return float(edges[reached[-1] + 1]) if reached.size else 0.0


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
