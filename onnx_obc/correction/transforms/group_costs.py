"""What the groups of a weight's columns cost under a pattern, and what they would with one column for another.

Columns lie in groups, in which an N:M pattern, a block of zeros or a scale is shared. Each class here knows one of
these: `of` is the cost of groups, `exchanged` that of groups in which a channel from elsewhere stands in for a member.
What the other members are enters through a bound for each row, so that each channel takes one comparison a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...core.arrays import Array, Float32, Float64, Int64
from ...core.level import NM, Block, Level
from ...solver.linalg.compiled import compiled_finite
from ...solver.linalg.threads import over_rows


class Cost(Protocol):
    """The cost of groups of channels to one weight, or to a part of its columns; a lower sum over groups is better."""

    @property
    def size(self) -> int:
        """Channels in a group."""

    @property
    def channels(self) -> int:
        """How many there are."""

    def of(self, groups: Int64) -> Float64:
        """The cost of each group, (count,); groups: (count, size)."""

    def exchanged(self, groups: Int64, threads: int | None) -> Float32:
        """The cost of each group with a member replaced by a channel, (count, size, channels)."""

    def take(self, channels: Int64) -> Cost:
        """The same of some channels, in this order."""


def cost_of(level: Level, weight: Float64, importance: Float64, part: slice) -> Cost | None:
    """The cost of a level's pattern, relative to the whole layer; None for a level whose columns have no groups.

    weight: (rows, kernel positions, channels); importance: what the square of a change of each column costs, (kernel
    positions, channels). part: the channels to be reordered.
    """
    saliency = (np.square(weight) * importance).reshape(-1, weight.shape[2])  # (rows, channels)
    saliency = (saliency / max(saliency.sum(), np.finfo(np.float64).tiny)).astype(np.float32)
    match level.sparsity:
        case NM(n, m):
            return Kept(np.ascontiguousarray(saliency[:, part]), n, m)
        case Block(size, sparsity):
            blocks = saliency.reshape(len(saliency), -1, size).sum(axis=2)
            return Blocks(np.ascontiguousarray(saliency[:, part]), size, float(np.quantile(blocks, sparsity)))
    if level.block is None:
        return None
    w = np.ascontiguousarray(weight[:, 0, part], dtype=np.float32)
    spread = np.square(np.ptp(weight[:, 0], axis=1)).sum() * importance.sum()
    return Scales(w, importance[0, part] / max(spread, np.finfo(np.float64).tiny), level.block, level.symmetric)


@dataclass(frozen=True, eq=False)
class Kept:
    """N:M: the saliency that goes, of all but the n largest of each group of m. saliency: (rows, channels)."""

    saliency: Float32
    n: int
    size: int

    @property
    def channels(self) -> int:
        """See `Cost`."""
        return int(self.saliency.shape[1])

    def take(self, channels: Int64) -> Kept:
        """See `Cost`."""
        return replace(self, saliency=np.ascontiguousarray(self.saliency[:, channels]))

    def of(self, groups: Int64) -> Float64:
        """See `Cost`."""
        ranked = np.sort(self.saliency[:, groups], axis=2)  # (rows, count, size)
        costs: Float64 = ranked[:, :, : self.size - self.n].sum(axis=(0, 2), dtype=np.float64)
        return costs

    def exchanged(self, groups: Int64, threads: int | None) -> Float32:
        """See `Cost`. Of the others and x stay the n − 1 largest of the others, and the next one or x."""
        own = self.saliency[:, groups]  # (rows, count, size)
        ranked = np.sort(own, axis=2)[:, :, ::-1]
        last, spare = ranked[:, :, self.n - 1, None], ranked[:, :, self.n, None]
        bound = np.where(own >= last, spare, last)  # the n-th largest of the others
        top = ranked[:, :, : self.n].sum(axis=2, keepdims=True)  # of all, and of the others:
        top = np.where(own >= last, top - own + spare, top)
        goes = (own.sum(axis=2, keepdims=True) - own - top + bound).sum(axis=0)  # (count, size)
        whole = self.saliency.sum(axis=0)  # (channels,)
        costs: Float32 = goes[:, :, None] + whole - _over_channels(_larger, bound, self.saliency, threads)
        return costs


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of zeros: the saliency of those under a threshold, and the threshold for the others, which lose nothing by
    more. At the threshold that leaves as many blocks as the level asks for, less of it is less pruned saliency."""

    saliency: Float32  # (rows, channels)
    size: int
    threshold: float

    @property
    def channels(self) -> int:
        """See `Cost`."""
        return int(self.saliency.shape[1])

    def take(self, channels: Int64) -> Blocks:
        """See `Cost`."""
        return replace(self, saliency=np.ascontiguousarray(self.saliency[:, channels]))

    def of(self, groups: Int64) -> Float64:
        """See `Cost`."""
        blocks = self.saliency[:, groups].sum(axis=2)  # (rows, count)
        costs: Float64 = np.minimum(blocks, np.float32(self.threshold)).sum(axis=0, dtype=np.float64)
        return costs

    def exchanged(self, groups: Int64, threads: int | None) -> Float32:
        """See `Cost`: min(others + x, threshold) = threshold − max(threshold − others, x) + x."""
        own = self.saliency[:, groups]  # (rows, count, size)
        room = np.float32(self.threshold) - (own.sum(axis=2, keepdims=True) - own)
        whole = np.float32(len(own) * self.threshold) + self.saliency.sum(axis=0)  # (channels,)
        costs: Float32 = whole - _over_channels(_larger, room, self.saliency, threads)
        return costs


