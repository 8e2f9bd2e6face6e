"""Small drawings as SVG text, for pages that load nothing. Colours are classes: the page's style has light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..core.errors import plain

_STEPS = (1.0, 2.0, 5.0, 10.0)
_NARROW = 5.0  # times its lower end that a logarithmic scale reaches before its numbers are powers of ten
_CHARACTER = 10.0  # how wide a digit is at most, at the font size of labels


@dataclass(frozen=True)
class Scale:
    """From values, `low` to `high`, to places, `start` to `end`, of a line or, `log`, of their logarithms. What lies
    beyond an end, infinities too, is drawn at it."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def fitted(values: Iterable[float | None], start: float, end: float, *, log: bool = False, around: float = 0) -> Scale:
    """The scale that shows all finite values, with some room about them; `around` and more where there are none.

    log: only positive values are looked at.
    """
    known = [x for x in values if x is not None and math.isfinite(x) and (x > 0 or not log)]
    low, high = (min(known), max(known)) if known else (around, around)
    if log:
        low, high = (low or 1.0) / 1.15, (high or 1.0) * 1.15
        return Scale(low, high, start, end, log)
    room = 0.06 * (high - low) or 1.0
    return Scale(low - room, high + room, start, end)


def ticks(scale: Scale, about: int = 6) -> list[float]:
    """Round values within a scale, about so many: multiples of 1, 2 or 5 times a power of ten."""
    if scale.log and scale.high > _NARROW * scale.low:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [x for x in found if scale.low <= x <= scale.high]
            if len(found) <= about + 2:
                break
        return found[:: -(-len(found) // (about + 2))]
    rough = (scale.high - scale.low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(x for x in _STEPS if x * power >= 0.999999 * rough)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def axes(x: Scale, y: Scale, labels: tuple[str, str], count: tuple[int, int] = (6, 6), at: Sequence[float] = ()) -> str:
    """A grid with its numbers, and what the axes mean. at: where x has numbers, if not at round ones."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    values, heights = at or ticks(x, count[0]), ticks(y, count[1])
    grid = [f"M{number(x(value))} {number(bottom)}V{number(top)}" for value in values]
    grid += [f"M{number(left)} {number(y(value))}H{number(right)}" for value in heights]
    parts = [f'<path class="grid" d="{"".join(grid)}"/>']
    parts += [text(x(value), bottom + 15, _tick(value), "tick", "middle") for value in values]
    parts += [text(left - 6, y(value) + 4, _tick(value), "tick", "end") for value in heights]
    across, up = labels
    if across:
        parts.append(text((left + right) / 2, bottom + 34, across, "label", "middle"))
    if up:
        widest = max((len(_tick(value)) for value in heights), default=0)
        middle, column = (bottom + top) / 2, left - 12 - _CHARACTER * widest
        turned = f' transform="rotate(-90 {number(column)} {number(middle)})"'
        parts.append(text(column, middle, up, "label", "middle", turned))
    return "".join(parts)


def figure(
    width: float, height: float, about: str, parts: Iterable[str], css: str = "plot", stretched: bool = False
) -> str:
    """A drawing of so many units, which the page makes as large as it likes. about: what it shows, for who cannot see.

    stretched: whether width and height may be drawn at different sizes.
    """
    size = f'viewBox="0 0 {number(width)} {number(height)}"' + (' preserveAspectRatio="none"' if stretched else "")
    return f'<svg class="{css}" {size} role="img" aria-label="{_safe(about)}">{"".join(parts)}</svg>'


def named(name: str, parts: str) -> str:
    """A part of a drawing that others on the page repeat by its name, a word of ours."""
    return f'<g id="{name}">{parts}</g>'


def repeated(name: str) -> str:
    """What is named so elsewhere on the page."""
    return f'<use href="#{name}"/>'


def circle(x: float, y: float, radius: float, css: str, title: str = "") -> str:
    """A point. title: what a pointer that rests on it is told."""
    return _closed(f'<circle class="{css}" cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"', "circle", title)


def triangle(x: float, y: float, radius: float, css: str, title: str = "") -> str:
    """A point beyond the upper end of a scale."""
    corners = f"M{number(x - radius)} {number(y + radius)}h{number(2 * radius)}L{number(x)} {number(y - radius)}z"
    return _closed(f'<path class="{css}" d="{corners}"', "path", title)


def line(points: Sequence[tuple[float, float]], css: str, title: str = "") -> str:
    """A line through points."""
    where = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return _closed(f'<polyline class="{css}" points="{where}"', "polyline", title)


def area(points: Sequence[tuple[float, float]], css: str) -> str:
    """What lies within a polygon."""
    where = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    return f'<polygon class="{css}" points="{where}"/>'


def rectangle(a: tuple[float, float], b: tuple[float, float], css: str, title: str = "") -> str:
    """The rectangle between two corners; never thinner than a line."""
    left, top, width, height = _sides(a, b)
    sides = f'x="{number(left)}" y="{number(top)}" width="{number(width)}" height="{number(height)}"'
    return _closed(f'<rect class="{css}" {sides}', "rect", title)


def rectangles(corners: Iterable[tuple[tuple[float, float], tuple[float, float]]], css: str) -> str:
    """Many rectangles as one path, which takes a fifth of the text."""
    parts = []
    for a, b in corners:
        left, top, width, height = map(number, _sides(a, b))
        parts.append(f"M{left} {top}h{width}v{height}h-{width}z")
    return f'<path class="{css}" d="{"".join(parts)}"/>' if parts else ""


def text(x: float, y: float, words: str, css: str, anchor: str = "start", more: str = "") -> str:
    """Words at a place. anchor: start, middle or end. more: other attributes, as they are written."""
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"'
    return f'<text class="{css}" {place}{more}>{_safe(words)}</text>'


def number(value: float) -> str:
    """A number in few characters: as many digits as a drawing needs."""
    digits = f"{value:.1f}" if abs(value) >= 1 or not value else f"{value:.3g}"
    return digits.rstrip("0").rstrip(".") if "." in digits and "e" not in digits else digits


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _sides(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float, float, float]:
    """Left, top, width and height."""
    return min(a[0], b[0]), min(a[1], b[1]), max(abs(a[0] - b[0]), 0.7), max(abs(a[1] - b[1]), 0.7)


def _closed(opened: str, name: str, title: str) -> str:
    return f"{opened}><title>{_safe(title)}</title></{name}>" if title else f"{opened}/>"


def _safe(words: str) -> str:
    return escape(plain(words))
