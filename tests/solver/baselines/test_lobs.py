from __future__ import annotations

import numpy as np
import pytest
from problems import check_pattern, layer

from onnx_obc.core.level import NM, Block, Level, Unstructured
from onnx_obc.solver import Method, damp, layer_loss, solve
from onnx_obc.solver.baselines.lobs import lobs_scores, prune_lobs


@pytest.mark.parametrize("seed", range(5))
def test_its_first_step_is_the_greedys(seed):
    """One weight of a layer gone: the same one, with the same compensation, and the loss that its score says."""
    weights, hessian = layer(rows=1, columns=20, seed=seed)
    damped = damp(hessian)
    sparsity = Unstructured(1 / 20)
    pruned, mask = prune_lobs(weights, damped.inverse, sparsity)
    exact = solve(weights, damped, Level(sparsity))
    assert (mask == exact.mask).all()
    assert np.allclose(pruned, exact.weights, rtol=1e-5, atol=1e-6)
    assert layer_loss(weights, pruned, damped.hessian) == pytest.approx(
        lobs_scores(weights, damped.inverse).min(), rel=1e-4
    )


def test_the_first_block_is_the_greedys():
    weights, hessian = layer(rows=1, columns=20)
    damped = damp(hessian)
    sparsity = Block(4, 1 / 5)
    pruned, mask = prune_lobs(weights, damped.inverse, sparsity)
    exact = solve(weights, damped, Level(sparsity))
    assert (mask == exact.mask).all()
    assert np.allclose(pruned, exact.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparsity", [Unstructured(0.6), NM(2, 4), Block(4, 0.5)], ids=str)
def test_it_holds_the_pattern_and_loses_more_than_the_greedy(sparsity):
    weights, hessian = layer(groups=2, rows=6, columns=22)
    damped = damp(hessian)
    pruned, mask = prune_lobs(weights, damped.inverse, sparsity)
    check_pattern(mask, sparsity)
    assert (pruned[~mask] == 0).all() and pruned.dtype == np.float32
    exact = solve(weights, damped, Level(sparsity), Method(refine="auto"))
    assert layer_loss(weights, pruned, damped.hessian) > exact.loss


def test_of_independent_inputs_it_is_magnitude():
    """Where the Hessian is a multiple of the identity nothing can be compensated."""
    weights, _ = layer(rows=3, columns=16)
    pruned, mask = prune_lobs(weights, np.eye(16)[None], Unstructured(0.5))
    assert (pruned[mask] == weights[mask]).all()
    assert np.abs(weights[~mask]).max() <= np.abs(weights[mask]).min()
