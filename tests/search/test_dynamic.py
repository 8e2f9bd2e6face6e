"""The dynamic program: optimal for the discrete problem, and never over the budget."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from allocations import Problem, random_problem, total
from digits import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from onnx_obc.core.arrays import Float64
from onnx_obc.core.errors import RecipeError
from onnx_obc.core.level import Level
from onnx_obc.core.level_sets import read_levels
from onnx_obc.graph.cost import layer_costs
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.search.costs import cost_table
from onnx_obc.search.dynamic import choose
from onnx_obc.solver import baseline, damp
from onnx_obc.targets.registry import TARGETS


def real_problem(levels: str, kind: str, fraction: float) -> Problem:
    """The digits model: its layers' costs, and their losses by magnitude and rounding on white inputs."""
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers, _ = find_layers(model)
    choices = [[c for c in read_levels(levels, True) if layer.impossible(c.level) is None] for layer in layers]
    table = cost_table(kind, layers, layer_costs(model, layers), choices, TARGETS["onnxruntime"])
    losses = []
    for layer, found in zip(layers, choices, strict=True):
        weight = layer.matrix()
        white = damp(np.eye(layer.columns)[None].repeat(layer.groups, 0))
        energy = float((weight.astype(np.float64) ** 2).sum())
        losses.append(
            np.array([baseline(weight, white, c.level).loss / energy if c.level != Level() else 0.0 for c in found])
        )
    return losses, list(table.layers), fraction * table.dense


def optimum(losses: list[Float64], costs: list[Float64], limit: float, buckets: int | None = None) -> float | None:
    """The least loss by branch and bound: of the true problem, or with costs rounded up to buckets. None: none fits."""
    if buckets is not None:
        costs, limit = [np.ceil(cost * (buckets / limit) * (1 - 1e-12)) for cost in costs], buckets
    one = np.zeros((len(losses), sum(map(len, losses))))
    start = 0
    for row, loss in enumerate(losses):
        one[row, start : start + len(loss)] = 1
        start += len(loss)
    within = LinearConstraint(np.concatenate(costs)[None] / limit, -np.inf, 1)
    found = milp(
        np.concatenate(losses), integrality=np.ones(start), bounds=(0, 1),
        constraints=[LinearConstraint(one, 1, 1), within], options={"mip_rel_gap": 0},
    )  # fmt: skip
    assert found.status in (0, 2), found.message
    return float(found.fun) if found.status == 0 else None


def check(losses: list[Float64], costs: list[Float64], limit: float, buckets: int) -> bool:
    """That a result fits, and is no worse than the discrete optimum; returns whether it is the true one."""
    picked = choose(losses, costs, limit, buckets)
    assert total(costs, picked) <= limit * (1 + 1e-9)
    found, true, discrete = total(losses, picked), optimum(losses, costs, limit), optimum(losses, costs, limit, buckets)
    assert true is not None and found >= true * (1 - 1e-6) - 1e-9
    assert discrete is None or found <= discrete * (1 + 1e-6) + 1e-9
    return found <= true * (1 + 1e-6) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "choices"), [(1, 4), (3, 5), (12, 6)])
def test_it_is_optimal_on_random_problems(layers: int, choices: int) -> None:
    exact = [check(*random_problem(seed, layers, choices), buckets=10_000) for seed in range(40)]
    assert sum(exact) >= 39


