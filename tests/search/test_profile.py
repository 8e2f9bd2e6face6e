"""Which profile a budget gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper
from small_graphs import build as onnx_model
from small_graphs import random

from onnx_obc.calibration.options import DataOptions
from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import FLOAT, Choice, parse_choice
from onnx_obc.database.build import build
from onnx_obc.database.open import open_database
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.search.budget import Budget
from onnx_obc.search.costs import Costs
from onnx_obc.search.profile import SearchOptions
from onnx_obc.search.retarget import retarget


@pytest.mark.parametrize("how", [{}, {"sequential": True}, {"effort": "fast"}])
@pytest.mark.slow
def test_the_loss_of_the_finished_model_stays_under_a_budget_of_loss(how: dict[str, object], tmp_path: Path) -> None:
    build(MODEL, CALIBRATION, "4w4a,2:4+4w4a", tmp_path / "db", data=DataOptions(samples=64))
    (result,) = retarget(tmp_path / "db", [Budget("drop", 0.01)], [None], SearchOptions("layer"), how)
    assert result.report.output_loss is not None and result.report.output_loss <= 0.01
    assert result.report.search is not None and result.report.search["costs"]["size"] < 0.3


def test_pruning_alone_makes_no_smaller_file(tmp_path: Path) -> None:
    build(MODEL, CALIBRATION, "sparse-0.50", tmp_path / "db", data=DataOptions(samples=64))
    with pytest.raises(RecipeError, match="drop=1%: these levels make no layer smaller"):
        retarget(tmp_path / "db", [Budget("drop", 0.01)], [None], SearchOptions("layer"))


def test_what_breaks_the_model_is_not_the_least_there_is() -> None:
    costs = Costs((np.array([4.0, 1.0, 2.0]), np.array([4.0, 2.0])), 8.0, 0.0)
    assert costs.least == 3 / 8
    assert costs.least_of([np.array([0, np.inf, 1]), np.array([0, 1.0])]) == 4 / 8


@pytest.mark.parametrize("sides", [("conv2",), ("side",), ("conv2", "side")])
def test_a_profile_may_quantize_the_other_branch_of_a_sum(sides: tuple[str, ...], tmp_path: Path) -> None:
    """TensorRT takes the branch beside a quantized convolution: which, depends on the profile."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "u"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "v"], ["b"], name="conv2", pads=[1, 1, 1, 1]),
        node("Conv", ["x", "w"], ["s"], name="side"),
        node("Add", ["b", "s"], ["y"]),
    ]
    weights = {"u": random(32, 4, 3, 3), "v": random(32, 32, 3, 3, seed=2), "w": random(32, 4, 1, 1, seed=3)}
    model = onnx_model(nodes, {"x": ("N", 4, 6, 6)}, {"y": ("N", 32, 6, 6)}, weights)
    build(model, {"x": random(64, 4, 6, 6)}, "8w8a", tmp_path / "db", Recipe(target="tensorrt", refine="none"))
    database = open_database(tmp_path / "db")
    eight = parse_choice("8w8a")
    profile = {name: eight if name in sides else Choice(FLOAT) for name in database.choices}
    recipe = Recipe(target="tensorrt")
    result = database.write(profile, recipe)
    assert all(check.passed for check in result.report.checks)
    assert {x.name for x in result.report.layers} == set(sides)
