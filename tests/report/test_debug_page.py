"""The page, the table and the JSON of debugging, of records with names and figures that are hard to render."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from studies import HOSTILE as NAMES

from onnx_obc.debug.record import Debug, LayerRow, OutputRow, Return, SampleRow, ValueRow, to_db
from onnx_obc.report.debug_json import write_debug_json
from onnx_obc.report.debug_page import along_depth, write_debug_page
from onnx_obc.report.debug_table import debug_table


def make_debug(name: str = NAMES[0]) -> Debug:
    values = (
        ValueRow("x", "x", "input", None, 0.0),
        ValueRow("h", "h", "Conv", name, 0.01, 0.004, 0.009, 2.5),
        ValueRow("s", "s", "Add", None, 0.2, None, 0.1, None),
        ValueRow("y", "y", "Gemm", "last", math.inf, math.inf, 0.0, 1.0),
    )
    layers = (
        LayerRow(name, "Conv", "h", "int8", 8, None, 0.004),
        LayerRow("last", "Gemm", "y", "int4, 50 % zero", 4, 0.5, None, others=("a", "b")),
        LayerRow("lost", "MatMul", None, reason="the compressed graph has no value like its output"),
    )
    returns = (Return("last", "int8", 0.1, math.inf, math.inf, math.nan, "weights"),)
    outputs = (OutputRow("y", math.inf, -math.inf, 130.0),)
    return Debug(
        *("in.onnx", name, "images", 8, False, 20.0, math.inf, 0.5, outputs, "another y: 3.0 dB", "s"),
        *(values, layers, returns, 2, (SampleRow(name, math.inf),), ("q",), (name,)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_all_and_loads_nothing(name: str, tmp_path: Path) -> None:
    write_debug_page(make_debug(name), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "<script>alert" not in page
        and "<img" not in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    )
    for needed in ("Where accuracy is lost", "not matched", 'id="words"', 'id="verdict"', 'id="found"', "Optimised ≠"):
        assert needed in page, needed
    assert page.count("<tbody data-words=") == 3


def test_the_figure_has_a_line_and_marks() -> None:
    drawing = along_depth(make_debug())
    assert (
        drawing.count("<polyline") == 2 and drawing.count('class="dot q"') == 2 and drawing.count('class="dot p"') == 2
    )
    equal = replace(make_debug(), values=(ValueRow("x", "x", "input", None, 0.0),))
    assert along_depth(equal) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_fits(width: int, name: str) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(debug_table(make_debug(name), width))
    said = console.export_text()
    assert "last" in said and "∞" in said and max(map(len, said.splitlines())) <= width


def test_the_figures_are_valid_json(tmp_path: Path) -> None:
    write_debug_json(make_debug(NAMES[1]), tmp_path / "r.json")
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["values"][3]["error"] is None and figures["layers"][2]["reason"] and figures["equal"] is False


def test_decibels() -> None:
    assert to_db(0.1) == pytest.approx(20) and to_db(0.0) == math.inf and to_db(math.inf) == -math.inf
    assert to_db(None) is None and to_db(math.nan) is None
