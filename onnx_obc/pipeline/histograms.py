"""Histograms for the report: of every weight, with the grid that it is on, and of every quantized activation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..calibration.ranges import RangeObserver
from ..core.arrays import Array
from ..core.solution import Grid
from ..graph.write import Activation
from ..targets.attribution import node_name
from .draft import Draft
from .layer import Solved

BINS = 64
ELEMENTS = 2**22  # of a weight, evenly strided, are counted at most


@dataclass(frozen=True)
class Histogram:
    """Counts in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RowGrid:
    """The values of a quantized row, `(code − zero_point) · scale`: of the row, or block, with the median scale.

    smallest, largest: the scales of all rows.
    """

    scale: float
    zero_point: int
    bits: int
    symmetric: bool
    smallest: float
    largest: float


@dataclass(frozen=True)
class WeightPicture:
    """A layer's dense weight and what it is written on. nodes: those that read it; input: the first one's quantized
    input, by its name among the activations, None if it is float. grid: None for float weights."""

    histogram: Histogram
    grid: RowGrid | None
    nodes: tuple[str, ...]
    input: str | None


def weight_pictures(draft: Draft) -> dict[str, WeightPicture]:
    """A picture of each layer's weight, by the layer's name."""
    named = activation_names(draft)
    return {name: _picture(entry, named) for name, entry in draft.solved.items()}


def activation_histograms(draft: Draft) -> dict[str, Histogram]:
    """What was seen of every quantized activation, by its name in the report."""
    ranges = draft.source.ranges
    return {name: _of_range(ranges[one.value]) for name, one in activation_names(draft).items() if one.value in ranges}


def activation_names(draft: Draft) -> dict[str, Activation]:
    """The activations with ranges of calibration data, by the names that `write` gave their intervals."""
    return dict(zip(draft.intervals, draft.plan.ranged, strict=True))


def graph_order(draft: Draft) -> tuple[str, ...]:
    """The names of all layers and of what was left out, in the order of the graph; what lies elsewhere comes last."""
    places: dict[str, int] = {}
    for number, node in enumerate(draft.plan.model.graph):
        for name in (node.name, *(value.name for value in node.outputs)):
            places.setdefault(str(name), number)
    first = {name: node_name(entry.layer.uses[0].node) for name, entry in draft.solved.items()}
    left = {entry.name: entry.name for entry in draft.plan.left_out}
    return tuple(sorted({**first, **left}, key=lambda name: places.get({**first, **left}[name], len(places))))


def _picture(entry: Solved, named: Mapping[str, Activation]) -> WeightPicture:
    weight, uses = entry.layer.weight, entry.layer.uses
    flat = weight.ravel()[:: -(-weight.size // ELEMENTS) or 1]
    low, high = (float(f(weight, initial=0)) for f in (np.min, np.max))
    nodes = tuple(node_name(use.node) for use in uses)
    readers = {(node, index) for node, index in ((use.node, 1 - use.index) for use in uses)}
    quantized = next((name for name, one in named.items() if readers & set(one.readers)), None)
    grid = entry.solution.grid
    return WeightPicture(_counted(flat, low, high), None if grid is None else _row(grid), nodes, quantized)


def _row(grid: Grid) -> RowGrid:
    scales, zeros = grid.scale.ravel(), grid.zero_point.ravel()
    middle = int(np.argsort(scales, kind="stable")[scales.size // 2])
    ends = float(scales.min()), float(scales.max())
    return RowGrid(float(scales[middle]), int(zeros[middle]), grid.bits, grid.symmetric, *ends)


def _of_range(observer: RangeObserver) -> Histogram:
    centres, counts = observer.linear()
    return _counted(centres, observer.low, observer.high, counts)


def _counted(values: Array, low: float, high: float, weights: Array | None = None) -> Histogram:
    """Counts in BINS bins; where all values are alike, about them."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    inside = np.clip(values, low, high)  # centres of bins at the ends lie beyond
    counts, _ = np.histogram(inside, BINS, (low, high), weights=weights)
    return Histogram(low, high, tuple(int(count) for count in counts))
