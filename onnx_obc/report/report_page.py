"""A report, or those of several budgets, as a page: one HTML file, made from plain values alone."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import shortened
from . import report_words as words
from .plain_report import HistogramPart, LayerPart, LeftPart, PlainReport, WeightPart
from .render import island, render_page, sortable, write_page
from .report_figures import budgets_plot, level_order, level_shades, shade, sizes_by_layer, span

FIRST = 200  # layers that are laid out at once; others when the table is scrolled that far
DENSE = 160  # layers from which on the cells of the strip are small
LONGEST = 80  # characters of a name in the table
STEPS = string.digits + string.ascii_lowercase + string.ascii_uppercase  # heights of a histogram's bins
TERMS = (
    *("level", "weight matrix", "bytes", "time in the runtime", "zeros", "solver", "positions", "damping"),
    "inputs always zero",
)


@dataclass(frozen=True)
class Cell:
    """A layer of one run in the strip: its shades of loss, level and time; None for a layer left as it is."""

    place: int
    loss: int | None
    level: int
    time: int


@dataclass(frozen=True)
class Row:
    """A layer in the table. layers: what it became in each run, None where it was left as it is; left: why it was."""

    place: int
    name: str
    layers: tuple[LayerPart | None, ...]
    left: tuple[LeftPart | None, ...]

    @property
    def first(self) -> LayerPart | None:
        """The layer in the first run that compresses it."""
        return next((layer for layer in self.layers if layer is not None), None)

    def sizes(self, run: int) -> tuple[int, int]:
        """Bytes before and after in a run; the same where it was left as it is, if another run knows them; else 0."""
        layer = self.layers[run]
        if layer is not None:
            return layer.bytes_before, layer.bytes_after
        return (0, 0) if self.first is None else (self.first.bytes_before, self.first.bytes_before)

    @property
    def kinds(self) -> str:
        """What the filter of levels finds it by."""
        found = dict.fromkeys("left" if layer is None else layer.level.replace(" ", "") for layer in self.layers)
        return " ".join(found)

    def said(self, single: bool) -> str:
        """What else than its cells it is found by: a name that is too long for them, notes, and why it was left."""
        notes = [note for layer in self.layers[:1] if single and layer is not None for note in layer.notes]
        left = [one.reason for one in self.left if one is not None]
        return " ".join(dict.fromkeys([*([self.name] if len(self.name) > LONGEST else []), *notes, *left]))

    @property
    def op(self) -> str:
        """The operator."""
        return next((one.op for one in (*self.layers, *self.left) if one is not None), "")


def write_report_page(reports: Sequence[PlainReport], path: Path) -> None:
    """Write one HTML file, whole or not at all. Raises OutputError."""
    write_page("report.html.j2", report_values(reports), path)


def report_page(reports: Sequence[PlainReport]) -> str:
    """The page as text."""
    return render_page("report.html.j2", report_values(reports))


def report_values(reports: Sequence[PlainReport]) -> dict[str, Any]:
    """What the template shows."""
    rows, levels = rows_of(reports), level_order(reports)
    times, losses = [times_of(report) for report in reports], _losses(reports)
    timed = all(report.speed is not None and report.speed.layers for report in reports)
    seconds = span([second for each in times for second in each.values()])
    ends = {"loss": [*map(words.figure, losses)], "time": [*map(words.duration, seconds)] if seconds[1] > 0 else []}
    cells = [_cells(rows, i, levels, times, (losses, seconds)) for i in range(len(reports))]
    names = [words.budget_of(report, i) for i, report in enumerate(reports, 1)]
    reduced = [_reduction(report) for report in reports]
    return {
        "reports": reports,
        "runs": list(zip(names, reports, cells, strict=True)),
        "single": len(reports) == 1,
        "name": words.file_name(reports[0].model) or "A model",
        "rows": rows,
        "levels": level_shades(levels),
        "timed": timed,
        "ends": ends,
        "first": FIRST,
        "dense": len(rows) > DENSE,
        "plot": budgets_plot(names, reduced, [report.output_loss for report in reports]),
        "sizes": [sizes_by_layer([row.sizes(i) for row in rows]) for i in range(len(reports))],
        "island": island(_island(rows, reports, names, times if timed else None)),
        "words": words,
        "shortened": shortened,
        "sortable": sortable,
        "made": _made(reports),
    }


def rows_of(reports: Sequence[PlainReport]) -> list[Row]:
    """Every layer of any run once, in the order of the model; without it, as the reports list them."""
    order = {name: place for report in reports for place, name in enumerate(report.order)}
    found = [{x.name: x for x in report.layers} for report in reports]
    left = [{x.name: x for x in report.left_out} for report in reports]
    names = list(dict.fromkeys([name for part in found for name in part] + [name for part in left for name in part]))
    names.sort(key=lambda name: order.get(name, len(order)))
    return [
        Row(i, name, tuple(part.get(name) for part in found), tuple(part.get(name) for part in left))
        for i, name in enumerate(names)
    ]


def times_of(report: PlainReport) -> dict[str, float]:
    """The seconds that each layer takes in the runtime, or, where these are not known, took to be solved."""
    if report.speed is not None and report.speed.layers:
        return {name: after for name, (_, after) in report.speed.layers.items() if after is not None}
    return {layer.name: layer.seconds for layer in report.layers if layer.seconds is not None}


def _losses(reports: Sequence[PlainReport]) -> tuple[float, float]:
    return span([layer.loss_relative for report in reports for layer in report.layers], log=True)


def _cells(
    rows: Sequence[Row],
    run: int,
    levels: Sequence[str],
    times: Sequence[Mapping[str, float]],
    ends: tuple[tuple[float, float], tuple[float, float]],
) -> list[Cell]:
    colours, (losses, seconds) = level_shades(levels), ends
    cells = []
    for row in rows:
        layer = row.layers[run]
        if layer is None:
            cells.append(Cell(row.place, None, 0, 0))
            continue
        took = shade(times[run].get(row.name), *seconds)
        cells.append(Cell(row.place, shade(layer.loss_relative, *losses, log=True), colours[layer.level], took))
    return cells


def _reduction(report: PlainReport) -> float | None:
    """How many times less the model costs, by what its budget is about, or else in size."""
    if report.search is not None:
        kind = report.search.budget.partition("=")[0]
        share = report.search.costs.get(kind) or report.search.costs.get("size")
        if share:
            return 1 / share
    return words.smaller(report)


def _island(
    rows: Sequence[Row],
    reports: Sequence[PlainReport],
    names: Sequence[str],
    times: Sequence[Mapping[str, float]] | None,
) -> dict[str, Any]:
    """What the rows open to, in few characters."""
    layers = []
    for row in rows:
        weight = next((report.weights[row.name] for report in reports if row.name in report.weights), None)
        runs = [
            _opened(layer, reports[i], weight, None if times is None else times[i])
            for i, layer in enumerate(row.layers)
        ]
        about = {"name": row.name, "runs": runs, "left": [one and one.reason for one in row.left]}
        layers.append(about if weight is None else {**about, "weight": _bins(weight.histogram)})
    return {"names": [] if len(reports) == 1 else list(names), "terms": TERMS, "layers": layers}


def _opened(
    layer: LayerPart | None, report: PlainReport, weight: WeightPart | None, times: Mapping[str, float] | None
) -> dict[str, Any] | None:
    """A layer in one run. Losses: the baseline's and its own; then greedy, refined and bound, on the damped Hessian."""
    if layer is None:
        return None
    energy = layer.loss / layer.loss_relative if layer.loss and layer.loss_relative else None
    losses = (layer.loss_baseline, layer.loss, layer.loss_greedy, layer.loss_measured, layer.loss_bound)
    own = report.weights.get(layer.name)
    found: dict[str, Any] = {
        "facts": _facts(layer, times),
        "loss": [_short(x) for x in losses],
        "energy": _short(energy),
        "notes": list(layer.notes),
    }
    if own is not None and own.grid is not None:
        grid = own.grid
        first = -(2 ** (grid.bits - 1)) if grid.symmetric else 0
        found["grid"] = [_short(grid.scale), grid.zero_point - first, grid.bits]
        found["scales"] = [_short(grid.smallest), _short(grid.largest)]
    if own is not None and own.input is not None and own.input in report.histograms:
        found["input"] = [own.input, _bins(report.histograms[own.input]), report.activations.get(own.input)]
    return found


