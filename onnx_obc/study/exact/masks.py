"""The optimum over the masks of a row, exactly: the solver's to begin with, then branch and bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import Bool, Float64
from ...core.level import Level, Sparsity
from ...solver import Method, damp, solve
from ...solver.linalg.inverse import invert
from .branch import branch_and_bound
from .pattern import Pattern, removal
from .problem import FOREVER, Limit, Proof, check_hessian

_HEURISTIC = Method(refine=8, threads=1)


@dataclass(frozen=True, eq=False)
class Masked(Proof):
    """What was found: the mask, (n,) bool, True where a weight stays, and the weights refitted to it, (n,) float64."""

    mask: Bool
    weights: Float64


def solve_mask(
    weight: Float64, hessian: Float64, sparsity: Sparsity, start: Bool | None = None, limit: Limit = FOREVER
) -> Masked:
    """The mask of least loss ½ δᵀHδ, δ = weight − x, x the best weights for the mask.

    weight: (n,) float64. hessian: (n, n) float64, symmetric and positive definite: damp it. sparsity: Unstructured and
    Block: exactly round(sparsity · n, or blocks) are pruned; N:M: m − n of every m. start: a mask (n,) of a heuristic,
    of this pattern, that the search begins from; None: the exact greedy's, refined.
    If `limit` ends the search, the result is the best found and a bound that is proven all the same.
    Raises ValueError if the arguments do not fit each other, and numpy's LinAlgError, which is one, if the Hessian is
    singular to rounding.
    """
    check_hessian(hessian, weight)
    pattern = Pattern.of(sparsity, len(weight))
    unit, size = float(np.diagonal(hessian).mean()), float(np.abs(weight).max()) or 1.0
    if not unit > 0:
        raise np.linalg.LinAlgError("singular to rounding")
    h, w = hessian / unit, weight / size
    inverse = invert(h)
    if start is None:
        single = w.astype(np.float32)[None, None]  # (1, 1, columns)
        start = solve(single, damp(h[None], 0.0), Level(sparsity), _HEURISTIC).mask
    given = ~np.asarray(start, bool).reshape(-1, pattern.size)
    if (given.any(axis=1) != given.all(axis=1)).any() or (pattern.counts(given[:, 0]) != pattern.pruned).any():
        raise ValueError("start: a mask of another pattern")
    best = given[:, 0]
    found, open_loss, nodes = branch_and_bound(pattern, h, inverse, w, best, limit)
    best = min((best, found), key=lambda each: removal(inverse, w, pattern.columns(each)))
    mask = ~pattern.columns(best)
    x = _refit(weight, hessian, mask)
    loss = 0.5 * float((weight - x) @ hessian @ (weight - x))
    bound = loss if open_loss is None else min(loss, 0.5 * open_loss * unit * size * size)
    return Masked(loss, bound, nodes, mask, x)


def _refit(weight: Float64, hessian: Float64, mask: Bool) -> Float64:
    """The best weights for a mask, (n,)."""
    x = np.where(mask, weight, 0.0)
    if mask.any():
        x[mask] += np.linalg.solve(hessian[np.ix_(mask, mask)], hessian[np.ix_(mask, ~mask)] @ weight[~mask])
    return x
