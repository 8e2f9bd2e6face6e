"""Drawings as text: scales, round numbers, and words that stay words."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from onnx_obc.report import plot


def test_a_scale_runs_from_end_to_end_and_no_further() -> None:
    x = plot.Scale(0, 10, 100, 200)
    assert [x(0), x(5), x(10), x(-3), x(math.inf), x(-math.inf)] == [100, 150, 200, 100, 200, 100]
    y = plot.Scale(1, 100, 200, 0, log=True)
    assert y(10) == pytest.approx(100) and y(0) == 200 and y(1e9) == pytest.approx(0)


def test_a_scale_shows_what_is_finite() -> None:
    x = plot.fitted([1.0, None, math.inf, math.nan, 3.0, -math.inf], 0, 1)
    assert 0.5 < x.low < 1 and 3 < x.high < 3.5
    for values in ([], [None], [math.inf], [7.0]):
        for log in (False, True):
            found = plot.fitted(values, 0, 1, log=log)
            assert math.isfinite(found.low) and found.low < found.high
    assert plot.fitted([-1.0, 0.0, 5.0, 50.0], 0, 1, log=True).low == pytest.approx(5 / 1.15)


def test_ticks_are_round() -> None:
    assert plot.ticks(plot.Scale(0, 47, 0, 1)) == [0, 10, 20, 30, 40]
    assert plot.ticks(plot.Scale(-0.13, 0.31, 0, 1)) == [-0.1, 0, 0.1, 0.2, 0.3]
    assert plot.ticks(plot.Scale(1.6, 400, 0, 1, log=True)) == [2, 5, 10, 20, 50, 100, 200]
    assert plot.ticks(plot.Scale(1.6, 1e6, 0, 1, log=True)) == [10.0**x for x in range(1, 7)]
    for low, high in ((1e-3, 1e9), (3, 3.5), (2, 9)):
        found = plot.ticks(plot.Scale(low, high, 0, 1, log=True))
        assert len(found) <= 9 and all(low <= x <= high for x in found)


def test_words_stay_words() -> None:
    hostile = '"><script>alert(1)</script>\x00\x1b[31m'
    drawn = plot.figure(10, 10, hostile, [plot.text(1, 1, hostile, "t"), plot.circle(1, 2, 3, "c", hostile)])
    root = ElementTree.fromstring(drawn)
    clean = hostile.replace("\x00", "").replace("\x1b", "")
    assert root.get("aria-label") == clean and [each.tag for each in root] == ["text", "circle"]
    assert root[0].text == clean and root[1][0].text == clean


def test_rectangles_are_never_invisible() -> None:
    root = ElementTree.fromstring(plot.rectangle((5, 5), (5, 2), "box"))
    assert float(root.attrib["width"]) > 0 and float(root.attrib["height"]) == 3
    assert plot.rectangles([((0, 4), (2, 1))], "box") == '<path class="box" d="M0 1h2v3h-2z"/>'
    assert plot.rectangles([], "box") == ""


def test_numbers_are_short() -> None:
    assert [plot.number(x) for x in (0, 3.0, 12.345, -2.04, 100, 0.01234)] == ["0", "3", "12.3", "-2", "100", "0.0123"]
