from __future__ import annotations

import sys

import numpy as np
import pytest
from problems import layer

from onnx_obc.core.level import parse_level
from onnx_obc.solver import Method, damp, solve, solve_levels

LADDER = [f"sparse-{fraction:.2f}" for fraction in (0.9, 0.1, 0.3, 0.5, 0.55, 0.6, 0.7, 0.8, 0.85, 0.95)]
SETS = {
    "ladder": LADDER,
    "ladder and integers": ["sparse-0.60", "sparse-0.60+int4", "int4", "sparse-0.30+int4", "float", "sparse-0.60+int8"],
    "blocks and int8": [f"block4-{x}{bits}" for x in ("0.50", "0.70", "0.80") for bits in ("", "+int8")],
    "two sizes of blocks": ["block4-0.50", "block2-0.50", "sparse-0.50", "block4-0.60+int8", "block2-0.60"],
    "2:4": ["2:4", "2:4+int8", "2:4+int4"],
    "2:4 after its integers": ["2:4+int4", "4:8", "2:4+int4-asym", "2:4"],
}
METHODS = {"greedy": Method(), "refined": Method(refine=2), "auto": Method(refine="auto")}


def same(one, other):
    """Whether two solutions are equal bit for bit."""
    for name in ("weights", "codes", "mask"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes()), name
    assert (one.grid is None) == (other.grid is None)
    if one.grid is not None:
        assert one.grid.scale.tobytes() == other.grid.scale.tobytes()
        assert one.grid.zero_point.tobytes() == other.grid.zero_point.tobytes()
    assert (one.level, one.loss, one.loss_greedy) == (other.level, other.loss, other.loss_greedy)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETS)
def test_each_solution_is_that_of_its_level_alone(name, method):
    weights, hessian = layer(groups=2, rows=3, columns=44)
    damped, levels = damp(hessian), [parse_level(text) for text in SETS[name]]
    found = list(solve_levels(weights, damped, levels, METHODS[method]))
    assert len(found) == len(levels)
    for level, solution in zip(levels, found, strict=True):
        same(solution, solve(weights, damped, level, METHODS[method]))


@pytest.mark.parametrize("name", ["ladder and integers", "blocks and int8", "2:4"])
def test_the_ordered_solver_and_float64_again(name, monkeypatch):
    weights, hessian = layer(rows=3, columns=600, samples=300, decay=0.5)
    damped, levels = damp(hessian), [parse_level(text) for text in SETS[name]]
    ordered = Method(solver="ordered")
    for level, solution in zip(levels, solve_levels(weights, damped, levels, ordered), strict=True):
        same(solution, solve(weights, damped, level, ordered))
    narrow, small = weights[:, :, :40], damp(hessian[:, :40, :40])
    no_prediction_is_good_enough(monkeypatch)
    for level, solution in zip(levels, solve_levels(narrow, small, levels), strict=True):
        same(solution, solve(narrow, small, level))
        exact = solve(narrow, small, level, Method(precision="float64"))
        assert solution.level.bits is None or np.array_equal(solution.codes, exact.codes)


def no_prediction_is_good_enough(monkeypatch):
    for module in ("solve", "rounded"):
        monkeypatch.setattr(sys.modules[f"onnx_obc.solver.{module}"], "ROUNDING", 0.0)


def test_a_gpu_shares_its_trace(monkeypatch):
    pytest.importorskip("torch")
    from onnx_obc.solver.exact import prune
    from onnx_obc.solver.gpu import batches as batches

    calls, own = [], batches.prune_order

    def spy(weights, damped, sparsity, device, *rest):
        calls.append(device)
        return own(weights, damped, sparsity, "cpu", *rest)  # torch on the CPU stands in for the device

    def refit(weights, mask, hessian, device, *rest):
        return solve_kept(weights, mask, hessian, "cpu", *rest)

    solve_kept = batches.solve_kept
    monkeypatch.setattr(prune.batches, "prune_order", spy)
    monkeypatch.setattr(prune.batches, "solve_kept", refit)
    weights, hessian = layer(rows=3, columns=24)
    damped, levels = damp(hessian), [parse_level(text) for text in LADDER]
    method = Method(device="cuda:0", precision="float64")
    found = list(solve_levels(weights, damped, levels, method))
    assert calls == ["cuda:0"]
    for level, solution in zip(levels, found, strict=True):
        same(solution, solve(weights, damped, level, method))


@pytest.mark.parametrize(("name", "traces"), [("ladder", 1), ("ladder and integers", 1), ("blocks and int8", 1)])
@pytest.mark.parametrize("method", METHODS)
def test_levels_share_one_trace(name, traces, method, monkeypatch):
    assert count(monkeypatch, "greedy_order", "exact.prune", SETS[name], METHODS[method]) == traces


def test_patterns_of_different_kinds_have_their_own(monkeypatch):
    assert count(monkeypatch, "greedy_order", "exact.prune", SETS["two sizes of blocks"], Method()) == 3


def test_integers_share_the_pruned_and_refined_solution(monkeypatch):
    assert count(monkeypatch, "greedy_order", "exact.prune", SETS["2:4"], Method(refine=2)) == 1
    assert count(monkeypatch, "refine_mask", "solve", SETS["2:4"], Method(refine=2)) == 1
    assert count(monkeypatch, "refine_mask", "solve", SETS["2:4 after its integers"], Method(refine=2)) == 2


def count(monkeypatch, function, module, levels, method):
    """How often the levels of one small layer call a function."""
    calls, place = [], sys.modules[f"onnx_obc.solver.{module}"]
    own = getattr(place, function)
    with monkeypatch.context() as patch:
        patch.setattr(place, function, lambda *arguments: calls.append(function) or own(*arguments))
        weights, hessian = layer(rows=3, columns=24)
        assert len(list(solve_levels(weights, damp(hessian), [parse_level(x) for x in levels], method))) == len(levels)
    return len(calls)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETS)
def test_progress_counts_the_rows_of_all_levels(name, method, monkeypatch):
    weights, hessian = layer(groups=2, rows=20, columns=16)
    damped, levels, seen = damp(hessian), [parse_level(text) for text in SETS[name]], []
    for number, _ in enumerate(solve_levels(weights, damped, levels, METHODS[method], seen.append), 1):
        assert seen[-1] == 40 * number
    assert seen == sorted(seen)
    no_prediction_is_good_enough(monkeypatch)  # what is solved twice counts once
    seen.clear()
    list(solve_levels(weights, damped, levels, METHODS[method], seen.append))
    assert seen == sorted(seen) and seen[-1] == 40 * len(levels)


def test_no_levels_give_no_solutions():
    weights, hessian = layer()
    assert list(solve_levels(weights, damp(hessian), [])) == []
