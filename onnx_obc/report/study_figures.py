"""The figures of a study, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..core.errors import shortened
from ..study.levels import Kind
from ..study.record import BudgetRow, LayerRow, Study
from ..study.theory import crossover
from . import plot
from .study_words import DO, Counts, db, judged_by, knows_outputs

SHADES = 7  # of the style's colours k0, k1, … for budgets
CSS: dict[Kind, str] = {"quantize": "q", "prune": "p", "both": "b"}
_DRAWN_ALONE = 1500  # rectangles that are told about one by one
_BEYOND = 6.0  # dB past the best solution that bounds are followed; those beyond, infinite ones too, end at the edge
_NAME = 60  # characters of a layer's name in what a pointer is told

_Corner = tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """Quantized against pruned. what: chunk, layer or weight, of which there are `count`, `proven` of them."""

    drawing: str
    what: str
    count: int
    proven: int


@dataclass(frozen=True)
class _Box:
    """What is known of a chunk or layer at a budget, (quantized, pruned) in dB. high: None where there is no bound."""

    bits: int
    low: _Corner
    high: _Corner
    proven: Kind | None
    title: str


def shade(bits: int, budgets: Sequence[int]) -> str:
    """The class of a budget's colour: as far from those of the others as there are shades."""
    if len(budgets) == 1:
        return "k2"
    return f"k{round(sorted(budgets).index(bits) * (SHADES - 1) / (len(budgets) - 1))}"


def verdict_bar(found: Counts, bits: int) -> str:
    """The verdicts of a budget as one bar: of each kind what is proven, then what is not."""
    at, parts = 0.0, []
    for kind, words in DO.items():
        proven, won = found.proven.get(kind, 0), found.won.get(kind, 0)
        for number, css, end in ((proven, "sure", ", proven"), (won - proven, "open", "")):
            if number:
                wide = 100 * number / found.layers
                title = f"{words}: {number} of {found.layers}{end}"
                parts.append(plot.rectangle((at, 0), (at + wide, 10), f"{css} {CSS[kind]}", title))
                at += wide
    return plot.figure(100, 10, f"Verdicts at {bits} bits per weight", parts, "bar", stretched=True)


def plane(study: Study) -> Plane | None:
    """Quantized against pruned, of every chunk, or else of every layer, as rectangles from what was found to bounds."""
    what, boxes = "chunk", _chunk_boxes(study)
    if not boxes:
        what, boxes = "layer" if knows_outputs(study) else "weight", _layer_boxes(study)
    if not boxes:
        return None
    x, y = _square(boxes, plot.Scale(0, 1, 66, 548), plot.Scale(0, 1, 384, 14))
    low, high = x.low, min(x.high, y.high)
    above = [(x(low), y(low)), (x(high), y(high)), (x(high), y.end), (x.start, y.end)]
    parts = [
        plot.area(above, "half"),
        plot.axes(x, y, (f"SNR of the quantized {what}, dB", f"SNR of the pruned {what}, dB")),
        plot.line([(x(low), y(low)), (x(high), y(high))], "equal"),
        plot.text(x.start + 8, y.end + 18, "pruned is better", "side"),
        plot.text(x.end - 8, y.start - 10, "quantized is better", "side", "end"),
    ]
    for bits in sorted(study.bits, reverse=True):
        for proven in (False, True):
            state, colour = "sure" if proven or what == "weight" else "open", shade(bits, study.bits)
            chosen = [box for box in boxes if box.bits == bits and (box.proven is not None) == proven]
            if len(boxes) > _DRAWN_ALONE:
                parts.append(plot.rectangles((_corners(box, x, y) for box in chosen), f"box many {state} {colour}"))
            else:
                radius = 1.8 if what == "chunk" else 3
                parts += [_drawn(box, _corners(box, x, y), radius, state, colour) for box in chosen]
    drawn = plot.figure(560, 430, f"Pruned against quantized SNR of {len(boxes)} {what}s", parts)
    return Plane(drawn, what, len(boxes), sum(box.proven is not None for box in boxes))


def _drawn(box: _Box, corners: tuple[_Corner, _Corner], radius: float, state: str, colour: str) -> str:
    """A rectangle with a dot in the corner that was reached; a point where nothing more is known."""
    if box.low == box.high:
        return plot.circle(*corners[0], radius, f"dot {state} {colour}", box.title)
    drawn = plot.rectangle(*corners, f"box {state} {colour}", box.title)
    return drawn + plot.circle(*corners[0], 1.5, f"dot {colour}", box.title)


def _square(boxes: Sequence[_Box], x: plot.Scale, y: plot.Scale) -> tuple[plot.Scale, plot.Scale]:
    """Scales with one beginning, so that the diagonal starts in the corner, and room for bounds that are near."""
    finite = [value for box in boxes for value in box.low if math.isfinite(value)]
    begin, most = min(finite, default=0.0), max(finite, default=0.0) + _BEYOND
    ends = []
    for i, scale in enumerate((x, y)):
        values = [side[i] for box in boxes for side in (box.low, box.high) if side[i] <= most]
        ends.append(plot.fitted([begin, *values], scale.start, scale.end))
    low = min(scale.low for scale in ends)
    return replace(ends[0], low=low), replace(ends[1], low=low)


