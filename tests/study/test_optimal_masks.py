from __future__ import annotations

from itertools import count, product

import numpy as np
import pytest
from instances import least_mask, row, subsets
from problems import layer

from onnx_obc.core.level import NM, Block, Level, Unstructured
from onnx_obc.solver import damp, solve
from onnx_obc.solver.linalg.inverse import invert
from onnx_obc.study.exact import perspective
from onnx_obc.study.exact import problem as problems
from onnx_obc.study.exact.masks import solve_mask
from onnx_obc.study.exact.problem import Limit

PAST = Limit(deadline=0.0)


def real(columns=36, seed=0, damping=0.01):
    weights, hessian = layer(1, 1, columns, samples=300, seed=seed)
    damped = damp(hessian, damping)
    return weights[0, 0].astype(float), damped.hessian[0], damped, weights


def unstructured(seed):
    """A row, how many go, the least loss."""
    weight, hessian = row(seed)
    n = len(weight)
    pruned = int(np.random.default_rng(seed).integers(0, n + 1))
    return weight, hessian, pruned, least_mask(weight, hessian, subsets(n, pruned))


def close(found, best, weight, hessian):
    return abs(found - best) <= 1e-8 * best + 1e-13 * float(np.abs(weight) @ np.abs(hessian) @ np.abs(weight))


@pytest.mark.parametrize("part", range(4))
def test_equals_brute_force(part):
    """On 400 rows: dead and equal columns, few samples, zero weights, ties."""
    for seed in range(100 * part, 100 * part + 100):
        weight, hessian, pruned, best = unstructured(seed)
        found = solve_mask(weight, hessian, Unstructured(pruned / len(weight)))
        assert found.proven and found.bound == found.loss
        assert close(found.loss, best, weight, hessian), seed
        assert (~found.mask).sum() == pruned and (found.weights[~found.mask] == 0).all()
        delta = weight - found.weights
        assert found.loss == 0.5 * float(delta @ hessian @ delta)


@pytest.mark.parametrize("sparsity", [NM(2, 4), NM(1, 3), Block(2, 0.5), Block(3, 0.34)])
def test_groups_and_blocks_equal_brute_force(sparsity):
    for seed in range(25):
        weight, hessian = row(seed, columns=12)
        if isinstance(sparsity, NM):
            groups = [start + subsets(sparsity.m, sparsity.m - sparsity.n) for start in range(0, 12, sparsity.m)]
            gone = np.array([np.concatenate(parts) for parts in product(*groups)])
        else:
            blocks = 12 // sparsity.size
            units = subsets(blocks, round(sparsity.sparsity * blocks))
            gone = (units[:, :, None] * sparsity.size + np.arange(sparsity.size)).reshape(len(units), -1)
        found = solve_mask(weight, hessian, sparsity)
        assert found.proven and close(found.loss, least_mask(weight, hessian, gone), weight, hessian), seed
        assert (np.sort(np.flatnonzero(~found.mask)) == np.sort(gone, axis=1)).all(axis=1).any()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [PAST, Limit(nodes=1), Limit(nodes=5), Limit(nodes=30)])
def test_a_search_that_is_ended_has_a_bound_all_the_same(limit):
    ended = 0
    for seed in range(0, 400, 3):
        weight, hessian, pruned, best = unstructured(seed)
        found = solve_mask(weight, hessian, Unstructured(pruned / len(weight)), limit=limit)
        assert 0 <= found.bound <= found.loss
        assert found.bound <= best or close(found.bound, best, weight, hessian), seed
        assert found.loss >= best or close(found.loss, best, weight, hessian), seed
        assert found.nodes <= (limit.nodes or 0)
        ended += not found.proven
    assert ended > 20


@pytest.mark.parametrize("sparsity", [NM(2, 4), Block(4, 0.5), Unstructured(0.75)])
def test_it_looks_at_the_clock_between_slices_and_goes_on(sparsity, monkeypatch):
    weight, hessian, _, _ = real()
    whole = solve_mask(weight, hessian, sparsity)
    assert whole.proven
    monkeypatch.setattr(problems, "_SLICE", 5)
    sliced = solve_mask(weight, hessian, sparsity)
    assert (sliced.mask == whole.mask).all() and sliced.nodes == whole.nodes and sliced.proven
    ticks = count()
    monkeypatch.setattr(problems.time, "monotonic", lambda: next(ticks))
    found = solve_mask(weight, hessian, sparsity, limit=Limit(deadline=3))
    assert not found.proven and found.nodes == 15 and 0 < found.bound < whole.loss <= found.loss


