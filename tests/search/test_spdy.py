"""SPDY's search around the dynamic program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from allocations import Problem, random_problem, total
from small_graphs import Array

from onnx_obc.core.arrays import Float64
from onnx_obc.search.dynamic import choose
from onnx_obc.search.spdy import spdy_search


def solver(costs: Sequence[Float64], limit: float) -> Callable[[Sequence[Float64]], tuple[int, ...]]:
    return lambda losses: choose(losses, costs, limit)


def sparsity_problem(seed: int, layers: int, choices: int = 5) -> Problem:
    """Layers of like size that compete: losses grow with the square of what is pruned, half of all costs may stay."""
    rng = np.random.default_rng([seed, layers, choices])
    kept = np.linspace(1, 0.2, choices)  # (choices,)
    losses = [rng.uniform(0.5, 2) * (1 - kept) ** 2 for _ in range(layers)]
    costs = [rng.uniform(0.5, 2) * kept for _ in range(layers)]
    return losses, costs, sum(float(cost[0]) for cost in costs) / 2


@pytest.mark.slow
def test_spdy_finds_what_a_sum_hides() -> None:
    losses, costs, limit = random_problem(3, 12, 6)
    hidden = np.random.default_rng(7).uniform(0, 1, 12) ** 3  # how much each layer counts in truth

    def truth(picked: tuple[int, ...]) -> float:
        return float(sum(h * loss[i] for h, loss, i in zip(hidden, losses, picked, strict=True)))

    asked: list[tuple[int, ...]] = []

    def evaluate(picked: tuple[int, ...]) -> float:
        asked.append(picked)
        return truth(picked)

    plain = choose(losses, costs, limit)
    best = truth(choose([h * loss for h, loss in zip(hidden, losses, strict=True)], costs, limit))
    picked, loss = spdy_search(losses, solver(costs, limit), evaluate, random=50, patience=50)
    assert len(asked) == len(set(asked)) and asked[0] == plain
    assert loss == truth(picked) and total(costs, picked) <= limit
    assert best - 1e-12 <= loss < truth(plain)
    assert loss - best < 0.5 * (truth(plain) - best)
    assert (picked, loss) == spdy_search(losses, solver(costs, limit), evaluate, random=50, patience=50)


@pytest.mark.slow
def test_spdy_sees_what_layers_do_together() -> None:
    """Where a sum over layers misses what neighbours do to each other, against the best of all profiles.

    Coefficients cannot describe such a loss, so the best is not always reached: of what the plain dynamic program loses
    against it, two thirds are recovered on these problems, and 84 % on 40 of them.
    """
    every = np.array(list(product(range(5), repeat=7)))  # (5⁷, layers)
    missed, recovered = 0.0, 0.0
    for seed in range(12):
        losses, costs, limit = sparsity_problem(seed, 7)

        def truth(picked: Sequence[int] | Array, losses: list[Float64] = losses) -> Any:
            hurt = np.stack([loss[i] for loss, i in zip(losses, np.transpose(picked), strict=True)])  # (layers, …)
            return hurt.sum(0) + 5 * (hurt[:-1] * hurt[1:]).sum(0)

        spent = sum(cost[i] for cost, i in zip(costs, every.T, strict=True))  # (5⁷,)
        best, plain = truth(every[spent <= limit]).min(), truth(choose(losses, costs, limit))
        picked, loss = spdy_search(losses, solver(costs, limit), truth, random=50, patience=50)
        assert loss == truth(picked) and total(costs, picked) <= limit * (1 + 1e-9)
        assert best * (1 - 1e-9) <= loss <= plain
        missed, recovered = missed + plain - best, recovered + plain - loss
    assert recovered > 0.5 * missed


def test_spdy_is_never_worse_than_the_plain_optimum() -> None:
    losses, costs, limit = sparsity_problem(5, 6)
    plain = choose(losses, costs, limit)
    asked: set[tuple[int, ...]] = set()

    def evaluate(picked: tuple[int, ...]) -> float:
        asked.add(picked)
        return float(picked != plain)

    assert spdy_search(losses, solver(costs, limit), evaluate, random=10, patience=5) == (plain, 0.0)
    assert len(asked) > 1


def test_spdy_leaves_a_profile_that_does_not_work() -> None:
    losses, costs, limit = sparsity_problem(5, 6)
    plain = choose(losses, costs, limit)
    picked, loss = spdy_search(
        losses, solver(costs, limit), lambda p: np.inf if p == plain else 1.0, random=10, patience=5
    )
    assert picked != plain and loss == 1


@pytest.mark.slow
def test_the_seed_decides_and_every_try_is_counted() -> None:
    losses, costs, limit = sparsity_problem(5, 30)
    runs = []
    for seed in (0, 0, 1):
        asked: list[tuple[int, ...]] = []
        tries: list[int] = []

        def evaluate(picked: tuple[int, ...], asked: list[tuple[int, ...]] = asked) -> float:
            asked.append(picked)
            return 1.0  # nothing helps: 10 draws, then 4 tries each with 3, 2 and 1 coefficients

        spdy_search(losses, solver(costs, limit), evaluate, seed, random=10, patience=4, progress=tries.append)
        assert tries == [1] * (10 + 3 * 4)
        runs.append(asked)
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
def test_what_helps_is_followed_up() -> None:
    """As long as tries help, no end comes after `patience` of them."""
    losses, costs, limit = sparsity_problem(5, 30)
    asked: list[tuple[int, ...]] = []
    tries: list[int] = []

    def evaluate(picked: tuple[int, ...]) -> float:
        asked.append(picked)
        return -float(len(asked)) if len(asked) <= 40 else 0.0  # every new profile is better, 40 times

    _, loss = spdy_search(losses, solver(costs, limit), evaluate, random=10, patience=4, progress=tries.append)
    assert loss == -40 and len(tries) > 40 + 3 * 4 - 1


def test_an_interrupt_is_not_swallowed() -> None:
    def evaluate(picked: tuple[int, ...]) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        losses, costs, limit = random_problem(0, 3, 3)
        spdy_search(losses, solver(costs, limit), evaluate)
