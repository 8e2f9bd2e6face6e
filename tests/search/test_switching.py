"""Choices where changing between types of numbers takes time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from onnx_obc.core.arrays import Float64
from onnx_obc.core.errors import RecipeError
from onnx_obc.search.dynamic import Switches, choose

KINDS = ["float", "int8", "int8"]


def problem(seed: int, layers: int) -> tuple[list[Float64], list[Float64], list[dict[str, float]]]:
    """Dense, 8 bits, and 8 bits with zeros, faster and worse each; switches as expensive as a layer."""
    rng = np.random.default_rng(seed)
    losses = [np.array([0.0, *np.sort(rng.uniform(0, 1, 2))]) for _ in range(layers)]
    costs = [np.array([1.0, 0.4, 0.2]) * rng.uniform(0.5, 2) for _ in range(layers)]
    switches = [{"float": rng.uniform(0, 1), "int8": rng.uniform(0, 1)} for _ in range(layers)]
    return losses, costs, switches


def totals(
    picked: tuple[int, ...], losses: list[Float64], costs: list[Float64], switches: list[dict[str, float]]
) -> tuple[float, float]:
    loss = sum(float(row[i]) for row, i in zip(losses, picked, strict=True))
    time = sum(float(row[i]) for row, i in zip(costs, picked, strict=True))
    return loss, time + Switches([KINDS] * len(picked), switches).total(picked)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_optimum_and_within_the_limit(seed: int) -> None:
    losses, costs, switches = problem(seed, 7)
    everything = [(totals(picked, losses, costs, switches), picked) for picked in product(range(3), repeat=7)]
    for share in (0.8, 0.5, 0.35):
        limit = share * sum(float(row[0]) for row in costs)
        fitting = [loss for (loss, time), _ in everything if time <= limit]
        tight = [loss for (loss, time), _ in everything if time <= limit * (1 - 14 / 10_000)]
        picked = choose(losses, costs, limit, switches=Switches([KINDS] * 7, switches))
        loss, time = totals(picked, losses, costs, switches)
        assert time <= limit * (1 + 1e-9)
        assert min(fitting) - 1e-9 <= loss <= min(tight) + 1e-9


def test_expensive_switches_are_avoided() -> None:
    losses = [np.array([0.0, 0.1 + 0.01 * i, 0.5]) for i in range(6)]
    costs = [np.array([1.0, 0.4, 0.3]) for _ in range(6)]
    dear = [{"float": 5.0, "int8": 5.0}] * 6
    picked = choose(losses, costs, 4.0, switches=Switches([KINDS] * 6, dear))
    assert len({KINDS[i] for i in picked}) == 1


def test_one_type_needs_no_switch() -> None:
    losses, costs, switches = problem(5, 5)
    limit = 0.6 * sum(float(row[0]) for row in costs)
    picked = choose(losses, costs, limit, switches=Switches([["float"] * 3] * 5, switches))
    assert picked == choose(losses, costs, limit)


def test_what_cannot_be_met() -> None:
    losses, costs, switches = problem(1, 4)
    with pytest.raises(RecipeError, match="cannot be met"):
        choose(losses, costs, 1e-6, switches=Switches([KINDS] * 4, switches))
