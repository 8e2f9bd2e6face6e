"""The choice of every layer with the least total loss within a budget, by dynamic programming over a discrete budget.

The dynamic program of SPDY (Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", 2022, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.arrays import Float64
from ..core.errors import RecipeError

Int64: TypeAlias = npt.NDArray[np.int64]

BUCKETS = 10_000
ROUNDING = 1e-12  # relative; sums of costs are equal up to it


@dataclass(frozen=True)
class Switches:
    """What converting between number formats costs, from one layer to the next.

    kinds: the kind of each choice of each layer. costs: for each layer, of its kind, if the next layer has another one.
    """

    kinds: Sequence[Sequence[str]]
    costs: Sequence[Mapping[str, float]]

    def total(self, picked: Sequence[int]) -> float:
        """The cost of all switches of a profile."""
        path = [kinds[i] for kinds, i in zip(self.kinds, picked, strict=True)]
        pairs = zip(path, path[1:], self.costs, strict=False)
        return sum(costs.get(kind, 0.0) for kind, following, costs in pairs if kind != following)


def choose(
    losses: Sequence[Float64],
    costs: Sequence[Float64],
    limit: float,
    buckets: int = BUCKETS,
    switches: Switches | None = None,
) -> tuple[int, ...]:
    """The index of each layer's choice: the least sum of losses among all whose costs sum to at most `limit`.

    losses, costs: for each layer (choices,), costs not negative. Costs become multiples of limit / buckets. Rounded up,
    every profile of the discrete problem fits the true one, and its optimum is never worse than the true optimum for a
    budget smaller by layers / buckets. Rounded down, every profile that fits is one of the discrete problem: where its
    optimum fits too, it is the true optimum. Both are solved, and the better of what fits is returned; so a budget that
    is met exactly is not lost to rounding. Ties go to the lower cost, then to the first choice.

    switches: costs between neighbours, which count too. The program then has a table for each kind of the last layer.

    A choice whose loss is not finite is never taken. Raises RecipeError if nothing else fits.
    """
    usable = _usable(losses, costs)
    switches = switches or Switches([[""] * len(loss) for loss in losses], [{} for _ in losses])
    kinds, between = switches.kinds, switches.costs

    def spent(picked: Sequence[int]) -> float:
        return _total(usable, picked) + switches.total(picked)

    cheapest = choose_cheapest(losses, costs, switches)
    least = spent(cheapest)
    if not (least <= limit * (1 + ROUNDING) and np.isfinite(least)):
        raise RecipeError(
            f"the budget cannot be met: {least:.6g} is the least that these levels cost, {limit:.6g} is asked"
        )
    most = sum(float(cost[np.isfinite(cost)].max()) for cost in usable)
    limit = min(limit, most + sum(max(extra.values(), default=0.0) for extra in between))
    if limit <= 0:
        return cheapest
    candidates = [cheapest]
    for rounded in (_up, _down):
        # Twice the limit is as good as infinite.
        units = [rounded(np.minimum(cost, 2 * limit) / limit * buckets) for cost in usable]
        steps = [
            {kind: int(rounded(np.array(min(cost, 2 * limit) / limit * buckets))) for kind, cost in extra.items()}
            for extra in between
        ]
        tables = _solve(losses, units, kinds, steps, buckets)
        for budget in range(buckets, max(buckets - 2 * len(losses), 0) - 1, -1):
            found = _profile(tables, units, kinds, steps, budget)
            if found is not None and spent(found) <= limit * (1 + ROUNDING):
                candidates.append(found)
                break
            if rounded is _up:
                break
    return min(candidates, key=lambda picked: (_total(losses, picked), spent(picked)))


def _usable(losses: Sequence[Float64], costs: Sequence[Float64]) -> list[Float64]:
    """The costs, infinite where the loss is not finite: such a choice is never taken."""
    return [np.where(np.isfinite(loss), cost, np.inf) for loss, cost in zip(losses, costs, strict=True)]


def _up(cost: Float64) -> Int64:
    return np.ceil(cost * (1 - ROUNDING)).astype(np.int64)


def _down(cost: Float64) -> Int64:
    return np.floor(cost * (1 + ROUNDING)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Row:
    """After a layer, for each kind that it can have: the least loss so far at a total of at most 0 … buckets units,
    (buckets + 1,), the layer's choice in it, and the kind of the layer before."""

    best: Mapping[str, Float64]
    picks: Mapping[str, npt.NDArray[np.int16]]
    before: Mapping[str, npt.NDArray[np.object_]]