def _facts(layer: LayerPart, times: Mapping[str, float] | None) -> list[str | None]:
    """A layer's figures, as words, in the order of TERMS."""
    return [
        f"{layer.level}, input {layer.activations}",
        f"{layer.groups} × {layer.rows} × {layer.columns}",
        f"{words.size(layer.bytes_before)} → {words.size(layer.bytes_after)}",
        words.duration(times[layer.name]) if times and layer.name in times else None,
        None if layer.zeros is None else words.percent(layer.zeros),
        layer.solver + (f", {words.duration(layer.seconds)}" if layer.seconds else ""),
        f"{layer.positions:,}",
        None if layer.damping is None else words.figure(layer.damping),
        str(layer.dead_columns) if layer.dead_columns else None,
    ]


def _bins(found: HistogramPart) -> list[Any]:
    """The ends, and the height of each bin as a character: logarithms of counts, of STEPS steps."""
    most = math.log1p(max(found.counts)) or 1.0
    last = len(STEPS) - 1
    heights = [min(math.ceil(last * math.log1p(count) / most), last) for count in found.counts]
    return [_short(found.low), _short(found.high), "".join(STEPS[height] for height in heights)]


def _short(value: float | None) -> float | None:
    """A number in as many digits as a drawing needs."""
    return None if value is None else float(f"{value:.4g}")


def _made(reports: Sequence[PlainReport]) -> list[PlainReport]:
    """The reports that say different things of how they were made, which several budgets of one command do not."""
    seen: dict[str, PlainReport] = {}
    for one in reports:
        seen.setdefault(repr((one.command, one.model, one.calibration, one.recipe, one.versions, one.machine)), one)
    return list(seen.values())
