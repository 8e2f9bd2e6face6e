"""How far budgets can go: what no choice of levels meets is refused before anything is solved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ..core.errors import RecipeError
from ..core.level import Choice
from ..graph.cost import Cost
from ..graph.layers import Layer
from ..targets.target import Target
from .budget import Budget
from .costs import cost_table
from .latency.table import Timings


def check_budgets(
    budgets: Sequence[Budget],
    layers: Sequence[Layer],
    costs: Mapping[str, Cost],
    choices: Sequence[Sequence[Choice]],
    target: Target,
    timings: Timings | None = None,
) -> None:
    """Raise RecipeError for a budget that costs alone show to be out of reach.

    choices: of each layer. Of a budget of loss that is where no level makes a layer smaller; of one of latency, where
    the user's table lacks a time.
    """
    for budget in budgets:
        if budget.kind == "latency":
            if timings is not None:
                cost_table("latency", layers, costs, choices, target, timings)
        elif budget.kind == "drop":
            check_smaller(budget, cost_table("size", layers, costs, choices, target).least)
        else:
            check_reach(budget, cost_table(budget.kind, layers, costs, choices, target).least, choices)


def check_reach(budget: Budget, least: float, choices: Iterable[Sequence[Choice]]) -> None:
    """Raise RecipeError if a budget asks for less than the `least` that is left, relative to the dense model.

    choices: of each layer.
    """
    if least > budget.fraction * (1 + 1e-9):
        raise RecipeError(
            f"--budget {budget} cannot be met: {_reach(budget, least)} with the levels {in_words(choices)}; "
            "ask for less, or give more levels"
        )


def check_smaller(budget: Budget, least: float) -> None:
    """Raise RecipeError if the smallest model by its levels is as large as the dense one."""
    if least > 1 - 1e-9:
        raise RecipeError(
            f"--budget {budget}: these levels make no layer smaller, as pruned weights are stored in float; "
            "take levels with integers, such as 8w8a or 2:4+8w8a"
        )


def in_words(choices: Iterable[Sequence[Choice]]) -> str:
    """The first few of the levels other than float that layers can take. choices: of each layer."""
    named = [level for level in dict.fromkeys(str(choice) for found in choices for choice in found) if level != "float"]
    return ", ".join(named[:4]) + (" …" if len(named) > 4 else "")


def _reach(budget: Budget, least: float) -> str:
    """How far a budget of this kind can go, in the form it was asked in, rounded to what can be asked for."""
    if budget.value > 1:
        return f"{math.floor(1000 / least) / 1000:g}x at most"
    return f"{math.ceil(1000 * least) / 1000:g}x at least"
