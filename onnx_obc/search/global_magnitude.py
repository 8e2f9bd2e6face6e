"""Global magnitude pruning: one threshold for the weights of all layers decides how many each of them loses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.arrays import Float64
from ..core.errors import RecipeError
from ..core.level import FLOAT, Choice, Unstructured

HALVINGS = 60  # of the interval that the threshold lies in


def one_threshold(
    scores: Sequence[Float64], choices: Sequence[Sequence[Choice]], costs: Sequence[Float64], limit: float
) -> tuple[int, ...]:
    """Which of its choices each layer takes: the least threshold at which all together cost no more than `limit`.

    scores: of a layer's weights, any shape, comparable between layers, such as magnitudes or the scores of L-OBS. A
    layer takes, of choices that prune anywhere and do nothing else, the one nearest to the share of its weights whose
    score is below the threshold. costs: (choices,) for each layer. Raises RecipeError for choices of other kinds, and
    if the limit is below what all layers cost at their highest sparsity.
    """
    ladders = [np.array([sparsity_of(choice) for choice in found]) for found in choices]  # (choices,) each
    ordered = [np.sort(np.asarray(score, np.float64), axis=None) for score in scores]  # (weights,) each

    def picked(threshold: float) -> tuple[int, ...]:
        shares = [np.searchsorted(score, threshold, side="right") / score.size for score in ordered]
        return tuple(int(np.abs(ladder - share).argmin()) for ladder, share in zip(ladders, shares, strict=True))

    def cost(indices: Sequence[int]) -> float:
        return sum(float(row[i]) for row, i in zip(costs, indices, strict=True))

    low, high = 0.0, max(float(score[-1]) for score in ordered)
    if cost(picked(high)) > limit:
        raise RecipeError("the budget is below what these levels can reach; add levels of higher sparsity")
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(picked(middle)) > limit else (low, middle)
    return picked(high)


def sparsity_of(choice: Choice) -> float:
    """The share of weights that a choice prunes anywhere. Raises RecipeError for a choice that does anything else."""
    if choice.level == FLOAT:
        return 0.0
    pattern = choice.level.sparsity
    if not isinstance(pattern, Unstructured) or choice.level.bits is not None:
        raise RecipeError(
            f"one threshold for all layers decides where weights are pruned anywhere, not at {choice}; "
            "use --levels unstructured, or another --solver than gmp"
        )
    return pattern.sparsity
