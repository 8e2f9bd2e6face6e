from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import check_pattern, layer

from onnx_obc.core.level import NM, Block, Unstructured
from onnx_obc.solver.exact.prune import prune, solve_kept
from onnx_obc.solver.linalg.inverse import damp
from onnx_obc.solver.linalg.loss import layer_loss


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 4, 9, 35]), st.data())
def test_patterns_hold_and_the_loss_is_the_measured_one(seed, groups, rows, columns, data):
    weights, hessian = layer(groups, rows, columns, seed=seed)
    damped = damp(hessian)
    sparsity = data.draw(
        st.one_of(
            st.builds(Unstructured, st.floats(0.01, 0.99)),
            st.builds(Block, st.integers(2, 6), st.floats(0.01, 0.99)),
            st.sampled_from([NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2)]),
        )
    )
    solved, mask, loss = prune(weights, damped, sparsity)
    assert solved.dtype == np.float32
    assert (solved[~mask] == 0).all() and np.count_nonzero(solved) == mask.sum()
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian), rtol=1e-4)
    check_pattern(mask, sparsity)


def test_kept_weights_are_the_least_squares_optimum():
    random = np.random.default_rng(1)
    weights = random.standard_normal((1, 3, 6)).astype(np.float32)
    x = random.standard_normal((6, 40))
    mask = random.random((1, 3, 6)) < 0.5
    solved = solve_kept(weights, mask, 2 * (x @ x.T)[None] / 40)
    for r in range(3):
        kept = np.flatnonzero(mask[0, r])
        wanted, *_ = np.linalg.lstsq(x[kept].T, weights[0, r] @ x, rcond=None)
        np.testing.assert_allclose(solved[0, r, kept], wanted, rtol=1e-5)
        assert (solved[0, r, ~mask[0, r]] == 0).all()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6])
def test_the_kept_weights_are_the_same_from_the_inverse(share):
    weights, hessian = layer(groups=2, rows=6, columns=50, samples=200)
    damped = damp(hessian)
    mask = np.random.default_rng(0).random(weights.shape) > share
    through_kept = solve_kept(weights, mask, damped.hessian)
    through_lost = solve_kept(weights, mask, damped.hessian, damped.inverse)
    np.testing.assert_allclose(through_lost, through_kept, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(through_lost, weights * mask)


def test_the_first_pivot_is_the_best_single_weight_and_greedy_is_near_the_best_mask():
    weights, hessian = layer(rows=1, columns=8, samples=30, decay=0.5, seed=5)
    damped = damp(hessian)

    def best(count):
        masks = np.ones((0, 8), bool)
        for pruned in itertools.combinations(range(8), count):
            masks = np.vstack([masks, ~np.isin(np.arange(8), pruned)])
        solved = [solve_kept(weights, m[None, None], damped.hessian) for m in masks]
        return min(layer_loss(weights, s, damped.hessian) for s in solved)

    np.testing.assert_allclose(prune(weights, damped, Unstructured(1 / 8))[2], best(1), rtol=1e-5)
    greedy = prune(weights, damped, Unstructured(0.5))[2]
    assert best(4) * (1 - 1e-6) <= greedy < 1.5 * best(4)


@pytest.mark.parametrize("sparsity", [Unstructured(0.99), Block(4, 0.9)])
def test_everything_but_one_is_pruned(sparsity):
    weights, hessian = layer(rows=2 if isinstance(sparsity, Unstructured) else 1, columns=40)
    damped = damp(hessian)
    solved, mask, loss = prune(weights, damped, sparsity)
    assert mask.sum() == (1 if isinstance(sparsity, Unstructured) else 4)
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian), rtol=1e-4)


def test_all_pruned_where_the_fraction_rounds_to_all():
    weights, hessian = layer(rows=1, columns=1)
    solved, mask, loss = prune(weights, damped := damp(hessian), Unstructured(0.6))
    assert not mask.any() and not solved.any()
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian))


def test_zero_rows_cost_nothing_and_go_first():
    weights, hessian = layer(rows=4, columns=10)
    weights[0, 1] = 0
    _, mask, loss = prune(weights, damp(hessian), Unstructured(0.25))
    assert not mask[0, 1].any() and mask[0, [0, 2, 3]].all()
    assert loss == 0


def test_zero_hessian_prunes_by_magnitude():
    weights, hessian = layer(rows=3, columns=20)
    solved, mask, _ = prune(weights, damp(hessian * 0), Unstructured(0.5))
    size = np.abs(weights) / np.sqrt(np.linalg.norm(weights, axis=2, keepdims=True))  # as the cut compares rows
    assert size[~mask].max() < size[mask].min()
    assert (solved[mask] == weights[mask]).all()