def _solve(
    losses: Sequence[Float64],
    units: Sequence[Int64],
    kinds: Sequence[Sequence[str]],
    steps: Sequence[Mapping[str, int]],
    buckets: int,
) -> list[_Row]:
    """The table of every layer."""
    rows: list[_Row] = []
    for row, (loss, unit, found) in enumerate(zip(losses, units, kinds, strict=True)):
        best, picks, before = {}, {}, {}
        for kind in dict.fromkeys(found):
            base, before[kind] = _arrive(rows[-1], steps[row - 1], kind, buckets) if rows else _start(buckets)
            choices = [choice for choice in np.lexsort((loss, unit)) if found[choice] == kind]
            best[kind], picks[kind] = _step(base, loss, unit, choices)
        rows.append(_Row(best, picks, before))
    return rows


def _start(buckets: int) -> tuple[Float64, npt.NDArray[np.object_]]:
    return np.zeros(buckets + 1), np.full(buckets + 1, "", object)


def _arrive(row: _Row, steps: Mapping[str, int], kind: str, buckets: int) -> tuple[Float64, npt.NDArray[np.object_]]:
    """The least loss before a layer of this kind, switches paid, (buckets + 1,), and the kind it comes from."""
    base, source = np.full(buckets + 1, np.inf), np.full(buckets + 1, "", object)
    for other, best in row.best.items():
        used = 0 if other == kind else steps.get(other, 0)
        if used > buckets:
            continue
        total = best[: buckets + 1 - used]  # (buckets + 1 − used,)
        better = total < base[used:]  # (buckets + 1 − used,)
        np.copyto(base[used:], total, where=better)
        source[used:][better] = other
    return base, source


def _step(base: Float64, loss: Float64, unit: Int64, choices: Sequence[int]) -> tuple[Float64, npt.NDArray[np.int16]]:
    """The least loss after a layer, (buckets + 1,), and its choice; choices: in the order of their costs."""
    buckets = len(base) - 1
    found, picks = np.full(buckets + 1, np.inf), np.zeros(buckets + 1, np.int16)
    least = np.inf  # of the choices that cost no more
    for choice in choices:
        used = int(unit[choice])
        if used > buckets or not loss[choice] < least:
            continue
        least = float(loss[choice])
        total = base[: buckets + 1 - used] + least  # (buckets + 1 − used,)
        better = total < found[used:]  # (buckets + 1 − used,)
        np.copyto(found[used:], total, where=better)
        np.copyto(picks[used:], choice, where=better, casting="same_kind")
    return found, picks


def _profile(
    rows: Sequence[_Row],
    units: Sequence[Int64],
    kinds: Sequence[Sequence[str]],
    steps: Sequence[Mapping[str, int]],
    budget: int,
) -> tuple[int, ...] | None:
    """The choices behind the best entry at a budget, at the lowest total that reaches its loss, or None."""
    kind = min(rows[-1].best, key=lambda kind: float(rows[-1].best[kind][budget]))
    best = rows[-1].best[kind]
    if not np.isfinite(best[budget]):
        return None
    budget = int(np.argmax(best <= best[budget]))  # `best` falls
    chosen: list[int] = []
    for row in range(len(rows) - 1, -1, -1):
        chosen.append(int(rows[row].picks[kind][budget]))
        budget -= int(units[row][chosen[-1]])
        before = str(rows[row].before[kind][budget])
        if row and before != kind:
            budget -= steps[row - 1].get(before, 0)
        kind = before
    return tuple(reversed(chosen))


def choose_cheapest(losses: Sequence[Float64], costs: Sequence[Float64], switches: Switches) -> tuple[int, ...]:
    """The profile of least cost, switches included; of equal ones that of the least loss.

    Of choices whose losses are finite, as far as a layer has any.
    """
    costs = _usable(losses, costs)
    best: dict[str, tuple[float, float, tuple[int, ...]]] = {}
    for row, (loss, cost, found) in enumerate(zip(losses, costs, switches.kinds, strict=True)):
        after: dict[str, tuple[float, float, tuple[int, ...]]] = {}
        for choice in np.lexsort((loss, cost)):
            kind = found[choice]
            if kind in after:
                continue
            paths = (
                [(0.0, 0.0, ())]
                if row == 0
                else [
                    (spent + (0.0 if other == kind else switches.costs[row - 1].get(other, 0.0)), lost, path)
                    for other, (spent, lost, path) in best.items()
                ]
            )
            spent, lost, path = min(paths)
            after[kind] = (spent + float(cost[choice]), lost + float(loss[choice]), (*path, int(choice)))
        best = after
    return min(best.values())[2] if best else ()


def _total(values: Sequence[Float64], picked: Sequence[int]) -> float:
    return sum(float(row[i]) for row, i in zip(values, picked, strict=True))
