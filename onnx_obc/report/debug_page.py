"""What debugging found as a page: one HTML file with the error along the depth of the graph, which loads nothing."""

from __future__ import annotations

import math
from pathlib import Path

from ..core.errors import shortened
from ..debug.record import Debug, LayerRow, ValueRow, to_db
from . import debug_words as words
from . import plot
from .render import sortable, write_page
from .report_words import file_name

_WIDTH, _HEIGHT = 900.0, 400.0
_NAME = 60  # characters of a name in what a pointer is told


def write_debug_page(found: Debug, path: Path) -> None:
    """Write one HTML file, whole or not at all. Raises OutputError."""
    values = {
        "found": found,
        "names": [file_name(name) for name in (found.dense, found.compressed)],
        "depth": along_depth(found),
        "words": words,
        "shortened": shortened,
        "sortable": sortable,
        "error_of": to_db,
        "value_of": found.value_of,
        "tags": _tags,
    }
    write_page("debug.html.j2", values, path)


def along_depth(found: Debug) -> str:
    """The accumulated error of every value as a line, and the errors that parts add by themselves as marks; empty
    where nothing differs."""
    known = [(number, row) for number, row in enumerate(found.values, 1) if row.error > 0 or _own(row)]
    if not known:
        return ""
    heights = [to_db(error) for _, row in known for error in (row.error, row.weights, row.activations) if error]
    x = plot.Scale(0, len(found.values) + 1, 66, _WIDTH - 12)
    y = plot.fitted([*heights, found.threshold], _HEIGHT - 46, 14)
    line = [(x(number), y(_db(row.error))) for number, row in enumerate(found.values, 1)]
    marks = []
    for number, row in known:
        for error, css, what in ((row.weights, "q", "weights"), (row.activations, "p", "inputs")):
            if error:
                title = f"{shortened(row.layer or row.name, _NAME)}: its {what} alone {words.db(error)} dB"
                marks.append(plot.circle(x(number), y(_db(error)), 3, f"dot {css}", title))
    points = [
        plot.circle(x(number), y(_db(row.error)), 2, "dot b", f"{shortened(row.name, _NAME)}: {words.db(row.error)} dB")
        for number, row in known
    ]
    limit = [(x.start, y(found.threshold)), (x.end, y(found.threshold))]
    parts = [
        plot.axes(x, y, ("values in the order of the graph", "signal to noise, dB")),
        plot.line(limit, "cross k4", f"threshold, {found.threshold:g} dB"),
        plot.line(line, "run slim b"),
        *points,
        *marks,
    ]
    return plot.figure(_WIDTH, _HEIGHT, f"Error of {len(found.values)} values along the depth of the graph", parts)


def _own(row: ValueRow) -> bool:
    return bool(row.weights or row.activations)


def _db(error: float) -> float:
    found = to_db(error)
    return math.inf if found is None else found


def _tags(layer: LayerRow, row: ValueRow | None) -> str:
    """What the filter finds a layer by."""
    if row is None:
        return "unmatched"
    return words.larger(row) or "exact"