def at_the_root(weight, hessian, pruned, steps, splitting=None):
    """The bound before the loss of a solution is put to it."""
    inverse, states = invert(hessian), np.zeros(len(weight), np.int8)
    begin = (weight if splitting is None else splitting).copy()
    share = perspective.share_of(hessian, inverse)
    known = (inverse, weight, begin, states, np.array([pruned]), share, 1, np.inf, steps)
    return 0.5 * perspective.least_added(*known)[0]


def test_what_a_node_adds_at_least():
    """Against the optimum, before the loss of a solution is put to it; of a single column it is the optimum."""
    for seed in range(200):
        weight, hessian, pruned, best = unstructured(seed)
        for steps in (0, 1, 50):
            found = at_the_root(weight, hessian, pruned, steps)
            assert found <= best or close(found, best, weight, hessian), seed
            assert pruned != 1 or close(found, best, weight, hessian)


def test_holds_for_any_expansion_point():
    """The proof needs nothing of v, so a bad splitting can only loosen the bound."""
    random = np.random.default_rng(0)
    for seed in range(200):
        weight, hessian, pruned, best = unstructured(seed)
        for size in (1e-3, 0.1, 1.0, 100.0):
            anywhere = size * np.abs(weight).max() * random.standard_normal(len(weight))
            found = at_the_root(weight, hessian, pruned, 1, anywhere)
            assert found <= best or close(found, best, weight, hessian), seed


def test_the_relaxation_is_a_good_part_of_the_optimum():
    weight, hessian, _, _ = real()
    for pruned in (9, 18, 27):
        best = solve_mask(weight, hessian, Unstructured(pruned / 36)).loss
        assert at_the_root(weight, hessian, pruned, 200) > 0.5 * best > 0.5 * at_the_root(weight, hessian, pruned, 0)


def test_it_can_be_interrupted(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(problems.time, "monotonic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        solve_mask(*real()[:2], Unstructured(0.5), limit=Limit(deadline=1e9))


@pytest.mark.parametrize("sparsity", [Unstructured(0.5), Unstructured(0.875), NM(2, 4), Block(4, 0.5)])
def test_a_chunk_of_a_layer_is_proven_optimal(sparsity):
    for seed in range(3):
        weight, hessian, damped, weights = real(seed=seed)
        found = solve_mask(weight, hessian, sparsity)
        assert found.proven and 0 < found.loss <= solve(weights, damped, Level(sparsity)).loss * (1 + 1e-4)


def test_the_unit_of_the_weights_does_not_matter():
    weight, hessian, _, _ = real()
    for sparsity in (Unstructured(0.6), NM(2, 4)):
        found, other = solve_mask(weight, hessian, sparsity), solve_mask(1e-4 * weight, hessian, sparsity)
        assert (found.mask == other.mask).all() and other.loss == pytest.approx(1e-8 * found.loss, rel=1e-9)
        np.testing.assert_allclose(other.weights, 1e-4 * found.weights, rtol=1e-9)


def test_a_start_is_taken_where_it_is_better():
    weight, hessian, _, _ = real()
    best = solve_mask(weight, hessian, Unstructured(0.75))
    assert solve_mask(weight, hessian, Unstructured(0.75), best.mask, PAST).loss == best.loss
    worst = np.zeros(36, bool)
    worst[:9] = True
    assert solve_mask(weight, hessian, Unstructured(0.75), worst).loss == best.loss


def test_nothing_and_everything():
    weight, hessian, _, _ = real()
    assert solve_mask(weight, hessian, Unstructured(0.0)).loss == 0
    gone = solve_mask(weight, hessian, Unstructured(1.0))
    assert gone.proven and not gone.mask.any() and gone.loss == 0.5 * float(weight @ hessian @ weight)


def test_what_it_refuses():
    weight, hessian, _, _ = real()
    for bad, message in ((hessian[:5], "of shape"), (hessian * np.nan, "finite"), (np.tril(hessian), "symmetric")):
        with pytest.raises(ValueError, match=message):
            solve_mask(weight, bad, Unstructured(0.5))
    for singular in (np.zeros((36, 36)), np.ones((36, 36)), -hessian):
        with pytest.raises(np.linalg.LinAlgError):
            solve_mask(weight, singular, Unstructured(0.5))
    for sparsity in (NM(2, 5), Block(8, 0.5)):
        with pytest.raises(ValueError, match="whole number"):
            solve_mask(weight, hessian, sparsity)
    for start in (np.arange(36) < 18, np.arange(36) % 4 < 3):
        with pytest.raises(ValueError, match="another pattern"):
            solve_mask(weight, hessian, NM(2, 4), start)
