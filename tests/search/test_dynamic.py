"""The dynamic program: optimal for the discrete problem, never over the budget; and SPDY's search around it."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import MODEL
from scipy.optimize import LinearConstraint, milp

from onnx_obc.errors import RecipeError
from onnx_obc.graph.cost import layer_costs
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.level import Choice, Float64, Level
from onnx_obc.levels import read_levels
from onnx_obc.search.costs import cost_table
from onnx_obc.search.dynamic import choose
from onnx_obc.search.spdy import spdy_search
from onnx_obc.solver import baseline, damp

Problem = tuple[list[Float64], list[Float64], float]


def random_problem(seed: int, layers: int, choices: int) -> Problem:
    """Losses that fall and costs that rise, in no strict order, and a budget somewhere between the extremes."""
    rng = np.random.default_rng([seed, layers, choices])
    losses = [np.sort(rng.exponential(1, choices))[::-1] * rng.uniform(0.7, 1.3, choices) for _ in range(layers)]
    costs = [np.sort(rng.exponential(rng.exponential(1), choices)) + 0.01 for _ in range(layers)]
    least, most = (sum(float(f(cost)) for cost in costs) for f in (np.min, np.max))
    return losses, costs, float(rng.uniform(least, most))


def real_problem(levels: str, kind: str, fraction: float) -> Problem:
    """The digits model: its layers' costs, and their losses by magnitude and rounding on white inputs."""
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers, _ = find_layers(model)
    choices = [[c for c in read_levels(levels, True) if layer.impossible(c.level) is None] for layer in layers]
    table = cost_table(kind, layers, layer_costs(model, layers), choices)
    losses = []
    for layer, found in zip(layers, choices, strict=True):
        weight = layer.matrix()
        white = damp(np.eye(layer.columns)[None].repeat(layer.groups, 0))
        energy = float((weight.astype(np.float64) ** 2).sum())
        losses.append(
            np.array([baseline(weight, white, c.level).loss / energy if c.level != Level() else 0.0 for c in found])
        )
    return losses, list(table.layers), fraction * table.dense


def total(values: list[Float64], picked: tuple[int, ...]) -> float:
    return sum(float(row[i]) for row, i in zip(values, picked, strict=True))


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
    assert choose([np.array([np.inf, 3.0])], [np.array([0.1, 1.0])], 1) == (1,)
    third = [np.full(1, 1 / 3)] * 3  # three thirds are not more than one, but in buckets they would be
    assert choose([np.zeros(1)] * 3, third, 1.0, buckets=10) == (0, 0, 0)


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
    picked, loss = spdy_search(losses, costs, limit, evaluate, random=50, patience=50)
    assert len(asked) == len(set(asked)) and asked[0] == plain
    assert loss == truth(picked) and total(costs, picked) <= limit
    assert best - 1e-12 <= loss < truth(plain)
    assert loss - best < 0.5 * (truth(plain) - best)
    assert (picked, loss) == spdy_search(losses, costs, limit, evaluate, random=50, patience=50)


def test_spdy_is_never_worse_than_the_plain_optimum() -> None:
    losses, costs, limit = random_problem(5, 6, 4)
    plain = choose(losses, costs, limit)
    picked, loss = spdy_search(losses, costs, limit, lambda p: float(p != plain), random=10, patience=5)
    assert (picked, loss) == (plain, 0.0)


def test_costs_of_choices() -> None:
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    layers, _ = find_layers(model)
    dense = [Choice(Level())]
    expected = [
        ("8w8a", "bops", 16),
        ("4w4a", "bops", 64),
        ("int4", "bops", 8),
        ("8w8a", "obc-bops", 4),
        ("4w4a", "obc-bops", 8),
        ("int4", "obc-bops", 1),
        ("sparse-0.50", "flops", 2),
        ("int4", "flops", 1),
    ]
    for text, kind, times in expected:
        choice = next(c for c in read_levels(text, True) if str(c) == text)
        table = cost_table(kind, layers, layer_costs(model, layers), [[*dense, choice]] * len(layers))
        assert table.dense == pytest.approx(sum(float(row[0]) for row in table.layers))
        assert all(row[0] / row[1] == pytest.approx(times) for row in table.layers)
    sparse = next(c for c in read_levels("2:4+4w4a", True) if str(c) == "2:4+4w4a")
    table = cost_table("obc-bops", layers[-1:], layer_costs(model, layers), [[*dense, sparse]])
    assert table.layers[0][0] / table.layers[0][1] == pytest.approx(16)