@pytest.mark.parametrize("seed", range(20))
def test_with_few_buckets_it_is_no_worse_than_the_discrete_optimum(seed: int) -> None:
    check(*random_problem(seed, 8, 6), buckets=50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_it_is_optimal_on_large_problems(seed: int) -> None:
    check(*random_problem(seed, 50, 30), buckets=10_000)


@pytest.mark.parametrize(
    ("levels", "kind", "fraction"),
    [("gpu", "obc-bops", 1 / 7), ("gpu", "bops", 1 / 40), ("weight-only", "size", 0.12), ("block4", "flops", 1 / 3)],
)
@pytest.mark.slow
def test_it_is_optimal_on_a_real_model(levels: str, kind: str, fraction: float) -> None:
    check(*real_problem(levels, kind, fraction), buckets=10_000)


@pytest.mark.parametrize("seed", range(50))
def test_the_true_optimum_is_near(seed: int) -> None:
    """Against all profiles, with true costs: as good as with a budget that is smaller by a bucket for each layer."""
    losses, costs, limit = random_problem(seed, 4, 4)
    picked = choose(losses, costs, limit)
    tighter = limit * (1 - 4 / 10_000)
    every = [p for p in product(range(4), repeat=4) if total(costs, p) <= tighter]
    if every:
        assert total(losses, picked) <= min(total(losses, p) for p in every) + 1e-12


def test_more_budget_is_never_worse() -> None:
    losses, costs, _ = random_problem(0, 10, 8)
    least, most = (sum(float(f(cost)) for cost in costs) for f in (np.min, np.max))
    reached = [total(losses, choose(losses, costs, limit)) for limit in np.linspace(least * 1.01, most, 60)]
    assert all(after <= before + 1e-12 for before, after in pairwise(reached))
    assert reached[-1] == pytest.approx(sum(float(loss.min()) for loss in losses))


def test_edges() -> None:
    losses, costs = [np.array([0.0, 1.0])] * 2, [np.array([2.0, 1.0])] * 2
    assert choose(losses, costs, 4) == (0, 0)
    assert choose(losses, costs, 3) in [(0, 1), (1, 0)]
    assert choose(losses, costs, 2) == (1, 1)
    with pytest.raises(RecipeError, match=r"2 is the least that these levels cost, 1\.99 is asked"):
        choose(losses, costs, 1.99)
    free = [np.zeros(2)] * 2
    assert choose(losses, free, 1) == (0, 0)
    assert choose(losses, free, 0) == (0, 0)
    assert choose(losses, costs, np.inf) == (0, 0)
    assert choose([np.array([1.0, 3.0])], [np.array([1e10, 0.0])], 1e-305) == (1,)
    third = [np.full(1, 1 / 3)] * 3  # three thirds are not more than one, but in buckets they would be
    assert choose([np.zeros(1)] * 3, third, 1.0, buckets=10) == (0, 0, 0)


def test_what_does_not_work_is_never_chosen() -> None:
    losses, costs = [np.array([np.inf, 3.0]), np.array([np.nan, 2.0])], [np.array([0.1, 1.0])] * 2
    assert choose(losses, costs, 2) == (1, 1)
    assert choose(losses, costs, 2, buckets=3) == (1, 1)
    with pytest.raises(RecipeError, match="2 is the least that these levels cost, 1 is asked"):
        choose(losses, costs, 1)
    with pytest.raises(RecipeError, match="cannot be met"):
        choose([np.full(2, np.inf)], [np.ones(2)], np.inf)


def test_of_equal_losses_the_cheapest_is_taken() -> None:
    losses = [np.array([1.0, 0.0])] * 2
    dear, cheap = np.array([0.0, 5.0]), np.array([0.0, 3.0])
    assert choose(losses, [dear, cheap], 5) == (0, 1)
    assert choose(losses, [cheap, dear], 5) == (1, 0)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=4), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_it_is_the_true_optimum_of_whole_numbers(layers: list[list[tuple[int, int]]], share: float) -> None:
    """Costs that are whole buckets are not rounded: the least loss of all profiles, and of those the least cost."""
    losses = [np.array([float(loss) for loss, _ in layer]) for layer in layers]
    costs = [np.array([float(cost) for _, cost in layer]) for layer in layers]
    least, most = (sum(float(f(cost)) for cost in costs) for f in (np.min, np.max))
    limit = float(round(least + share * (most - least)))
    every = [p for p in product(*(range(len(loss)) for loss in losses)) if total(costs, p) <= limit]
    expected = min((total(losses, p), total(costs, p)) for p in every)
    picked = choose(losses, costs, limit, buckets=max(int(limit), 1))
    assert (total(losses, picked), total(costs, picked)) == expected
