"""Cost tables in one unit: what every choice of every layer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.arrays import Float64
from ..core.errors import RecipeError
from ..core.level import FLOAT, Choice
from ..graph.cost import Cost, bops, level_flops, obc_bops, weight_bytes
from ..graph.layers import Layer
from ..targets.target import Target
from .latency.table import Timings


@dataclass(frozen=True, eq=False)
class Costs:
    """layers: for each layer the cost of each of its choices, (choices,). dense: of the whole dense model.
    fixed: of what lies outside the layers, which no choice changes."""

    layers: tuple[Float64, ...]
    dense: float
    fixed: float

    @property
    def least(self) -> float:
        """What the cheapest choices cost together, relative to the dense model."""
        return (self.fixed + sum(float(row.min()) for row in self.layers)) / self.dense

    def least_of(self, losses: Sequence[Float64]) -> float:
        """The same of choices whose losses, (choices,) for each layer, are finite: others are never taken."""
        usable = [row[np.isfinite(loss)] for row, loss in zip(self.layers, losses, strict=True)]
        return (self.fixed + sum(float(row.min()) for row in usable)) / self.dense

    def share(self, picked: Sequence[int]) -> float:
        """What these choices cost together, relative to the dense model."""
        return (self.fixed + sum(float(row[i]) for row, i in zip(self.layers, picked, strict=True))) / self.dense


def cost_table(
    kind: str,
    layers: Sequence[Layer],
    costs: Mapping[str, Cost],
    choices: Sequence[Sequence[Choice]],
    target: Target,
    timings: Timings | None = None,
) -> Costs:
    """The costs of a kind of budget, in operations, bit operations, bytes or seconds.

    Only layers count, as in OBC: what else the model computes, and its embeddings and biases, are left out of both
    sides; of latency it is `Timings.rest`. Bytes count every copy of a weight that the target needs.
    Raises RecipeError if a layer's cost is not known.
    """
    rows = []
    dense = 0.0
    for layer, options in zip(layers, choices, strict=True):
        cost = costs[layer.name]
        rows.append(np.array([_cost(kind, layer, cost, choice, target, timings) for choice in options]))
        dense += _cost(kind, layer, cost, Choice(FLOAT), target, timings)
    fixed = timings.rest if kind == "latency" and timings is not None else 0.0
    return Costs(tuple(rows), dense + fixed, fixed)


def _cost(kind: str, layer: Layer, cost: Cost, choice: Choice, target: Target, timings: Timings | None) -> float:
    if kind == "size":
        copies = len(layer.uses) if target.one_reader(layer, choice) else 1
        return float(copies * weight_bytes(layer, choice.level))
    if kind == "latency":
        if timings is None:
            raise RecipeError("a budget of latency needs --timings: a JSON table of seconds for each layer and level")
        seconds = timings.layers.get(layer.name, {}).get(str(choice))
        if seconds is None:
            raise RecipeError(
                f"--timings: no time for layer {layer.name!r} at {choice}; add it, or leave out that level"
            )
        return float(seconds)
    counted = {
        "bops": bops(cost, choice),
        "obc-bops": obc_bops(cost, choice),
        "flops": level_flops(cost, choice.level),
    }[kind]
    if counted is None:
        raise RecipeError(
            f"layer {layer.name!r}: its FLOPs are not known, as the model does not say its shapes; "
            "use a budget of size, or export the model with fixed shapes"
        )
    return counted
