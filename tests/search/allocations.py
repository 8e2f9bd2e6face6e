"""Problems of choosing a level for every layer, and sums over what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_obc.core.arrays import Float64

Problem = tuple[list[Float64], list[Float64], float]


def random_problem(seed: int, layers: int, choices: int) -> Problem:
    """Losses that fall and costs that rise, in no strict order, and a budget somewhere between the extremes."""
    rng = np.random.default_rng([seed, layers, choices])
    losses = [np.sort(rng.exponential(1, choices))[::-1] * rng.uniform(0.7, 1.3, choices) for _ in range(layers)]
    costs = [np.sort(rng.exponential(rng.exponential(1), choices)) + 0.01 for _ in range(layers)]
    least, most = (sum(float(f(cost)) for cost in costs) for f in (np.min, np.max))
    return losses, costs, float(rng.uniform(least, most))


def total(values: Sequence[Float64], picked: Sequence[int]) -> float:
    return sum(float(row[i]) for row, i in zip(values, picked, strict=True))
