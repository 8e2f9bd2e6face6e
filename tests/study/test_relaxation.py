from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from instances import KINDS, least_rounding, rounding
from problems import layer

from onnx_obc.core.errors import RecipeError
from onnx_obc.study.exact import relaxation
from onnx_obc.study.exact.integers import solve_integers
from onnx_obc.study.exact.problem import Rounding, in_steps
from onnx_obc.study.exact.relaxation import relax_integers

pytest.importorskip("clarabel")


def real(columns=16, bits=3, seed=0, clip=1.0, damping=0.01):
    weights, hessian = layer(1, 1, columns, samples=300, seed=seed)
    hessian = hessian[0] + damping * hessian[0].diagonal().mean() * np.eye(columns)
    weight = weights[0, 0].astype(float)
    scale = clip * np.abs(weight).max() / 2 ** (bits - 1)
    return Rounding(weight, hessian, scale, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def slack(problem):
    """What rounding may change of a loss."""
    delta = np.abs(problem.weight) + np.abs(np.asarray(problem.scale) * np.asarray(problem.high))
    return 1e-12 * float(delta @ np.abs(problem.hessian) @ delta)


@pytest.mark.slow
def test_bound_optimum_heuristic():
    """On 300 problems, the degenerate ones among them."""
    shares = []
    for seed in range(300):
        problem = rounding(seed)
        found, best = relax_integers(problem), least_rounding(problem)
        assert 0 <= found.bound <= best * (1 + 1e-12) + slack(problem), seed
        assert best <= found.loss * (1 + 1e-9) + slack(problem), seed
        assert found.loss == problem.loss(found.codes)
        assert (found.codes >= problem.low).all() and (found.codes <= problem.high).all()
        if KINDS[seed % len(KINDS)] == "plain" and len(problem.weight) > 1 and best > 0:
            shares.append(found.bound / best)
    assert np.mean(shares) > 0.5


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_primal_is_dual(bits):
    for seed in range(3):
        for damping in (0.01, 1e-4):
            found = relax_integers(real(bits=bits, seed=seed, damping=damping))
            assert found.bound == pytest.approx(found.primal, rel=1e-6)
            assert found.bound <= found.primal * (1 + 1e-9)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_chunk_of_a_layer(bits):
    problem = real(36, bits)
    found, best = relax_integers(problem), solve_integers(problem)
    assert best.proven and 0.3 * best.loss < found.bound <= best.loss <= found.loss < 1.5 * best.loss
    assert found.bound == pytest.approx(found.primal, rel=1e-6)


def test_the_primal_problem_has_the_same_minimum():
    """As it is written down in the paper, by another modelling language."""
    cvxpy = pytest.importorskip("cvxpy")
    for seed, clip, bits in ((0, 1.0, 2), (1, 0.4, 2), (2, 0.6, 3), (3, 1.0, 8)):
        problem = real(9, bits, seed, clip)
        p, a = in_steps(problem).hessian, in_steps(problem).target
        base = np.clip(np.floor(a), problem.low, problem.high - 1)
        u, low, high = a - base, problem.low - base, problem.high - base
        whole = cvxpy.Variable((10, 10), symmetric=True)
        y, square = whole[:9, 9], cvxpy.diag(whole)[:9]
        rules = [whole >> 0, whole[9, 9] == 1, square >= y, square <= cvxpy.multiply(low + high, y) - low * high]
        loss = cvxpy.trace(p @ whole[:9, :9]) - 2 * (p @ u) @ y + u @ p @ u
        least = cvxpy.Problem(cvxpy.Minimize(loss), rules).solve(solver="CLARABEL")
        assert relax_integers(problem).primal == pytest.approx(in_steps(problem).unit * least, rel=1e-5)


def certified(problem, up, down):
    """The bound that multipliers prove, before the loss of a solution is put to it."""
    lattice = in_steps(problem)
    return lattice.unit * relaxation._certify(relaxation._Offset.of(lattice), up, down)


@pytest.mark.slow
def test_holds_for_any_multipliers():
    """The proof needs nothing of the solver, so whatever it leaves open can only loosen the bound."""
    random, raised = np.random.default_rng(0), 0
    for seed in range(200):
        problem = rounding(seed)
        free = int(np.sum(np.broadcast_to(problem.high, len(problem.weight)) > problem.low))
        best = least_rounding(problem)
        for size in (0.0, 1e-6, 0.1, 1.0, 100.0) if free else ():
            found = certified(problem, size * random.standard_normal(free), size * random.standard_normal(free))
            assert 0 <= found <= best * (1 + 1e-12) + slack(problem), seed
            raised += found > 0.01 * best > 0
    assert raised > 20


def test_holds_where_its_minimum_is_missed(monkeypatch):
    """Rounding may leave the minimum of the Lagrangian somewhere near; the bound is below it all the same."""
    problem = real(bits=2)
    offset = relaxation._Offset.of(in_steps(problem))
    up, down, _ = relaxation._solve(offset, 1.0)
    exact, solve = certified(problem, up, down), np.linalg.solve
    for size in (1e-9, 1e-6, 1e-3, 1.0):
        monkeypatch.setattr(np.linalg, "solve", lambda a, b, size=size: solve(a, b) + size * np.cos(np.arange(len(b))))
        assert certified(problem, up, down) <= exact


def test_a_solver_that_gives_up_costs_the_bound_alone(monkeypatch):
    class Lost:
        def __init__(self, *_):
            pass

        def solve(self):
            self.x, self.z = np.full(16 + 16 + 1, np.nan), np.full(2 * 16 + 17 * 18 // 2, np.nan)
            return self

    monkeypatch.setattr("clarabel.DefaultSolver", Lost)
    found = relax_integers(real(16))
    assert found.bound == 0 < found.loss


def test_the_box_raises_it():
    problem = real(bits=2, clip=0.4)
    wide = replace(problem, low=-1000, high=1000)
    assert relax_integers(problem).bound > 1.5 * relax_integers(wide).bound > 0


def test_the_unit_of_the_weights_does_not_matter():
    for bits in (2, 4, 8):
        problem = real(bits=bits)
        found = relax_integers(problem)
        small = relax_integers(replace(problem, weight=1e-4 * problem.weight, scale=1e-4 * problem.scale))
        assert small.bound == pytest.approx(1e-8 * found.bound, rel=1e-6)
        assert small.loss == pytest.approx(1e-8 * found.loss, rel=1e-6)


def test_it_repeats_itself():
    problem = real(bits=2)
    one, other = relax_integers(problem, seed=3), relax_integers(problem, seed=3)
    assert one.bound == other.bound and one.primal == other.primal and (one.codes == other.codes).all()


def test_weights_on_the_grid_and_columns_without_a_choice():
    problem = real(8)
    on = replace(problem, weight=problem.values(np.arange(8) - 4))
    found = relax_integers(on)
    assert found.bound == found.primal == found.loss == 0 and (found.codes == np.arange(8) - 4).all()
    fixed = np.array([1, -1, 0, 2, 3, 1, 0, 1])
    only = relax_integers(replace(problem, low=fixed, high=fixed))
    assert only.bound == only.loss == problem.loss(fixed) and (only.codes == fixed).all()


def test_without_the_solver(monkeypatch):
    monkeypatch.setitem(sys.modules, "clarabel", None)
    with pytest.raises(RecipeError, match=r"pip install 'onnx-obc\[study\]'"):
        relax_integers(real(4))