def against_bits(study: Study) -> list[tuple[str, str]]:
    """The name of every layer that has figures, and its SNRs against bits; on the same scales for all."""
    series = [(layer, _series(layer, study)) for layer in study.layers if layer.budgets]
    values = [snr for _, found in series for points in found.values() for _, snr, _ in points]
    y = plot.fitted(values, 128, 8)
    x = plot.Scale(min(study.bits) - 0.4, max(study.bits) + 0.4, 30, 214)
    grid = plot.named("grid", plot.axes(x, y, ("", ""), count=(0, 4), at=sorted(study.bits)))
    made: list[tuple[str, str]] = []
    for layer, found in series:
        parts = [plot.repeated("grid") if made else grid]
        for css, points in found.items():
            if len(points) > 1:
                parts.append(plot.line([(x(bits), y(snr)) for bits, snr, _ in points], f"run {css}"))
        for css, points in found.items():
            if "thin" not in css:
                parts += [_mark(x(bits), y, snr, 2.6, f"dot {css}", title) for bits, snr, title in points]
        about = f"SNR in dB against bits per weight of {shortened(layer.name, _NAME)}"
        made.append((layer.name, plot.figure(220, 150, about, parts, "plot small")))
    return made


def against_kurtosis(study: Study) -> list[tuple[str, str]]:
    """Quantized minus pruned SNR against kurtosis: of weights by the paper's convention, and of outputs where known."""
    made = [("of the weight alone, mask free", _margins(study, _of_weight, lines=True))]
    if knows_outputs(study):
        made.append((f"of the layer's outputs, equal size: {study.size}", _margins(study, _of_outputs, lines=False)))
    return [(words, drawn) for words, drawn in made if drawn]


def crossovers(study: Study) -> dict[int, float]:
    """The kurtosis at which pruning overtakes quantization, of the truncated Student-t, by the bits of each budget."""
    return {bits: kurtosis for bits in sorted(study.bits) if (kurtosis := _crossing(bits)) is not None}


def _margins(study: Study, margin: Callable[[BudgetRow], float | None], lines: bool) -> str:
    rows = [(layer, row, margin(row)) for layer in study.layers for row in layer.budgets if _known(layer.kurtosis)]
    points = [(layer, row, value) for layer, row, value in rows if value is not None and not math.isnan(value)]
    if not points:
        return ""
    kurtoses = [layer.kurtosis for layer, _, _ in points]
    crossing = crossovers(study)
    x = plot.fitted([*kurtoses, *crossing.values()], 66, 508, log=True)
    y = plot.fitted([0.0, *(value for _, _, value in points)], 304, 26)
    parts = [plot.axes(x, y, ("kurtosis of the weight (logarithmic; Gaussian 3)", "quantized minus pruned SNR, dB"))]
    parts.append(plot.line([(x.start, y(0)), (x.end, y(0))], "equal"))
    if crossing:
        parts.append(plot.text(x.start - 8, y.end - 8, "bits", "tick", "end"))
    for bits, kurtosis in crossing.items():
        css = shade(bits, study.bits)
        title = f"At {bits} bits pruning overtakes at a kurtosis of {kurtosis:.4g}, if weights follow a truncated t"
        parts.append(plot.line([(x(kurtosis), y.start), (x(kurtosis), y.end)], f"cross {css}", title))
        parts.append(plot.text(x(kurtosis), y.end - 8, str(bits), f"tick on {css}", "middle"))
    for bits in sorted(study.bits):
        chosen = [point for point in points if point[1].bits == bits]
        css = shade(bits, study.bits)
        if lines:
            parts.append(plot.line(_foretold(chosen, x, y), f"run thin {css}"))
        for layer, _, value in chosen:
            assert layer.kurtosis is not None
            title = f"{shortened(layer.name, _NAME)}: kurtosis {layer.kurtosis:.3g}, {bits} bits, {db(value)} dB"
            parts.append(_mark(x(layer.kurtosis), y, value, 3, f"dot {css}", title))
    return plot.figure(520, 350, "Quantized minus pruned SNR against kurtosis", parts)


def _foretold(
    points: Iterable[tuple[LayerRow, BudgetRow, float]], x: plot.Scale, y: plot.Scale
) -> list[tuple[float, float]]:
    """The margins that the truncated t with the weights' kurtoses has."""
    known = {layer.kurtosis: row.tensor.predicted.get("truncated-t") for layer, row, _ in points}
    pairs = sorted((k, both[0] - both[1]) for k, both in known.items() if both is not None and k is not None)
    return [(x(kurtosis), y(margin)) for kurtosis, margin in pairs]


