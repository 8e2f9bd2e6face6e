"""Budgets that costs alone show to be out of reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small_graphs import build as onnx_model
from small_graphs import random

from onnx_obc import SearchOptions
from onnx_obc.core.errors import RecipeError
from onnx_obc.database.build import build
from onnx_obc.database.open import open_database
from onnx_obc.search.budget import parse_budget
from onnx_obc.search.retarget import compress_to_budget, retarget


def free_sizes(height: int | str, width: int | str) -> onnx.ModelProto:
    """A convolution of many pixels, and one of a single pixel with more weights."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="wide", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Conv", ["p", "v"], ["y"], name="narrow"),
    ]
    weights = {"w": random(16, 4, 3, 3), "v": random(128, 16, 1, 1, seed=1)}
    shape: list[int | str] = ["N", 4, height, width]
    return onnx_model(nodes, {"x": shape}, {"y": ["N", 128, 1, 1]}, weights)


DATA = {"x": np.random.default_rng(0).standard_normal((64, 4, 12, 12)).astype(np.float32)}


def test_free_sizes_cost_what_they_do_in_the_calibration_run(tmp_path: Path) -> None:
    found = []
    for name, sizes in {"free": ("height", "width"), "fixed": (12, 12)}.items():
        build(free_sizes(*sizes), DATA, "8w8a", tmp_path / name)
        found.append({layer: cost.flops for layer, cost in open_database(tmp_path / name).costs.items()})
    assert found[0] == found[1] == {"wide": 2 * 16 * 36 * 144, "narrow": 2 * 128 * 16}


@pytest.mark.parametrize(
    ("budget", "levels", "message"),
    [
        ("size=0.05x", "8w8a", r"size=0.05x cannot be met: 0.3\d+x at least with the levels 8w8a; ask for less"),
        ("flops=3x", "2:4+8w8a", r"flops=3x cannot be met: 2x at most"),
        ("drop=1%", "sparse-0.50", "drop=1%: these levels make no layer smaller"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_solved(
    budget: str, levels: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_obc.search.retarget.build", lambda *args, **more: pytest.fail("the work has begun"))
    budgets = [parse_budget("bops=0.9x"), parse_budget(budget)]
    with pytest.raises(RecipeError, match=message):
        options = SearchOptions(levels=levels, database=tmp_path / "db")
        compress_to_budget(free_sizes("h", "w"), DATA, budgets, [None, None], options=options)
    assert not (tmp_path / "db").exists()


def test_levels_that_a_database_has_already_count(tmp_path: Path) -> None:
    model = free_sizes("h", "w")
    build(model, DATA, "int2", tmp_path / "db")
    options = SearchOptions(levels="8w8a", database=tmp_path / "db")
    (result,) = compress_to_budget(model, DATA, [parse_budget("size=0.15x")], [None], options=options)
    assert {layer.level for layer in result.report.layers} == {"int2"}


def test_a_search_refuses_all_budgets_before_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(free_sizes("h", "w"), DATA, "8w8a", tmp_path / "db")
    monkeypatch.setattr("onnx_obc.search.retarget.sensitivities", lambda *args: pytest.fail("the work has begun"))
    with pytest.raises(RecipeError, match=r"bops=40x cannot be met: 16x at most with the levels 8w8a"):
        retarget(tmp_path / "db", [parse_budget("size=0.5x"), parse_budget("bops=40x")], [None, None])
