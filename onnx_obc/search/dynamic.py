"""The choice of every layer with the least total loss within a budget, by dynamic programming over a discrete budget.

The dynamic program of SPDY (Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", 2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import RecipeError
from ..level import Float64

BUCKETS = 10_000


def choose(
    losses: Sequence[Float64], costs: Sequence[Float64], limit: float, buckets: int = BUCKETS
) -> tuple[int, ...]:
    """The index of each layer's choice: the least sum of losses among all whose costs sum to at most `limit`.

    losses, costs: for each layer (choices,), costs not negative. Costs are rounded up to multiples of limit / buckets,
    so that the true sum never exceeds the limit; of the discrete problem the result is an optimum, of the true one it
    is at most that of a budget smaller by layers / buckets. Ties go to the lower cost, then to the first choice. Where
    rounding alone leaves nothing, the cheapest choices are taken, if they fit.

    Raises RecipeError if nothing fits.
    """
    cheapest = tuple(int(np.lexsort((loss, cost))[0]) for loss, cost in zip(losses, costs, strict=True))
    least = sum(float(cost[i]) for cost, i in zip(costs, cheapest, strict=True))
    if not least <= limit * (1 + 1e-12):
        raise RecipeError(
            f"the budget cannot be met: {least:.6g} is the least that these levels cost, {limit:.6g} is asked"
        )
    if limit <= 0:
        return cheapest
    units = [np.ceil(cost * (buckets / limit) * (1 - 1e-12)).astype(np.int64) for cost in costs]
    best = np.zeros(buckets + 1)  # the least loss of the layers so far at a total of at most so many units
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
    if not np.isfinite(best[buckets]):
        return cheapest
    chosen, left = [], buckets
    for row in range(len(losses) - 1, -1, -1):
        choice = int(picks[row, left])
        chosen.append(choice)
        left -= int(units[row][choice])
    return tuple(reversed(chosen))
