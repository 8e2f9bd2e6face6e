from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from instances import least_rounding, rounding
from problems import layer

from onnx_obc.study.exact import problem as problems
from onnx_obc.study.exact.descent import box_minimum, descend
from onnx_obc.study.exact.integers import solve_integers
from onnx_obc.study.exact.minorant import minorants
from onnx_obc.study.exact.problem import Limit, Rounding, in_steps

PAST = Limit(deadline=0.0)


def real(columns=36, bits=3, seed=0, damping=0.01):
    weights, hessian = layer(1, 1, columns, samples=300, seed=seed)
    hessian = hessian[0] + damping * hessian[0].diagonal().mean() * np.eye(columns)
    weight = weights[0, 0].astype(float)
    return Rounding(weight, hessian, np.abs(weight).max() / 2 ** (bits - 1), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def exactness(problem):
    """What rounding may change of a loss."""
    delta = np.abs(problem.weight) + np.abs(np.asarray(problem.scale) * np.asarray(problem.high))
    return 1e-13 * float(delta @ np.abs(problem.hessian) @ delta)


@pytest.mark.parametrize("part", range(5))
def test_equals_brute_force(part):
    """On 500 problems: singular Hessians, dead and equal columns, ties, weights far outside, fixed codes."""
    for seed in range(100 * part, 100 * part + 100):
        problem = rounding(seed)
        found, best = solve_integers(problem), least_rounding(problem)
        assert found.proven and found.bound == found.loss == problem.loss(found.codes)
        assert abs(found.loss - best) <= 1e-9 * best + exactness(problem), seed
        assert (found.codes >= problem.low).all() and (found.codes <= problem.high).all()
        assert found.codes.dtype == np.int32


@pytest.mark.parametrize("limit", [PAST, Limit(nodes=1), Limit(nodes=3), Limit(nodes=10)])
def test_a_search_that_is_ended_has_a_bound_all_the_same(limit):
    ended = 0
    for seed in range(0, 500, 4):
        problem = rounding(seed)
        found, best = solve_integers(problem, limit=limit), least_rounding(problem)
        assert 0 <= found.bound <= best * (1 + 1e-9) + exactness(problem), seed
        assert found.loss >= best * (1 - 1e-9) - exactness(problem)
        assert found.nodes <= (limit.nodes or 0)
        ended += not found.proven
    assert ended > 10


def test_it_looks_at_the_clock_between_slices_and_goes_on(monkeypatch):
    problem, whole = real(bits=2), solve_integers(real(bits=2))
    assert whole.proven and whole.nodes > 200
    monkeypatch.setattr(problems, "_SLICE", 50)
    sliced = solve_integers(problem)
    assert (sliced.codes == whole.codes).all() and sliced.nodes == whole.nodes and sliced.proven
    ticks = count()
    monkeypatch.setattr(problems.time, "monotonic", lambda: next(ticks))
    found = solve_integers(problem, limit=Limit(deadline=3))
    assert not found.proven and found.nodes == 150 and 0 < found.bound < whole.loss <= found.loss


def test_it_can_be_interrupted(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(problems.time, "monotonic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        solve_integers(real(), limit=Limit(deadline=1e9))


def test_the_unit_of_the_weights_does_not_matter():
    for seed in range(60):
        problem = rounding(seed)
        small = replace(problem, weight=1e-4 * problem.weight, scale=1e-4 * np.asarray(problem.scale))
        found, other = solve_integers(problem), solve_integers(small)
        assert other.loss == pytest.approx(1e-8 * found.loss, rel=1e-9, abs=1e-8 * exactness(problem))
    for bits in (2, 3, 4, 8):
        problem = real(bits=bits)
        small = replace(problem, weight=1e-4 * problem.weight, scale=1e-4 * problem.scale)
        assert (solve_integers(problem).codes == solve_integers(small).codes).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_chunk_of_a_layer_is_proven_optimal(bits):
    for seed in range(3):
        problem = real(bits=bits, seed=seed)
        found = solve_integers(problem)
        lattice = in_steps(problem)
        nearest = np.clip(np.rint(lattice.target), lattice.low, lattice.high)
        assert found.proven
        assert (
            found.loss <= problem.loss(lattice.codes(descend(lattice, nearest))) <= problem.loss(lattice.codes(nearest))
        )


def test_a_start_is_taken_where_it_is_better():
    problem = real()
    best = solve_integers(problem)
    assert solve_integers(problem, best.codes, PAST).loss == best.loss
    assert solve_integers(problem, best.codes).nodes <= best.nodes
    anything = np.random.default_rng(0).integers(-99, 99, 36)
    assert solve_integers(problem, anything).loss == best.loss


def test_zero_points_and_scales_of_their_own():
    problem = real()
    moved = replace(problem, low=0, high=7, zero_point=4)
    assert (solve_integers(moved).codes == solve_integers(problem).codes + 4).all()
    spread = replace(problem, scale=np.full(36, problem.scale), low=np.full(36, -4), zero_point=np.zeros(36, int))
    assert (solve_integers(spread).codes == solve_integers(problem).codes).all()


def test_dead_columns_are_free():
    problem = real(columns=12)
    hessian = problem.hessian.copy()
    hessian[[2, 7]] = hessian[:, [2, 7]] = 0
    found = solve_integers(replace(problem, hessian=hessian))
    kept = np.setdiff1d(np.arange(12), [2, 7])
    alone = replace(problem, weight=problem.weight[kept], hessian=problem.hessian[np.ix_(kept, kept)])
    assert found.proven and found.loss == pytest.approx(solve_integers(alone).loss, rel=1e-12)


def test_the_box_minimum_is_one():
    for seed in range(100):
        lattice = in_steps(rounding(seed))
        x = box_minimum(lattice)
        pull = lattice.hessian @ (x - lattice.target)
        assert ((x >= lattice.low) & (x <= lattice.high)).all()
        away = np.where(x > lattice.low, np.maximum(pull, 0), 0) + np.where(x < lattice.high, np.maximum(-pull, 0), 0)
        assert away.max() <= 1e-12 * (1 + np.abs(lattice.target).max()), seed


def test_minorants_lie_below():
    for seed in range(10):
        hessian = real(20, seed=seed).hessian
        found = minorants(hessian, 0, float(hessian.diagonal().mean()))
        assert (found >= 0).all()
        for k in range(20):
            assert (found[k, :k] == 0).all() and found[k].sum() > 0
            assert np.linalg.eigvalsh(hessian[k:, k:] - np.diag(found[k, k:]))[0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros(3)}, "of shape"),
        ({"weight": np.full(4, np.nan)}, "finite"),
        ({"hessian": np.full((4, 4), np.inf)}, "finite"),
        ({"hessian": np.triu(np.ones((4, 4)))}, "symmetric"),
        ({"hessian": np.diag([1.0, 1.0, 1.0, -1.0])}, "semidefinite"),
        ({"hessian": np.eye(4)[::-1].copy()}, "semidefinite"),
        ({"scale": 0.0}, "positive"),
        ({"scale": np.array([1.0, 1.0, np.nan, 1.0])}, "positive"),
        ({"low": 3}, "at most"),
        ({"low": 0.5}, "whole"),
    ],
)
def test_what_it_refuses(change, message):
    problem = Rounding(np.zeros(4), np.eye(4), 1.0, -2, 1)
    with pytest.raises(ValueError, match=message):
        solve_integers(replace(problem, **change))
