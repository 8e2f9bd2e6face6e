"""Budgets as users write them, tables of timings, and the plot of several."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from onnx_obc.errors import OutputError, RecipeError
from onnx_obc.report.pareto import Point, front, write_pareto
from onnx_obc.search.budget import Budget, parse_budget, read_timings


@pytest.mark.parametrize(
    ("text", "budget", "fraction"),
    [
        ("bops=12x", Budget("bops", 12), 1 / 12),
        ("obc-bops=7.5x", Budget("obc-bops", 7.5), 1 / 7.5),
        ("flops=3x", Budget("flops", 3), 1 / 3),
        ("size=0.2x", Budget("size", 0.2), 0.2),
        (" Latency = 4X ", Budget("latency", 4), 0.25),
    ],
)
def test_budgets(text: str, budget: Budget, fraction: float) -> None:
    assert parse_budget(text) == budget == parse_budget(str(budget))
    assert budget.fraction == pytest.approx(fraction)


def test_a_drop_is_a_loss() -> None:
    assert parse_budget("drop=1%") == Budget("drop", 0.01) == parse_budget("drop=0.01")
    assert str(Budget("drop", 0.01)) == "drop=1%"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bobs=12x", "did you mean bops"),
        ("speed", "known: bops"),
        ("bops=12", "'12' cannot be read"),
        ("bops=12%", "cannot be read"),
        ("drop=2x", "cannot be read"),
        ("drop=0%", "above 0"),
        ("bops=0x", "leaves nothing, or everything"),
        ("bops=1x", "leaves nothing, or everything"),
        ("bops=-3x", "cannot be read"),
        ("bops=nanx", "cannot be read"),
        ("bops=", "cannot be read"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"--budget") as error:
        parse_budget(text)
    assert said in str(error.value)


def test_timings(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"layers": {"a": {"float": 2, "8w8a": 0.5}}, "rest": 1}))
    found = read_timings(path)
    assert found.layers == {"a": {"float": 2, "8w8a": 0.5}} and found.rest == 1
    for text, said in [
        ("{", "no valid JSON"),
        ("[]", "must have the form"),
        ('{"layers": {"a": 3}}', "must have the form"),
        ('{"layers": {"a": {"float": -1}}}', "a at float takes -1"),
        ('{"layers": {"a": {"float": "1"}}}', "give seconds above 0"),
        ('{"layers": {}, "rest": -2}', "rest is -2"),
    ]:
        path.write_text(text)
        with pytest.raises(RecipeError, match="--timings") as error:
            read_timings(path)
        assert said in str(error.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_timings(tmp_path / "nothing.json")


def test_the_front() -> None:
    assert front([(2, 0.1), (4, 0.3), (3, 0.4), (8, 0.9), (1, 0.2)]) == [0, 1, 3]


def test_the_plot_and_its_table(tmp_path: Path) -> None:
    points = [Point(f"bops={x}x", f"m{x}.onnx", 1 / x, 2 / x, 0.9, 0.3, None, x / 100, 1000 // x) for x in (4, 8, 16)]
    files = write_pareto(points, tmp_path / "out-pareto")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-pareto.csv", "out-pareto.svg"]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert [float(row["bops"]) for row in rows] == [1 / 4, 1 / 8, 1 / 16] and rows[1]["file"] == "m8.onnx"
    drawn = files[1].read_text()
    assert all(point.budget in drawn for point in points) and "bops, times less" in drawn
    before = files[1].read_bytes()
    write_pareto(points, tmp_path / "out-pareto")
    assert files[1].read_bytes() == before
    with pytest.raises(OutputError, match="cannot write"):
        write_pareto(points, tmp_path / "nowhere" / "p")
