"""One layer: solved at several levels, with the figures of the report."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx.helper import make_node as node
from small_graphs import build, random

from onnx_obc.calibration.capture import LayerHessian
from onnx_obc.core.level import Choice, parse_level
from onnx_obc.graph.layers import find_layers
from onnx_obc.pipeline.layer import LayerMethod, Prepared, method_of, prepare_layer, solve_layer, trusted_method
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.solver import layer_loss

ROWS, COLUMNS, POSITIONS = 6, 16, 200
LEVELS = [Choice(parse_level(text)) for text in ("int4-asym", "2:4", "2:4+int8", "sparse-0.50")]


def prepared(positions: int = POSITIONS, recipe: Recipe = Recipe()) -> Prepared:  # noqa: B008
    proto = build(
        [node("MatMul", ["x", "w"], ["y"], name="m")], {"x": ("N", COLUMNS)}, {"y": None}, {"w": random(COLUMNS, ROWS)}
    )
    (layer,), _ = find_layers(ir.from_proto(proto))
    x = random(positions, COLUMNS, seed=3).astype(np.float64) @ np.diag(1 / np.arange(1, COLUMNS + 1))
    hessian = 2 * x.T @ x / max(positions, 1)  # (columns, columns)
    return prepare_layer(layer, LayerHessian(hessian[None], positions), recipe)


def test_levels_are_solved_in_their_order_and_the_losses_are_those_of_the_weights() -> None:
    given, told = prepared(), []
    recipe = Recipe()
    solved = list(solve_layer(given, LEVELS, recipe, LayerMethod(method_of(recipe)), "as told", told.append))
    assert [entry.report.level for entry in solved] == [str(choice) for choice in LEVELS]
    assert sum(told) == ROWS * len(LEVELS) and min(told) >= 0
    for entry in solved:
        measured = layer_loss(given.weight, entry.solution.weights, given.damped.hessian)
        assert entry.report.loss_predicted == pytest.approx(measured, rel=1e-4)
        assert entry.report.loss <= entry.report.loss_baseline
        assert entry.report.loss_bound is not None and entry.report.loss_bound <= measured * (1 + 1e-6)
        assert "as told" in entry.report.notes


def test_the_baseline_is_its_own_reference() -> None:
    recipe = Recipe(solver="baseline")
    (entry,) = solve_layer(prepared(recipe=recipe), LEVELS[:1], recipe, LayerMethod(method_of(recipe)))
    assert entry.report.solver == "baseline" and entry.report.loss == entry.report.loss_baseline


def test_a_layer_that_no_sample_reaches_says_so() -> None:
    recipe = Recipe()
    given = prepared()
    dead = prepare_layer(given.layer, LayerHessian(np.zeros((1, COLUMNS, COLUMNS)), 0), recipe)
    (entry,) = solve_layer(dead, LEVELS[:1], recipe, LayerMethod(method_of(recipe)))
    assert any("never reaches this layer" in note for note in entry.report.notes)
    assert np.isfinite(entry.solution.weights).all()


def test_few_positions_are_not_trusted_by_auto_alone() -> None:
    few = prepared(positions=2 * COLUMNS)
    assert trusted_method(few, method_of(Recipe())).refine == "none"
    assert trusted_method(few, method_of(Recipe(refine=8))).refine == 8
    assert trusted_method(prepared(), method_of(Recipe())).refine == "auto"
