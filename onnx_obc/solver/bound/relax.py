"""Convex relaxations of pruning and quantizing a layer, solved roughly: what the lower bound is best expanded around.

For a diagonal D ⪯ H and R = H − D they minimise uᵀRu + φ(u), where φ is the convex hull of Σⱼ Dⱼ(wⱼ − ŵⱼ)² over what a
pattern or a grid allows. Douglas-Rachford splitting in the metric of D alternates between φ, which is settled weight by
weight or set by set, and uᵀRu, whose linear systems have the matrix R + D = H.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import Float32, Float64
from ...core.level import NM, Block, Sparsity
from ..linalg.compiled import compiled

_STEPS = 12  # more raised the bound of a real layer by 1 % where it was raised most


@dataclass(frozen=True)
class Part:
    """Some rows of some groups.

    weights: (groups, rows, columns) float64. hessian: (groups, columns, columns). minorant: D, (groups, columns), zero
    throughout a group that has none. grid: scale, low and high, (groups, rows, 1) float64 each, where the values are
    scale · low … scale · high; None: any.
    """

    weights: Float64
    hessian: Float64
    minorant: Float64
    sparsity: Sparsity | None
    grid: tuple[Float64, Float64, Float64] | None


def relax(part: Part, base: Float32, unit: Float64) -> Float64:
    """A u near the minimum, (groups, rows, columns), for the pattern if the part has one, otherwise for the grid.

    In float32. base, unit: H⁻¹ in the unit that `Damped.scaled` gives.
    """
    w = part.weights.astype(np.float32)
    d = (part.minorant / unit[:, None])[:, None, :].astype(np.float32)  # (groups, 1, columns)
    state = u = np.zeros_like(w)
    for _ in range(_STEPS):
        target = 2 * w - state
        near = w - (_soften(target, part) if part.sparsity is None else _shrink(target, d, part.sparsity))
        u = np.asarray(((2 * near - state) * d) @ base, np.float32)  # (groups, rows, columns)
        state = state + u - near
    return u.astype(np.float64)


def _soften(target: Float32, part: Part) -> Float32:
    """The ŵ that minimises φ(w − ŵ) + D(w − s − ŵ)², for target = 2w − s: rounding with ramps between the codes."""
    assert part.grid is not None
    scale, low, high = (bound.astype(np.float32) for bound in part.grid)
    code = np.clip(target / (2 * scale), low, high)  # (groups, rows, columns)
    below = np.floor(code)
    return np.asarray((below + np.clip(2 * (code - below) - 0.5, 0, 1)) * scale, np.float32)


def _shrink(target: Float32, d: Float32, sparsity: Sparsity) -> Float32:
    """The same for a pattern: ŵ = target · z / (1 + z), where z in [0, 1] is how far a unit is kept.

    z = min(max(θq − 1, 0), 1), q the square root of the unit's Σ D target²; θ, one for each set, makes Σz the number to
    keep.
    """
    q = np.sqrt(units(d * target * target, sparsity))  # (sets, units)
    fill(q, q.shape[1] - pruned_units(sparsity, q.shape[1]))
    z = _spread(q, sparsity, target.shape)  # (groups, rows, columns)
    return np.asarray(z / (1 + z) * target, np.float32)


@compiled
def fill(q: Float32 | Float64, keep: int) -> None:
    """Replace q by z, set by set; θ by bisection. q: (sets, units), not negative."""
    for one in q:
        low = 1 / max(np.float64(one.max()), 1e-60)
        high = 2 * low
        for _ in range(40):  # what is 2^40 times smaller than the largest may go
            if _filled(one, high) >= keep:
                break
            low, high = high, 2 * high
        for _ in range(10):
            theta = (low + high) / 2
            if _filled(one, theta) > keep:
                high = theta
            else:
                low = theta
        for j in range(len(one)):
            one[j] = min(max(low * one[j] - 1, 0.0), 1.0)


@compiled
def _filled(one: Float32 | Float64, theta: float) -> float:
    """Σz of a set."""
    total = 0.0
    for q in one:
        total += min(max(theta * q - 1, 0.0), 1.0)
    return total


def units(values: np.ndarray, sparsity: Sparsity | None) -> np.ndarray:
    """The sums of what is pruned as a whole, (sets, units); a set is what the pattern counts in. Padded with zeros."""
    groups, rows, columns = values.shape
    width = sparsity.size if isinstance(sparsity, Block) else 1
    per = sparsity.m if isinstance(sparsity, NM) else width
    padded = np.pad(values, ((0, 0), (0, 0), (0, -columns % per))) if columns % per else values
    if width > 1:
        padded = padded.reshape(groups, rows, -1, width).sum(axis=3)
    return padded.reshape(-1, per) if isinstance(sparsity, NM) else padded.reshape(1, -1)


def _spread(each: np.ndarray, sparsity: Sparsity, shape: tuple[int, ...]) -> np.ndarray:
    """Each unit's value at all its weights: the way back from `units`. Returns (groups, rows, columns)."""
    each = each.reshape(shape[0], shape[1], -1)
    if isinstance(sparsity, Block):
        each = np.repeat(each, sparsity.size, axis=2)
    return each[:, :, : shape[2]]


def pruned_units(sparsity: Sparsity | None, count: int) -> int:
    """How many of a set's units must go. In N:M's short last group the padding, which costs nothing, goes first."""
    if sparsity is None:
        return 0
    return sparsity.m - sparsity.n if isinstance(sparsity, NM) else round(sparsity.sparsity * count)
