"""The drawings of a report's page: classes of colour, sizes by layer, and budgets against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .pareto import front
from .plain_report import LayerPart, PlainReport
from .plot import Scale, axes, circle, figure, fitted, line, number, rectangles, text, ticks

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
    last = max(len(levels) - 1, 1)
    return {level: round(number * (SHADES - 1) / last) for number, level in enumerate(levels)}


def sizes_by_layer(layers: Sequence[LayerPart]) -> str:
    """Bytes of each layer in the order of the model, before and after."""
    width, height, left = 1000.0, 190.0, 64.0
    most = max((max(layer.bytes_before, layer.bytes_after) for layer in layers), default=1) or 1
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")) if most >= u)
    y = Scale(0, 1.08 * most / unit, height - 8, 8)
    x = Scale(0, len(layers), left, width - 4)
    each = (x.end - x.start) / max(len(layers), 1)
    room = min(0.18 * each, 4.0)

    def bars(sizes: Iterable[int]) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
        for place, count in enumerate(sizes):
            if count:
                yield (x(place) + room, y(0)), (x(place + 1) - room, y(count / unit))

    before, after = bars(layer.bytes_before for layer in layers), bars(layer.bytes_after for layer in layers)
    lines = "".join(f"M{number(left)} {number(y(value))}H{number(width - 4)}" for value in ticks(y, 4))
    parts = [f'<path class="grid" d="{lines}"/>', rectangles(before, "was"), rectangles(after, "now")]
    parts += [text(left - 8, y(value) + 4, f"{value:g}", "tick", "end") for value in ticks(y, 4)]
    parts.append(text(4, 20, name, "label"))
    total = f"bytes of {len(layers)} layers before and after, in the order of the model"
    return figure(width, height, total, parts, "plot wide")


def budgets_plot(labels: Sequence[str], ratios: Sequence[float | None], losses: Sequence[float | None]) -> str | None:
    """How many times smaller each budget's model is by its own measure, against its output loss; None for one point."""
    known = [(r, q, label) for r, q, label in zip(ratios, losses, labels, strict=True) if r and q is not None]
    if len(known) < 2:
        return None
    width, height = 620.0, 320.0
    x, y = fitted([r for r, _, _ in known], 74, width - 80), fitted([0, *(q for _, q, _ in known)], height - 44, 14)
    parts = [axes(x, y, ("times smaller than dense, by the budget's own measure", "output loss"))]
    where = [(r, q) for r, q, _ in known]
    parts.append(line([(x(where[i][0]), y(where[i][1])) for i in front(where)], "run q slim"))
    for r, q, label in known:
        parts.append(circle(x(r), y(q), 4.5, "dot q", f"{label}: {r:.3g} times, output loss {q:.3g}"))
        parts.append(text(x(r) + 8, y(q) - 8, label, "on q"))
    return figure(width, height, "output loss against size, one point for each budget", parts)
