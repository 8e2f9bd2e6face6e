"""A lower bound on the layer loss of every solution at a level: how far from the optimum the solver can be at most.

For a diagonal D with 0 ⪯ D ⪯ H and R = H − D, convexity of δᵀRδ gives with any vector u

    δᵀHδ  ≥  Σⱼ Dⱼδⱼ² + 2uᵀRδ − uᵀRu  =  Σⱼ Dⱼ(tⱼ − ŵⱼ)² − Σⱼ yⱼ²/Dⱼ − uᵀy       δ = w − ŵ, y = Ru, t = w + y/D

The right side is separable: its minimum over codes, masks and kept values is found exactly, by rounding t and sorting.
So every u bounds every solution; u = 0 gives the separable bound Σⱼ Dⱼ(wⱼ − ŵⱼ)². The best u solves a convex
relaxation: for quantization that of Billionnet, Elloumi and Lambert (Extending the QCR method to general mixed-integer
programs, 2012), for pruning the perspective relaxation of Frangioni and Gentile (Perspective cuts for a class of convex
0-1 mixed integer programs, 2006). Here u comes from a few steps of Douglas-Rachford splitting towards it, whose linear
systems have the matrix R + D = H, so that a step costs one product with the inverse that is there anyway.

D = a / diag(H⁻¹), where 1/a is the largest eigenvalue of H⁻¹ scaled to a diagonal of ones; that H − D is positive
semidefinite is proved by a Cholesky factorisation, its rounding included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.linalg import lapack
from scipy.sparse.linalg import LinearOperator, eigsh

from ...core.arrays import Float32, Float64
from ...core.level import NM, Level
from ...core.solution import Grid
from ..linalg.inverse import Damped
from ..linalg.threads import one_blas_thread
from .relax import Part, pruned_units, relax, units

_EPS = float(np.finfo(np.float64).eps)
_CHUNK = 2**22  # weights, or entries of the Hessians of several groups, worked on at a time
_DENSE = 64  # columns up to which all eigenvalues cost nothing


def lower_bound(weights: Float32, damped: Damped, level: Level, grid: Grid | None = None) -> float:
    """A number that ½ tr(ΔHΔᵀ), for the damped H, of no solution at `level` falls below, rounding errors included.

    It holds for all masks of the level's pattern (Unstructured and Block: round(sparsity · weights or blocks) pruned
    anywhere in the layer; N:M: at most n of m columns kept), all values of the kept weights, and all codes on `grid`,
    which must be the solution's own; without one the kept weights may be anything. It is the largest of the separable
    bound and the relaxed ones, and 0 if H is too close to singular for any.

    weights: (groups, rows, columns) float32, finite. Takes a Cholesky factorisation of each group's Hessian and about
    fifteen products of it with all rows, twice as many where there are both a pattern and a grid. Memory: the inverse,
    one more Hessian of float64, some twenty arrays of 4 million weights, and for Unstructured and Block one float64 for
    each weight or block.
    """
    if level.sparsity is None and grid is None:
        return 0.0
    groups, rows, columns = weights.shape
    at_once = max(1, _CHUNK // (max(rows, columns) * columns))  # groups
    stride = -(-rows * columns // _CHUNK)  # parts of a group take every so many rows, so that they are alike
    total, gaps = 0.0, []
    with one_blas_thread():
        minorant = _minorant(damped.hessian, damped.inverse)  # (groups, columns)
        base, _, unit = damped.scaled("float32")
        spread = None if grid is None else grid.spread(rows, columns)
        for first in range(0, groups, at_once):
            g = slice(first, first + at_once)
            for r in range(stride):
                own = slice(r, None, stride)
                values = None
                if grid is not None and spread is not None:
                    scale, zero = (x[g, own, : None if grid.block else 1].astype(np.float64) for x in spread)
                    values = (scale, grid.qmin - zero, grid.qmax - zero)  # (groups, rows, columns or 1)
                wide = weights[g, own].astype(np.float64)  # (groups, rows, columns)
                part = Part(wide, damped.hessian[g], minorant[g], level.sparsity, values)
                value, gap = _best(part, base[g], unit[g])
                total += value
                gaps.append(gap)
        if level.sparsity is not None and not isinstance(level.sparsity, NM):
            gap = np.concatenate(gaps)  # (weights or blocks of the layer,)
            total += _cheapest(gap[None], round(level.sparsity.sparsity * gap.size))
    return max(0.5 * total * (1 - 1e-12), 0.0)


def _minorant(hessian: Float64, inverse: Float64) -> Float64:
    """A diagonal D (groups, columns) with 0 ⪯ D ⪯ H in exact arithmetic; zero where rounding leaves none."""
    columns = hessian.shape[1]
    own = np.diagonal(inverse, axis1=1, axis2=2)  # (groups, columns)
    root = np.sqrt(own)
    if columns <= _DENSE:
        largest = np.linalg.eigvalsh(inverse / (root[:, :, None] * root[:, None, :]))[:, -1]  # (groups,)
    else:
        largest = np.array([_largest(*pair) for pair in zip(inverse, root, strict=True)])
    diagonal = 0.999 / (largest[:, None] * own)
    for g in range(len(hessian)):
        less = 0.9
        while not _factorises(hessian[g], diagonal[g]) and less > _EPS:
            diagonal[g] *= less
            less *= less
    # If the factorisation of a matrix A succeeds, A + E is positive definite for some |Eᵢⱼ| ≤ γ √(aᵢᵢaⱼⱼ), γ close to
    # (columns + 1) ε/2 (Demmel 1989; Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3). Columns · γ
    # on the diagonal, in units of H's own, makes up for it, and the rest for forming A.
    safe = diagonal - (columns + 4) ** 2 * _EPS * np.diagonal(hessian, axis1=1, axis2=2)
    return np.where((safe > 0.5 * diagonal).all(axis=1, keepdims=True), safe, 0.0)


def _factorises(hessian: Float64, diagonal: Float64) -> bool:
    """Whether the Cholesky factorisation of H − D succeeds."""
    rest = hessian.copy()
    rest[np.diag_indices_from(rest)] -= diagonal
    _, failed = lapack.dpotrf(rest.T, lower=1, clean=0, overwrite_a=1)  # in place
    return not failed


def _largest(inverse: Float64, root: Float64) -> float:
    """The largest eigenvalue of the inverse scaled to a diagonal of ones, by Lanczos, to about 1e-4."""

    def times(x: Float64) -> Float64:
        product: Float64 = inverse @ (x.ravel() / root) / root
        return product

    size = len(root)
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    return float(eigsh(operator, 1, which="LA", v0=start, tol=1e-4, return_eigenvectors=False)[0])


def _best(part: Part, base: Float32, unit: Float64) -> tuple[float, Float64]:
    """The best of the separable and the relaxed bounds of a part, as `_evaluate`; N:M is settled and leaves no gaps."""
    shifts: list[Float64 | None] = [None]
    if part.sparsity is not None:
        shifts.append(relax(part, base, unit))
    if part.grid is not None:
        shifts.append(relax(replace(part, sparsity=None), base, unit))
    found = []
    for shift in shifts:
        value, gap = _evaluate(part, shift)  # gap: (sets, units)
        settled = value + _cheapest(gap, pruned_units(part.sparsity, gap.shape[1]))
        if part.sparsity is None or isinstance(part.sparsity, NM):
            value, gap = settled, gap[:0]
        found.append((settled, value, gap.ravel()))
    return max(found, key=lambda entry: entry[0])[1:]


def _evaluate(part: Part, shift: Float64 | None) -> tuple[float, Float64]:
    """The minimum of the right side, without the ½, if no weight had to be pruned, and what pruning each unit adds.

    shift: u, (groups, rows, columns), or None for zero. What pruning adds: (sets, units) as `units`.
    """
    w, d = part.weights, part.minorant[:, None, :]  # (groups, rows, columns), (groups, 1, columns)
    target, price, margin = w, 0.0, 0.0
    size = np.abs(w)
    if shift is not None:
        y = shift @ part.hessian - shift * d  # (groups, rows, columns)
        step = np.divide(y, d, out=np.zeros_like(y), where=d > 0)
        target = w + step
        price = float((step * y).sum() + (shift * y).sum())
        size = size + 2 * np.abs(step)  # no |w − ŵ| is larger where the minimum is reached
        # |R| ≤ r rᵀ with r = √diag H bounds the rounding of y, and with it that of uᵀy and of 2yᵀδ
        r = np.sqrt(np.diagonal(part.hessian, axis1=1, axis2=2))[:, None, :]
        pull = (np.abs(shift) * r).sum(axis=2)  # (groups, rows)
        margin = 8 * (w.shape[2] + 4) * _EPS * float((pull * (pull + (size * r).sum(axis=2))).sum())
    margin += 64 * _EPS * float((d * size * size).sum())
    pruned, kept = d * target * target, np.zeros_like(w)
    if part.grid is not None:
        scale, low, high = part.grid
        code = np.clip(np.rint(target / scale), low, high)
        # The grid's values are rounded to float32: 2^-24 of a neighbour's size makes the distance a lower bound.
        distance = np.abs(target - code * scale) - 2.0**-24 * (np.abs(code) + 1) * scale
        kept = d * np.maximum(distance, 0) ** 2
    return float(kept.sum()) - price - margin, units(pruned - kept, part.sparsity)


def _cheapest(gap: Float64, count: int) -> float:
    """The sum of the `count` smallest of each set. gap: (sets, units)."""
    return float(np.partition(gap, count - 1, axis=1)[:, :count].sum()) if count else 0.0
