"""The table and the plot of several budgets."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from onnx_obc.core.errors import OutputError
from onnx_obc.report.pareto import Point, front, write_pareto


def test_the_front() -> None:
    assert front([(2, 0.1), (4, 0.3), (3, 0.4), (8, 0.9), (1, 0.2)]) == [0, 1, 3]
    assert front([(2, 0.3), (4, math.nan), (8, math.inf)]) == [0]
    assert front([]) == []


@pytest.mark.slow
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
        write_pareto(points, tmp_path / "out-pareto.csv" / "p")


def test_a_loss_that_is_not_known_is_in_the_table_only(tmp_path: Path) -> None:
    points = [
        Point(f"bops={x}x", f"m{x}.onnx", 1 / x, 2 / x, 0.9, 0.3, None, loss, 1000 // x)
        for x, loss in ((4, 0.1), (8, math.inf), (16, math.nan))
    ]
    for some in (points, points[1:]):
        table, _ = write_pareto(some, tmp_path / "p")
        assert [row["loss"] for row in csv.DictReader(table.read_text().splitlines())] == [str(x.loss) for x in some]
