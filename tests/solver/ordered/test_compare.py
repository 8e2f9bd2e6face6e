from __future__ import annotations

import numpy as np
import pytest
from problems import layer

from onnx_obc.core.level import parse_level
from onnx_obc.solver.baselines import baseline
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.ordered import ordered
from onnx_obc.solver.ordered.compare import compare_on_rows
from onnx_obc.solver.solve import Method, solve

LEVELS = ["int4", "2:4", "sparse-0.60", "block4-0.50", "sparse-0.50+int4-asym"]


@pytest.mark.parametrize("level", ["int4", "2:4", "2:4+int4", "block4-0.50", "sparse-0.60"])
def test_a_solution_of_the_exact_solver_has_ratio_one(level):
    weights, hessian = layer(2, 5, 40)
    damped = damp(hessian)
    ratio = compare_on_rows(weights, damped, solve(weights, damped, parse_level(level)), solve, 10)
    np.testing.assert_allclose(ratio, 1, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_on_all_rows_the_ratio_is_that_of_the_losses(level, monkeypatch):
    monkeypatch.setattr(ordered, "BLOCK", 16)
    weights, hessian = layer(1, 6, 60, samples=240)
    damped, level = damp(hessian), parse_level(level)
    solution = solve(weights, damped, level, Method(solver="ordered"))
    ratio = compare_on_rows(weights, damped, solution, solve, 6)
    exact = solve(weights, damped, level)
    simple = compare_on_rows(weights, damped, baseline(weights, damped, level), solve, 6)
    if level.sparsity is None or str(level.sparsity) == "2:4":  # rows are independent: nothing is shared out
        np.testing.assert_allclose(ratio, solution.loss / exact.loss, rtol=1e-4)
    assert 0.8 < ratio < 1.5 and simple > 1.2 * ratio


def test_a_sample_lies_between_the_rows_ratios():
    weights, hessian = layer(2, 20, 40)
    damped, level = damp(hessian), parse_level("int3")
    solution = baseline(weights, damped, level)
    one, few, all_rows = (compare_on_rows(weights, damped, solution, solve, count) for count in (1, 7, 40))
    assert one > 1 and few > 1 and 0.5 < few / all_rows < 2
    assert compare_on_rows(weights, damped, solution, solve, 7, threads=2) == few


def test_nothing_to_compare():
    weights, hessian = layer(1, 3, 20)
    damped = damp(hessian)
    assert compare_on_rows(weights, damped, solve(weights, damped, parse_level("int4")), solve, 0) is None
    assert compare_on_rows(weights, damped, solve(weights, damped, parse_level("float")), solve, 3) is None
