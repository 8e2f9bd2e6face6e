from __future__ import annotations

import sys

import numpy as np
import pytest
from problems import layer

from onnx_obc.core.errors import ModelError
from onnx_obc.core.level import FLOAT, parse_level
from onnx_obc.solver import Method, baseline, damp, layer_loss, output_energy, solve
from onnx_obc.solver.linalg.loss import row_losses

LEVELS = [
    "int8",
    "int4",
    "int3-asym",
    "int2",
    "2:4",
    "4:8",
    "1:2",
    "sparse-0.60",
    "block4-0.70",
    "2:4+int8",
    "sparse-0.60+int4",
    "block4-0.50+int8-asym",
]
SHAPES = {
    "plain": {"rows": 6, "columns": 96, "samples": 200},
    "few samples": {"rows": 4, "columns": 96, "samples": 24},
    "steep spectrum": {"rows": 4, "columns": 72, "samples": 24, "decay": 2.0},
    "one sample": {"rows": 2, "columns": 40, "samples": 1},
    "depthwise": {"groups": 64, "rows": 1, "columns": 9, "samples": 50},
    "one column": {"rows": 3, "columns": 1},
    "one row": {"rows": 1, "columns": 30},
    "odd": {"groups": 2, "rows": 3, "columns": 35},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_predicted_loss_is_the_measured_one(level, shape):
    weights, hessian = layer(**SHAPES[shape])
    damped = damp(hessian)
    solution = solve(weights, damped, parse_level(level))
    check(weights, damped, solution)


@pytest.mark.parametrize("damping", [0.1, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("level", ["2:4", "int4", "int8", "sparse-0.60+int4"])
def test_predicted_loss_is_the_measured_one_at_any_damping(level, damping):
    weights, hessian = layer(rows=3, columns=96, samples=24)
    damped = damp(hessian, damping)
    check(weights, damped, solve(weights, damped, parse_level(level)))


@pytest.mark.parametrize("level", LEVELS)
def test_dead_inputs_zero_groups_and_zero_rows(level):
    weights, hessian = layer(groups=3, rows=4, columns=36)
    hessian[0, [3, 20]] = hessian[0, :, [3, 20]] = 0
    hessian[1] = 0
    weights[0, 2] = weights[2, 0] = 0
    damped = damp(hessian)
    solution = solve(weights, damped, parse_level(level))
    check(weights, damped, solution)
    assert (solution.weights[0, 2] == 0).all() and (solution.weights[2, 0] == 0).all()


def check(weights, damped, solution):
    """What every solution must hold."""
    assert solution.weights.dtype == np.float32 and np.isfinite(solution.weights).all()
    energy = output_energy(weights, damped.hessian)
    measured = layer_loss(weights, solution.weights, damped.hessian)
    np.testing.assert_allclose(solution.loss, measured, rtol=1e-4, atol=1e-12 * energy)
    assert 0 <= measured <= 1.2 * energy
    if solution.level.bits is None:
        assert solution.codes is None and solution.grid is None
    else:
        assert solution.codes.dtype == np.int32
        assert (solution.grid.dequantize(solution.codes) == solution.weights).all()
        assert solution.codes.min() >= solution.grid.qmin and solution.codes.max() <= solution.grid.qmax
    if solution.level.sparsity is None:
        assert solution.mask is None
    else:
        assert (solution.weights[~solution.mask] == 0).all()


@pytest.mark.parametrize("level", ["2:4", "sparse-0.60", "block4-0.70", "int4", "sparse-0.60+int3-asym"])
def test_threads_and_memory_layout_change_nothing(level):
    weights, hessian = layer(groups=2, rows=9, columns=70)
    damped = damp(hessian)
    one = solve(weights, damped, parse_level(level), Method(threads=1))
    frozen = np.asfortranarray(weights)
    frozen.flags.writeable = False
    for other in (
        solve(weights, damped, parse_level(level), Method(threads=3)),
        solve(frozen, damped, parse_level(level), Method(threads=2)),
    ):
        assert other.weights.tobytes() == one.weights.tobytes()
        assert other.loss == one.loss


@pytest.mark.parametrize("level", ["2:4", "int4", "2:4+int4"])
def test_a_row_does_not_depend_on_the_others(level):
    weights, hessian = layer(rows=9, columns=70)
    damped = damp(hessian)
    whole = solve(weights, damped, parse_level(level)).weights
    pieces = [solve(weights[:, a:b], damped, parse_level(level)).weights for a, b in [(0, 1), (1, 5), (5, 9)]]
    assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()


def test_float_leaves_the_weights():
    weights, hessian = layer()
    solution = solve(weights, damp(hessian), FLOAT)
    assert solution.weights.tobytes() == weights.tobytes()
    assert (solution.loss, solution.codes, solution.grid, solution.mask) == (0, None, None, None)


@pytest.mark.parametrize("level", ["int4", "2:4", "2:4+int4"])
def test_progress_grows_to_the_number_of_rows(level):
    weights, hessian = layer(groups=3, rows=40, columns=9)
    seen = []
    solve(weights, damp(hessian), parse_level(level), Method(threads=2), seen.append)
    assert seen == sorted(seen) and seen[-1] == 120


@pytest.mark.parametrize("level", ["int4", "2:4"])
@pytest.mark.parametrize("solver", [solve, baseline])
def test_weights_that_are_no_numbers(level, solver):
    weights, hessian = layer()
    weights[0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        solver(weights, damp(hessian), parse_level(level))


@pytest.mark.parametrize("level", [*LEVELS, "float"])
def test_it_beats_the_baseline(level):
    ratios = []
    for seed in range(5):
        weights, hessian = layer(rows=4, columns=64, samples=200, decay=0.7, seed=seed)
        damped = damp(hessian)
        exact, simple = (f(weights, damped, parse_level(level)).loss for f in (solve, baseline))
        ratios.append(exact / simple if simple else 1.0)
    assert max(ratios) <= 1.0
    assert level == "float" or np.mean(ratios) < 0.6


def test_losses_are_mean_output_errors():
    random = np.random.default_rng(0)
    w, solved = (random.standard_normal((1, 3, 5)).astype(np.float32) for _ in range(2))
    x = random.standard_normal((5, 30))
    hessian = 2 * (x @ x.T)[None] / 30
    np.testing.assert_allclose(layer_loss(w, solved, hessian), ((w[0] @ x - solved[0] @ x) ** 2).sum() / 30, rtol=1e-6)
    np.testing.assert_allclose(output_energy(w, hessian), ((w[0] @ x) ** 2).sum() / 30, rtol=1e-6)


def test_auto_takes_float64_where_float32_gets_the_loss_wrong(monkeypatch):
    weights, hessian = layer(rows=8, columns=48, decay=1.5)
    damped, level = damp(hessian), parse_level("int4")
    for module in ("solve", "rounded"):
        monkeypatch.setattr(
            sys.modules[f"onnx_obc.solver.{module}"], "ROUNDING", 0.0
        )  # then no prediction is good enough
    twice = solve(weights, damped, level)
    exact = solve(weights, damped, level, Method(precision="float64"))
    assert np.array_equal(twice.codes, exact.codes)
    assert twice.loss == exact.loss != solve(weights, damped, level, Method(precision="float32")).loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_refined_solutions_are_never_worse_and_hold_what_solutions_hold(level, shape):
    weights, hessian = layer(**SHAPES[shape])
    damped = damp(hessian)
    greedy = solve(weights, damped, parse_level(level))
    refined = solve(weights, damped, parse_level(level), Method(refine=2))
    check(weights, damped, refined)
    assert greedy.loss_greedy is None and refined.loss_greedy is not None
    assert refined.loss <= refined.loss_greedy * (1 + 1e-6)
    np.testing.assert_allclose(refined.loss_greedy, greedy.loss, rtol=1e-4, atol=1e-12)
    before, after = (row_losses(weights, x.weights, damped.hessian) for x in (greedy, refined))
    assert (after <= before * (1 + 1e-4) + 1e-12).all()
    if refined.mask is not None:
        assert refined.mask.sum() == greedy.mask.sum()
