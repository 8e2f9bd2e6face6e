"""Which solver a layer gets, and that the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from small_graphs import build, random

from onnx_obc import build as build_database
from onnx_obc import compress, open_database
from onnx_obc.core.level import parse_choice
from onnx_obc.core.progress import Feedback
from onnx_obc.pipeline.recipe import make_recipe
from onnx_obc.pipeline.schedule import Schedule, make_schedule
from onnx_obc.solver.forecast import Machine


def two_layers(columns: int = 300) -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "wide"], ["h"], name="wide"),
        helper.make_node("MatMul", ["h", "small"], ["y"], name="small"),
    ]
    weights = {"wide": random(columns, 40), "small": random(40, 8)}
    return build(nodes, {"x": ("n", columns)}, {"y": ("n", 8)}, weights)


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose exact solver takes more than 10 s for a row of 300 columns, whatever this one does."""
    near = dict.fromkeys(("bits", "unstructured", "nm", "block"), 0.01)
    far = dict.fromkeys(near, 4e5)
    monkeypatch.setattr("onnx_obc.pipeline.schedule.calibrate", lambda threads: Machine(1, near, far, 1e9, 1e9))


def run(**options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    recipe = make_recipe({"weights": "int4", "activations": "none", "device": "cpu", **options})
    result = compress(two_layers(), {"x": random(800, 300)}, recipe, feedback=Feedback(say=said.append))
    return result.report, said


@pytest.mark.usefixtures("slow_machine")
def test_a_time_limit_leaves_the_largest_layer_to_the_ordered_solver() -> None:
    report, said = run(time_limit=60, refine="none")
    assert {layer.name: layer.solver for layer in report.layers} == {"wide": "ordered", "small": "exact"}
    assert said[0].startswith("plan: 1 layer exactly") and any("wide (1 × 40 × 300): ordered" in line for line in said)
    wide, small = report.layers
    assert wide.ordered_over_exact is None and any(
        "not solved exactly" in note for note in wide.notes
    )  # 10 s do not make one row
    assert small.ordered_over_exact is None and not small.notes


@pytest.mark.slow
def test_what_was_not_exact_is_compared_on_a_sample_of_rows() -> None:
    report, said = run(solver="ordered", refine="none")
    wide = report.layers[0]
    assert wide.solver == "ordered" and "by the ordered solver" in said[0]
    assert wide.ordered_over_exact is not None and 0.8 < wide.ordered_over_exact < 2
    assert any(f"{wide.ordered_over_exact:.3f} of the exact" in note for note in wide.notes)
    np.testing.assert_allclose(wide.loss_predicted, wide.loss_measured, rtol=1e-4)


def test_small_layers_are_solved_exactly_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.pipeline.schedule.calibrate", lambda threads: pytest.fail("nothing to measure here"))
    report, said = run()
    assert said == [] and {layer.solver for layer in report.layers} == {"exact"}


@pytest.mark.parametrize(("solver", "device"), [("exact", "cpu"), ("baseline", "cpu"), ("auto", "cuda:0")])
def test_a_time_limit_that_is_not_kept_is_said(solver: str, device: str) -> None:
    assert make_schedule([], {}, make_recipe({"solver": solver}), device) == Schedule()
    schedule = make_schedule([], {}, make_recipe({"solver": solver, "time_limit": 1}), device)
    assert "the time limit is not kept" in schedule.lines[0] and schedule.ordered == {}


def test_the_baseline_has_no_bound_and_the_exact_solver_has() -> None:
    (simple, _), (exact, _) = run(solver="baseline"), run()
    assert all(layer.loss_bound is None and layer.solver == "baseline" for layer in simple.layers)
    assert all(layer.loss_bound is not None and 0 < layer.loss_bound <= layer.loss_measured for layer in exact.layers)


@pytest.mark.slow
def test_few_positions_are_not_refined_unless_asked() -> None:
    few = {"x": random(30, 300)}
    reports = []
    for refine in ("auto", 2):
        recipe = make_recipe({"weights": "int4", "activations": "none", "device": "cpu", "refine": refine})
        reports.append(compress(two_layers(), few, recipe).report.layers[0])
    assert (
        any("not refined" in note for note in reports[0].notes) and reports[0].loss_predicted == reports[0].loss_greedy
    )
    assert not any("not refined" in note for note in reports[1].notes)
    assert reports[1].loss_predicted < reports[1].loss_greedy


@pytest.mark.slow
def test_refinement_lowers_the_loss_and_says_by_how_much() -> None:
    (plain, _), (refined, _) = run(refine="none"), run(refine=4)
    for before, after in zip(plain.layers, refined.layers, strict=True):
        assert before.loss_predicted == before.loss_greedy
        assert after.loss_predicted < after.loss_greedy
        np.testing.assert_allclose(after.loss_predicted, after.loss_measured, rtol=1e-4)
    np.testing.assert_allclose(refined.layers[0].loss_greedy, plain.layers[0].loss_predicted)


@pytest.mark.usefixtures("slow_machine")
def test_all_levels_of_a_layer_count(tmp_path: Path) -> None:
    """One level fits the time limit, all of them together do not."""
    x = {"x": random(800, 300)}
    recipe = make_recipe({"device": "cpu", "refine": "none", "solver": "auto", "time_limit": 1000})
    one = build_database(two_layers(), x, "int4", tmp_path / "one", recipe)
    many = build_database(two_layers(), x, "int8,int4,int3,int2", tmp_path / "many", recipe)
    assert one.manifest.ordered == {} and set(many.manifest.ordered or {}) == {"wide"}


@pytest.mark.usefixtures("slow_machine")
def test_a_database_keeps_its_solvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = {"x": random(800, 300)}
    recipe = make_recipe({"device": "cpu", "refine": "none", "time_limit": 60})
    first = build_database(two_layers(), x, "int4", tmp_path / "db", recipe)
    monkeypatch.setattr("onnx_obc.pipeline.schedule.calibrate", lambda threads: pytest.fail("it was decided already"))
    again = build_database(two_layers(), x, "int4", tmp_path / "db", recipe)
    assert again.solved == 0 and again.manifest.ordered == first.manifest.ordered == {"wide": 0}


@pytest.mark.slow
def test_so_are_layers_of_a_database_and_layers_in_order(tmp_path: Path) -> None:
    recipe = make_recipe({"device": "cpu", "solver": "ordered", "refine": "none"})
    data = {"x": random(800, 300)}
    build_database(two_layers(), data, "int4", tmp_path / "db", recipe)
    database = open_database(tmp_path / "db")
    stored = database.solved(database.layers[0], parse_choice("int4")).report
    report, _ = run(solver="ordered", refine="none", sequential=True)
    for wide in (stored, report.layers[0]):
        assert wide.solver == "ordered" and wide.ordered_over_exact is not None and 0.8 < wide.ordered_over_exact < 2
