from __future__ import annotations

import numpy as np
import pytest
from problems import check_pattern, layer

from onnx_obc.core.level import NM, Block, Level, Unstructured
from onnx_obc.solver import damp, layer_loss, solve
from onnx_obc.solver.baselines.adaprune import adaprune, refit_by_gradient
from onnx_obc.solver.baselines.magnitude import magnitude_mask
from onnx_obc.solver.exact.prune import solve_kept

PATTERNS = [Unstructured(0.6), NM(2, 4), Block(4, 0.5)]


@pytest.mark.parametrize("sparsity", PATTERNS, ids=str)
def test_the_refit_is_least_squares(sparsity):
    """What is kept is the optimum for its mask: the outputs left over are orthogonal to the inputs that stay."""
    weights, hessian = layer(groups=2, rows=5, columns=24)
    damped = damp(hessian)
    pruned, mask = adaprune(weights, damped, sparsity)
    check_pattern(mask, sparsity)
    assert (pruned[~mask] == 0).all()
    gradient = (pruned - weights) @ damped.hessian
    assert np.abs(gradient[mask]).max() < 1e-5 * np.abs(gradient[~mask]).max()


@pytest.mark.parametrize("sparsity", PATTERNS, ids=str)
def test_gradient_steps_end_at_the_least_squares(sparsity):
    weights, hessian = layer(rows=5, columns=16, decay=0.3)
    damped = damp(hessian)
    mask = magnitude_mask(weights, sparsity)
    best = solve_kept(weights, mask, damped.hessian)
    least = layer_loss(weights, best, damped.hessian)
    losses = [
        layer_loss(weights, refit_by_gradient(weights, weights * mask, mask, damped, steps), damped.hessian)
        for steps in (0, 100, 3000)
    ]
    assert losses[0] > losses[1] > losses[2] >= least * (1 - 1e-5)
    assert losses[2] == pytest.approx(least, rel=1e-3)


def test_every_step_of_sparsity_starts_from_the_last():
    """Weights that a refit made small go next, so the mask is not that of the dense weights' magnitudes."""
    weights, hessian = layer(rows=8, columns=32, seed=3)
    damped = damp(hessian)
    pruned, mask = adaprune(weights, damped, Unstructured(0.7))
    at_once = magnitude_mask(weights, Unstructured(0.7))
    assert (mask != at_once).any()
    refitted = solve_kept(weights, at_once, damped.hessian)
    losses = [layer_loss(weights, found, damped.hessian) for found in (pruned, refitted, np.where(at_once, weights, 0))]
    assert losses == sorted(losses)
    assert solve(weights, damped, Level(Unstructured(0.7))).loss < losses[0]
