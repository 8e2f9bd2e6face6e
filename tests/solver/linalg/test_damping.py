from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from onnx_obc.solver.linalg import damping as rule
from onnx_obc.solver.linalg.damping import CANDIDATES, CONSTANT, TOLERANCE, choose_damping, held_out_losses


def hessian(samples, columns=48, groups=1, decay=0.0, seed=0):
    """Of random inputs, always of the same distribution, whose spectrum falls as k^−decay."""
    mix, _ = np.linalg.qr(np.random.default_rng(9).standard_normal((columns, columns)))
    spectrum = np.arange(1, columns + 1) ** -decay
    x = np.random.default_rng(seed).standard_normal((groups, samples, columns)) * spectrum @ mix
    return 2 * x.transpose(0, 2, 1) @ x / samples


def test_many_samples_of_well_conditioned_inputs_take_the_least() -> None:
    assert choose_damping(hessian(20_000), hessian(5000, seed=1)) == CANDIDATES[0]


def test_fewer_samples_take_more() -> None:
    held = hessian(20_000, decay=0.5, seed=1)
    chosen = [choose_damping(hessian(samples, decay=0.5), held) for samples in (30, 60, 150, 20_000)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] >= 0.1 and chosen[-1] == CANDIDATES[0]


def test_samples_that_fit_themselves_never_ask_for_more() -> None:
    few = hessian(30, decay=0.5)
    assert choose_damping(few, few) == CANDIDATES[0] < choose_damping(few, hessian(30, decay=0.5, seed=1))


def test_the_choice_is_the_least_within_the_tolerance() -> None:
    fitted, held = hessian(400, decay=0.5), hessian(1000, decay=0.5, seed=1)
    losses = held_out_losses(fitted, held)
    chosen = CANDIDATES.index(choose_damping(fitted, held))
    assert 0 < chosen < len(CANDIDATES) - 1
    assert losses[chosen] <= (1 + TOLERANCE) * losses.min() < losses[:chosen].min()


def test_losses_are_those_of_compensated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "_DRAWS", 1)
    fitted, held = hessian(40, columns=9, groups=3), hessian(50, columns=9, groups=3, seed=1)
    random = np.random.default_rng(0)
    order = random.permutation(9)
    gone, kept = np.sort(order[:4]), np.sort(order[4:])
    rows = random.standard_normal((32, 4))
    expected = np.zeros(len(CANDIDATES))
    for h, judge in zip(fitted, held, strict=True):
        for i, damping in enumerate(CANDIDATES):
            damped = h + damping * h.trace() / 9 * np.eye(9)
            delta = np.zeros((32, 9))
            delta[:, gone] = rows
            delta[:, kept] = -rows @ damped[np.ix_(gone, kept)] @ np.linalg.inv(damped[np.ix_(kept, kept)])
            expected[i] += 0.5 * np.trace(delta @ judge @ delta.T)
    np.testing.assert_allclose(held_out_losses(fitted, held), expected, rtol=1e-10)


def test_nothing_to_judge_by_leaves_the_constant() -> None:
    full, zero = hessian(100), np.zeros((1, 48, 48))
    for fitted, held in ((full, zero), (zero, zero), (full[:, :1, :1], full[:, :1, :1])):
        assert choose_damping(fitted, held) == CONSTANT


def test_dead_inputs_and_groups_do_no_harm() -> None:
    fitted, held = hessian(100, groups=2), hessian(100, groups=2, seed=1)
    for h in (fitted, held):
        h[1] = 0
        h[0, 5] = h[0, :, 5] = 0
    assert np.isfinite(held_out_losses(fitted, held)).all() and choose_damping(fitted, held) in CANDIDATES


def test_threads_of_blas_change_no_choice() -> None:
    fitted, held = hessian(400, columns=300, decay=0.5), hessian(400, columns=300, decay=0.5, seed=1)
    choices = set()
    for threads in (1, 2):
        with threadpool_limits(threads):
            choices |= {choose_damping(fitted, held) for _ in range(2)}
    assert len(choices) == 1