@dataclass(frozen=True, eq=False)
class Scales:
    """Blocks that share a scale: the variance of rounding, ∝ step² · Σ importance, the step the range of the block."""

    weight: Float32  # (rows, channels)
    importance: Float64  # (channels,)
    size: int
    symmetric: bool

    @property
    def channels(self) -> int:
        """See `Cost`."""
        return len(self.importance)

    def take(self, channels: Int64) -> Scales:
        """See `Cost`."""
        weight = np.ascontiguousarray(self.weight[:, channels])
        return replace(self, weight=weight, importance=self.importance[channels])

    @property
    def _reach(self) -> Float32:
        return np.abs(self.weight) if self.symmetric else self.weight

    def of(self, groups: Int64) -> Float64:
        """See `Cost`."""
        own = self._reach[:, groups]  # (rows, count, size)
        span = np.maximum(own.max(axis=2), 0) - np.minimum(own.min(axis=2), 0)
        costs: Float64 = np.square(span, dtype=np.float64).sum(axis=0) * self.importance[groups].sum(axis=1)
        return costs

    def exchanged(self, groups: Int64, threads: int | None) -> Float32:
        """See `Cost`."""
        own, h = self._reach[:, groups], self.importance[groups]
        high, low = _largest_of_others(own), -_largest_of_others(-own)
        both = np.stack([np.maximum(high, 0), np.minimum(low, 0)], axis=-1)  # (rows, count, size, 2)
        spans = _over_channels(_span, both, self._reach, threads)
        others = (h.sum(axis=1, keepdims=True) - h).astype(np.float32)  # (count, size)
        costs: Float32 = spans * (others[:, :, None] + self.importance.astype(np.float32))
        return costs


def _largest_of_others(own: Float32) -> Float32:
    """Of each member the largest of the other members, both (rows, count, size)."""
    ranked = np.sort(own, axis=2)
    return np.where(own == ranked[:, :, -1:], ranked[:, :, -2:-1], ranked[:, :, -1:])


def _over_channels(kernel: Callable[..., None], bounds: Array, x: Float32, threads: int | None) -> Float32:
    """A kernel's sums for each member and channel, (count, size, channels).

    bounds: what the other members of each member's group leave, (rows, count, size, …). x: (rows, channels).
    """
    rows, count, size = bounds.shape[:3]
    each = np.ascontiguousarray(np.moveaxis(bounds, 0, 2), np.float32).reshape(count * size, rows, *bounds.shape[3:])
    out = np.zeros((count * size, x.shape[1]), np.float32)
    over_rows(lambda a, b: kernel(each[a:b], x, out[a:b]), len(each), x.size, threads)
    return out.reshape(count, size, -1)


@compiled_finite
def _larger(bounds: Float32, x: Float32, out: Float32) -> None:
    """out[i, c] = Σ over rows of max(bounds[i, row], x[row, c])."""
    for i in range(len(bounds)):
        for row in range(x.shape[0]):
            bound = bounds[i, row]
            for c in range(x.shape[1]):
                out[i, c] += max(bound, x[row, c])


@compiled_finite
def _span(bounds: Float32, x: Float32, out: Float32) -> None:
    """out[i, c] = Σ over rows of (the larger of x[row, c] and high − the smaller of it and low)²; bounds: both."""
    for i in range(len(bounds)):
        for row in range(x.shape[0]):
            high, low = bounds[i, row]
            for c in range(x.shape[1]):
                span = max(high, x[row, c]) - min(low, x[row, c])
                out[i, c] += span * span
