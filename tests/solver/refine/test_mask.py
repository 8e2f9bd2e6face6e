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
from onnx_obc.solver.refine.mask import refine_mask
from onnx_obc.solver.refine.pivot import correct, cost, move, transform


def row_losses(weights, solved, hessian):
    delta = weights.astype(np.float64) - solved
    return 0.5 * ((delta @ hessian) * delta).sum(axis=2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 4, 9, 35, 64]), st.data())
def test_no_row_is_worse_and_the_pattern_holds(seed, groups, rows, columns, data):
    weights, hessian = layer(groups, rows, columns, seed=seed)
    damped = damp(hessian * 10.0 ** (seed % 40 - 20))
    sparsity = data.draw(
        st.one_of(
            st.builds(Unstructured, st.floats(0.01, 0.99)),
            st.builds(Block, st.integers(2, 6), st.floats(0.01, 0.99)),
            st.sampled_from([NM(2, 4), NM(1, 4), NM(4, 8), NM(1, 2)]),
        )
    )
    start, before, _ = prune(weights, damped, sparsity)
    solved, mask, loss = refine_mask(weights, start, before, damped, sparsity, sweeps=2)
    assert solved.dtype == np.float32 and mask.dtype == np.bool_
    assert (solved[~mask] == 0).all()
    assert (mask.sum(axis=2) == before.sum(axis=2)).all()
    check_pattern(mask, sparsity)
    losses = [row_losses(weights, x, damped.hessian) for x in (start, solved)]
    assert (losses[1] <= losses[0]).all()
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian), rtol=1e-9)
    best = layer_loss(weights, solve_kept(weights, mask, damped.hessian), damped.hessian)
    np.testing.assert_allclose(loss, best, rtol=1e-6)


@pytest.mark.parametrize("sparsity", [NM(2, 4), NM(4, 8), Unstructured(0.5), Block(4, 0.5)])
def test_below_the_greedy(sparsity):
    weights, hessian = layer(rows=16, columns=96, samples=300, seed=3)
    damped = damp(hessian)
    solved, mask, greedy = prune(weights, damped, sparsity)
    loss = refine_mask(weights, solved, mask, damped, sparsity)[2]
    assert loss < (0.95 if isinstance(sparsity, NM) else 0.998) * greedy


def exchanges(mask, sparsity):
    """Every mask that one exchange leads to, of a row (columns,)."""
    for p, k in itertools.product(range(mask.size), repeat=2):
        if p // sparsity.m == k // sparsity.m and mask[k] and not mask[p]:
            other = mask.copy()
            other[p], other[k] = True, False
            yield other


def transformed(seed):
    """A row whose first half is kept, and what the kernels take."""
    weights, hessian = layer(rows=1, columns=18, samples=60, seed=seed)
    kept = np.arange(18) < 9
    own = damp(hessian).hessian[0]
    start = solve_kept(weights, kept[None, None], own[None])[0, 0].astype(np.float64)
    b = np.where(kept, start, own @ (weights[0, 0] - start))
    return weights, own, kept, transform(own, 9), b


@pytest.mark.parametrize("moves", [(), (12, 3), (9, 0, 17, 8), (3, 3)])
def test_the_cost_of_any_move_is_that_of_solving_anew(moves):
    weights, hessian, kept, tableau, b = transformed(4)
    moved, across = np.empty((len(moves), 18)), np.empty((18, len(moves)))
    sign, diagonal = np.array([1.0 if not kept[m] else -1.0 for m in moves]), tableau.diagonal().copy()
    if moves == (3, 3):
        sign[1] = 1.0  # out, and back in
    for t, q in enumerate(moves):
        move(tableau, moved, across, sign[: t + 1], diagonal, b, q)
        kept[q] = sign[t] > 0

    def loss(mask):
        return layer_loss(weights, solve_kept(weights, mask[None, None], hessian[None]), hessian[None])

    correct(hessian, tableau, moved, sign, diagonal, weights[0, 0].astype(np.float64), b, kept)
    np.testing.assert_allclose(b[kept], solve_kept(weights, kept[None, None], hessian[None])[0, 0, kept], rtol=1e-5)
    enterers, leavers = np.flatnonzero(~kept), np.flatnonzero(kept)
    chosen = [enterers[:1], leavers[:1], np.r_[enterers[2:3], leavers[1:2]], np.r_[enterers[:3], leavers[2:5]]]
    for columns in chosen:
        other = kept.copy()
        other[columns] ^= True
        found = cost(tableau, across, sign, diagonal, b, columns, np.empty((7, 6)))
        np.testing.assert_allclose(found, loss(other) - loss(kept), rtol=1e-4)


def test_at_the_end_no_exchange_within_a_group_gains():
    weights, hessian = layer(rows=4, columns=64, samples=200, seed=4)
    damped = damp(hessian)
    solved, mask, _ = refine_mask(weights, *prune(weights, damped, NM(2, 4))[:2], damped, NM(2, 4), sweeps=100)
    losses = row_losses(weights, solved, damped.hessian)
    for r in range(4):
        masks = np.array(list(exchanges(mask[0, r], NM(2, 4))))
        every = np.broadcast_to(weights[:, r], (1, *masks.shape)).copy()
        others = row_losses(every, solve_kept(every, masks[None], damped.hessian), damped.hessian)
        assert others.min() > losses[0, r] * (1 - 2e-4)


def test_the_result_is_that_of_one_thread():
    weights, hessian = layer(groups=2, rows=7, columns=52)
    damped = damp(hessian)
    start, before, _ = prune(weights, damped, NM(2, 4))
    one, mask, _ = refine_mask(weights, start, before, damped, NM(2, 4), threads=1)
    three, other, _ = refine_mask(weights, start, before, damped, NM(2, 4), threads=3)
    assert (one == three).all() and (mask == other).all() and (mask != before).any()


def test_nothing_to_exchange():
    weights, hessian = layer(rows=3, columns=20)
    damped = damp(hessian)
    weights[0, 1] = 0
    mask = np.ones(weights.shape, bool)
    mask[0, 2] = False
    solved = np.where(mask, weights, 0)
    refined, found, loss = refine_mask(weights, solved, mask, damped, Unstructured(0.5))
    assert (refined == solved).all() and (found == mask).all()
    np.testing.assert_allclose(loss, layer_loss(weights, solved, damped.hessian))


def test_a_hessian_that_asks_for_float64():
    weights, hessian = layer(rows=4, columns=160, samples=40, decay=2.0, seed=6)
    damped = damp(hessian, 1e-5)
    assert damped.scaled("auto")[0].dtype == np.float64
    start, before, greedy = prune(weights, damped, NM(2, 4))
    _, mask, loss = refine_mask(weights, start, before, damped, NM(2, 4))
    assert loss < 0.98 * greedy
    best = layer_loss(weights, solve_kept(weights, mask, damped.hessian), damped.hessian)
    np.testing.assert_allclose(loss, best, rtol=1e-6)
