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

    A choice whose loss is not finite is never taken. Raises RecipeError if nothing else fits.
    """
    usable = [np.where(np.isfinite(loss), cost, np.inf) for loss, cost in zip(losses, costs, strict=True)]
    cheapest = tuple(int(np.lexsort((loss, cost))[0]) for loss, cost in zip(losses, usable, strict=True))
    least = _total(usable, cheapest)
    if not (least <= limit * (1 + ROUNDING) and np.isfinite(least)):
        raise RecipeError(
            f"the budget cannot be met: {least:.6g} is the least that these levels cost, {limit:.6g} is asked"
        )
    limit = min(limit, sum(float(cost[np.isfinite(cost)].max()) for cost in usable))
    if limit <= 0:
        return cheapest
    candidates = [cheapest]
    scaled = [
        np.minimum(cost, 2 * limit) / limit * buckets for cost in usable
    ]  # twice the limit is as good as infinite
    up = [np.ceil(cost * (1 - ROUNDING)).astype(np.int64) for cost in scaled]
    best, picks = _solve(losses, up, buckets)
    if np.isfinite(best[buckets]):
        candidates.append(_profile(best, picks, up, buckets))
    down = [np.floor(cost * (1 + ROUNDING)).astype(np.int64) for cost in scaled]
    best, picks = _solve(losses, down, buckets)
    for budget in range(buckets, max(buckets - len(losses), 0) - 1, -1):
        if np.isfinite(best[budget]):
            found = _profile(best, picks, down, budget)
            if _total(usable, found) <= limit * (1 + ROUNDING):
                candidates.append(found)
                break
    return min(candidates, key=lambda picked: (_total(losses, picked), _total(usable, picked)))


def _solve(losses: Sequence[Float64], units: Sequence[Int64], buckets: int) -> tuple[Float64, npt.NDArray[np.int16]]:
    """The least loss of all layers at a total of at most 0 … buckets units, (buckets + 1,), and each layer's choice in
    it, (layers, buckets + 1)."""
    best = np.zeros(buckets + 1)
    picks = np.zeros((len(losses), buckets + 1), np.int16)
    for row, (loss, unit) in enumerate(zip(losses, units, strict=True)):
        found = np.full(buckets + 1, np.inf)
        least = np.inf  # of the choices that cost no more
        for choice in np.lexsort((loss, unit)):
            used = int(unit[choice])
            if used > buckets or not loss[choice] < least:
                continue
            least = float(loss[choice])
            total = best[: buckets + 1 - used] + least  # (buckets + 1 − used,)
            better = total < found[used:]  # (buckets + 1 − used,)
            np.copyto(found[used:], total, where=better)
            np.copyto(picks[row, used:], choice, where=better, casting="same_kind")
        best = found
    return best, picks


def _profile(best: Float64, picks: npt.NDArray[np.int16], units: Sequence[Int64], budget: int) -> tuple[int, ...]:
    """The choices behind an entry of the table, at the lowest total that reaches its loss."""
    budget = int(np.argmax(best <= best[budget]))  # `best` falls
    chosen = []
    for row in range(len(picks) - 1, -1, -1):
        chosen.append(int(picks[row, budget]))
        budget -= int(units[row][chosen[-1]])
    return tuple(reversed(chosen))


def _total(values: Sequence[Float64], picked: Sequence[int]) -> float:
    return sum(float(row[i]) for row, i in zip(values, picked, strict=True))
