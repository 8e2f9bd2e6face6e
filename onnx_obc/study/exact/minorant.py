"""Diagonals below a Hessian: D ⪯ H makes every weight's error cost at least its own share, δᵀHδ ≥ Σⱼ Dⱼδⱼ².

The largest Σⱼ Dⱼ is a semidefinite program. Its barrier problem, max Σⱼ Dⱼ + μ log det(H − D), is solved coordinate by
coordinate: with S = (H − D)⁻¹ the best change of Dⱼ alone is 1/Sⱼⱼ − μ, and S follows by an update of rank one.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Float64
from ...solver.linalg.compiled import compiled

_BARRIER = np.array([0.3, 0.1, 0.03, 0.01])  # μ, falling, in units of the mean diagonal of what is to be bounded
_FIRST, _LATER = 5, 2  # sweeps at each μ; and for the rest of the columns, from the D before


def minorants(hessian: Float64, first: int, mean: float) -> Float64:
    """D for the columns k, k + 1, … of H, for each k from `first` on; zero where there is none.

    hessian: (n, n) float64, positive definite from `first` on. mean: what μ is in units of. Returns (n, n) float64,
    row k zero before k. That each H − D is positive semidefinite is proved by a Cholesky factorisation.
    """
    found = np.zeros_like(hessian)
    if first < len(hessian):
        _ascend(hessian, first, _BARRIER * mean, found)
    return found


@compiled
def _ascend(hessian: Float64, first: int, barrier: Float64, found: Float64) -> None:
    """Write the rows of `found`."""
    n = len(hessian)
    d = np.zeros(n)
    for k in range(first, n):
        size = n - k
        rest = hessian[k:, k:].copy()
        for i in range(size):
            rest[i, i] -= d[k + i]
        inverse = np.linalg.inv(rest)
        sweeps = _FIRST * barrier.size if k == first else _LATER
        for sweep in range(sweeps):
            mu = barrier[min(sweep // _FIRST, barrier.size - 1)] if k == first else barrier[barrier.size - 1]
            for i in range(size):
                change = max(1 / inverse[i, i] - mu, -d[k + i])
                row = inverse[i].copy()
                factor = change / (1 - change * row[i])
                d[k + i] += change
                for p in range(size):
                    for q in range(size):
                        inverse[p, q] += factor * row[p] * row[q]
        rest[:] = hessian[k:, k:]
        for i in range(size):
            rest[i, i] -= d[k + i]
        if positive_definite(rest, size):
            for i in range(size):
                found[k, k + i] = d[k + i]
        else:
            d[:] = 0


@compiled
def positive_definite(matrix: Float64, size: int) -> bool:
    """Whether the leading `size` rows and columns are, by the Cholesky factorisation, which takes their place.

    If it succeeds A + E is positive definite for some |Eᵢⱼ| ≤ γ √(aᵢᵢaⱼⱼ), γ about (size + 1) ε/2 (Demmel 1989; Higham,
    Accuracy and Stability of Numerical Algorithms, theorem 10.3): a margin on the diagonal makes up for it.
    """
    margin = (size + 4) ** 2 * np.finfo(np.float64).eps
    for j in range(size):
        pivot = matrix[j, j] * (1 - margin)
        for k in range(j):
            pivot -= matrix[j, k] * matrix[j, k]
        if not pivot > 0:
            return False
        root = np.sqrt(pivot)
        matrix[j, j] = root
        for i in range(j + 1, size):
            value = matrix[i, j]
            for k in range(j):
                value -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = value / root
    return True
