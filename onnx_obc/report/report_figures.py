"""The drawings of a report's page: classes of colour, sizes by layer, and budgets against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .pareto import front
from .plain_report import PlainReport
from .plot import Scale, axes, circle, figure, fitted, line, rectangles, text

SHADES = 7


def shade(value: float | None, low: float, high: float, log: bool = False) -> int:
    """The class of a value between two, 0 to SHADES − 1; what is not known, or not positive on a log scale, is 0."""
    if value is None or (log and value <= 0) or not high > low:
        return 0
    at, start, end = (math.log(x) if log else x for x in (value, low, high))
    return min(max(int(SHADES * (at - start) / (end - start)), 0), SHADES - 1)


def span(values: Iterable[float | None], log: bool = False) -> tuple[float, float]:
    """The smallest and the largest of the values that are known, and positive on a log scale."""
    known = [x for x in values if x is not None and math.isfinite(x) and (x > 0 or not log)]
    return (min(known), max(known)) if known else (0.0, 0.0)


def level_order(reports: Sequence[PlainReport]) -> list[str]:
    """All levels, from the one that keeps most bytes of a layer to the one that keeps least."""
    kept: dict[str, list[float]] = {}
    for layer in (layer for report in reports for layer in report.layers):
        kept.setdefault(layer.level, []).append(layer.bytes_after / max(layer.bytes_before, 1))
    return sorted(kept, key=lambda level: (-sum(kept[level]) / len(kept[level]), level))


def level_shades(levels: Sequence[str]) -> dict[str, int]:
    """The colour of each level: evenly spread over all, alike where there are more levels than colours."""
    if len(levels) == 1:
        return {levels[0]: SHADES // 2}
    last = max(len(levels) - 1, 1)
    return {level: round(number * (SHADES - 1) / last) for number, level in enumerate(levels)}


def sizes_by_layer(sizes: Sequence[tuple[int, int]]) -> str:
    """Bytes of each layer in the order of the model, before and after; the highest bar is the largest layer's."""
    width, height = 1000.0, 150.0
    y = Scale(0, max(map(max, sizes), default=1) or 1, height, 2)
    x = Scale(0, max(len(sizes), 1), 0, width)
    room = min(0.15 * width / max(len(sizes), 1), 3.0)

    def bars(counts: Iterable[int]) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
        for place, count in enumerate(counts):
            if count:
                yield (x(place) + room, y(0)), (x(place + 1) - room, y(count))

    parts = [
        rectangles(bars(before for before, _ in sizes), "was"),
        rectangles(bars(after for _, after in sizes), "now"),
    ]
    about = f"bytes of {len(sizes)} layers before and after, in the order of the model"
    return figure(width, height, about, parts, "by-layer", stretched=True)


def budgets_plot(labels: Sequence[str], ratios: Sequence[float | None], losses: Sequence[float | None]) -> str | None:
    """How many times smaller each budget's model is by its own measure, against its output loss; None for one point."""
    known = [(r, q, label) for r, q, label in zip(ratios, losses, labels, strict=True) if r and q is not None]
    if len(known) < 2:
        return None
    width, height = 620.0, 320.0
    most = max(q for _, q, _ in known) or 1.0
    x, y = fitted([r for r, _, _ in known], 96, width - 90), Scale(0, 1.12 * most, height - 44, 14)
    parts = [axes(x, y, ("times smaller than dense, by the budget's own measure", "output loss"))]
    where = [(r, q) for r, q, _ in known]
    parts.append(line([(x(where[i][0]), y(where[i][1])) for i in front(where)], "run q slim"))
    for r, q, label in known:
        parts.append(circle(x(r), y(q), 4.5, "dot q", f"{label}: {r:.3g} times, output loss {q:.3g}"))
        parts.append(text(x(r) + 9, y(q) + 14, label, "on q"))
    return figure(width, height, "output loss against size, one point for each budget", parts)
