"""The choice of every layer with the least total loss within a budget, by dynamic programming over a discrete budget.

The dynamic program of SPDY (Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", 2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import RecipeError
from ..level import Float64

Int64: TypeAlias = npt.NDArray[np.int64]

BUCKETS = 10_000
ROUNDING = 1e-12  # relative; sums of costs are equal up to it


def choose(
    losses: Sequence[Float64], costs: Sequence[Float64], limit: float, buckets: int = BUCKETS
) -> tuple[int, ...]:
    """The index of each layer's choice: the least sum of losses among all whose costs sum to at most `limit`.

    losses, costs: for each layer (choices,), costs not negative. Costs become multiples of limit / buckets. Rounded up,
    every profile of the discrete problem fits the true one, and its optimum is never worse than the true optimum for a
    budget smaller by layers / buckets. Rounded down, every profile that fits is one of the discrete problem: where its
    optimum fits too, it is the true optimum. Both are solved, and the better of what fits is returned; so a budget that
    is met exactly is not lost to rounding. Ties go to the lower cost, then to the first choice.

    Raises RecipeError if nothing fits.
    """
    cheapest = tuple(int(np.lexsort((loss, cost))[0]) for loss, cost in zip(losses, costs, strict=True))
    least = _total(costs, cheapest)
    if not least <= limit * (1 + ROUNDING):
        raise RecipeError(
            f"the budget cannot be met: {least:.6g} is the least that these levels cost, {limit:.6g} is asked"
        )
    if limit <= 0:
        return cheapest
    candidates = [cheapest]
    scaled = [cost * (buckets / limit) for cost in costs]
    up = [np.ceil(cost * (1 - ROUNDING)).astype(np.int64) for cost in scaled]
    best, picks = _solve(losses, up, buckets)
    if np.isfinite(best[buckets]):
        candidates.append(_profile(picks, up, buckets))
    down = [np.floor(cost * (1 + ROUNDING)).astype(np.int64) for cost in scaled]
    best, picks = _solve(losses, down, buckets)
    for budget in range(buckets, buckets - len(losses) - 1, -1):
        if budget >= 0 and np.isfinite(best[budget]):
            found = _profile(picks, down, budget)
            if _total(costs, found) <= limit * (1 + ROUNDING):
                candidates.append(found)
                break
    return min(candidates, key=lambda picked: (_total(losses, picked), _total(costs, picked)))


def _solve(losses: Sequence[Float64], units: Sequence[Int64], buckets: int) -> tuple[Float64, npt.NDArray[np.int16]]:
    """The least loss of all layers at a total of at most 0 … buckets units, (buckets + 1,), and each layer's choice in
    it, (layers, buckets + 1)."""
    best = np.zeros(buckets + 1)
    picks = np.zeros((len(losses), buckets + 1), np.int16)
    for row, (loss, unit) in enumerate(zip(losses, units, strict=True)):
        found = np.full(buckets + 1, np.inf)
        for choice in np.lexsort((np.arange(len(unit)), unit)):
            used = int(unit[choice])
            if used > buckets:
                continue
            total = best[: buckets + 1 - used] + loss[choice]  # (buckets + 1 − used,)
            better = total < found[used:]
            found[used:][better] = total[better]
            picks[row, used:][better] = choice
        best = found
    return best, picks


def _profile(picks: npt.NDArray[np.int16], units: Sequence[Int64], budget: int) -> tuple[int, ...]:
    """The choices behind an entry of the table."""
    chosen = []
    for row in range(len(picks) - 1, -1, -1):
        chosen.append(int(picks[row, budget]))
        budget -= int(units[row][chosen[-1]])
    return tuple(reversed(chosen))


def _total(values: Sequence[Float64], picked: Sequence[int]) -> float:
    return sum(float(row[i]) for row, i in zip(values, picked, strict=True))