def _of_weight(row: BudgetRow) -> float | None:
    pruned = row.tensor.pruned.get("paper")
    return None if pruned is None else row.tensor.quantized - pruned


def _of_outputs(row: BudgetRow) -> float | None:
    quantized, pruned = row.best("quantize"), row.best("prune")
    return None if quantized is None or pruned is None else quantized.snr - pruned.snr


@cache
def _crossing(bits: int) -> float | None:
    found = crossover("truncated-t", bits)
    return None if found is None else found.kurtosis


def _series(layer: LayerRow, study: Study) -> Mapping[str, list[tuple[int, float, str]]]:
    """The points of a layer by class, (bits, SNR, what to tell): of outputs, or else of the weight."""
    found: dict[str, list[tuple[int, float, str]]] = {}

    def add(css: str, bits: int, value: float | None, title: str = "") -> None:
        if value is not None and not math.isnan(value):
            found.setdefault(css, []).append((bits, value, title and f"{bits} bits, {title}: {db(value)} dB"))

    mask = next(mask for mask in ("bitmap", "entropy", "paper") if mask == judged_by(study) or mask == "paper")
    for row in sorted(layer.budgets, key=lambda row: row.bits):
        if not knows_outputs(study):
            add("q", row.bits, row.tensor.quantized, "quantized, one grid")
            add("q thin", row.bits, row.tensor.rows)
            add("p", row.bits, row.tensor.pruned.get(mask), f"pruned, mask: {mask}")
            continue
        for kind, css in CSS.items():
            if (way := row.best(kind)) is not None:
                add(css, row.bits, way.snr, way.level)
                add(f"{css} thin", row.bits, way.baseline)
    return found


def _chunk_boxes(study: Study) -> list[_Box]:
    made = []
    for row in study.chunks:
        low, high = _ends(row.snr), _ends(row.bound)
        title = f"{shortened(row.layer, _NAME)}, row {row.row}, {row.columns[1]} columns from {row.columns[0]}, "
        made.append(_box(row.bits, low, high, row.proven, title))
    return [box for box in made if box is not None]


def _layer_boxes(study: Study) -> list[_Box]:
    make = _outputs_box if knows_outputs(study) else _weight_box
    made = [make(layer, row, study) for layer in study.layers for row in layer.budgets]
    return [box for box in made if box is not None]


def _weight_box(layer: LayerRow, row: BudgetRow, study: Study) -> _Box | None:
    pruned = next((snr for mask, snr in row.tensor.pruned.items() if mask == judged_by(study)), None)
    if pruned is None:
        return None
    low = row.tensor.quantized, pruned
    return _box(row.bits, low, low, None, f"{shortened(layer.name, _NAME)}, ")


def _outputs_box(layer: LayerRow, row: BudgetRow, study: Study) -> _Box | None:
    quantized, pruned = row.best("quantize"), row.best("prune")
    if quantized is None or pruned is None:
        return None
    low, bounds = (quantized.snr, pruned.snr), (_bound(row, "quantize"), _bound(row, "prune"))
    proven: Kind | None = None
    if bounds[1] is not None and low[0] >= bounds[1]:
        proven = "quantize"
    elif bounds[0] is not None and low[1] >= bounds[0]:
        proven = "prune"
    high = low[0] if bounds[0] is None else bounds[0], low[1] if bounds[1] is None else bounds[1]
    return _box(row.bits, low, high, proven, f"{shortened(layer.name, _NAME)}, ")


def _bound(row: BudgetRow, kind: Kind) -> float | None:
    """What no way of a kind exceeds; None if that is not known of all of them."""
    bounds = [way.bound for way in row.ways if way.kind == kind]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if known and len(known) == len(bounds) else None


def _box(bits: int, low: _Corner, high: _Corner, proven: Kind | None, title: str) -> _Box | None:
    if any(math.isnan(value) for value in (*low, *high)):
        return None
    spans = [f"{db(a)}" if a == b else f"{db(a)} … {db(b)}" for a, b in zip(low, high, strict=True)]
    end = "" if proven is None else f"; proven: {DO[proven]}"
    return _Box(bits, low, high, proven, f"{title}{bits} bits: quantized {spans[0]} dB, pruned {spans[1]} dB{end}")


def _ends(found: Mapping[Kind, float]) -> _Corner:
    return found["quantize"], found["prune"]


def _corners(box: _Box, x: plot.Scale, y: plot.Scale) -> tuple[_Corner, _Corner]:
    return (x(box.low[0]), y(box.low[1])), (x(box.high[0]), y(box.high[1]))


def _mark(x: float, y: plot.Scale, value: float, radius: float, css: str, title: str) -> str:
    """A point, or a triangle at the end of the scale where a value is infinite."""
    return (plot.triangle if value == math.inf else plot.circle)(x, y(value), radius, css, title)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
