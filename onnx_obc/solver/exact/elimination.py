"""The elimination engine of the exact greedy: one column at a time, all remaining ones re-optimised.

Every step picks the pivot p that costs least, gives the remaining weights their optimal update, and removes p from
the inverse Hessian by a rank-1 downdate (OBC Algorithm 1). Those downdates, one after the other, are a Cholesky
factorisation of H⁻¹ whose pivots depend on the weights, and they are computed as one: in epochs of about a hundred
steps. During an epoch only the pivots' own columns are formed, V,

    column p of the current inverse = A[:, p] − Vᵀ V[:, p]            V: (steps of the epoch, positions)

and at its end the positions that remain take all of them at once, A ← A − Vᵀ V: a product of matrices, at the full rate
of BLAS. Rows start from one shared A = H⁻¹; after its first epoch a row has its own, of which only the lower triangle
exists. To remove all d columns takes d³/3 operations for a row, not the 2d³ of downdating, and no copy of H⁻¹.

The diagonal of the current inverse and the weights are running float64 vectors; A and V have the precision of `base`.
Positions are the columns that can still be chosen, in ascending order; those that are gone are dropped with the epoch.
A row's result depends on nothing but that row: not on the rows or the threads that it was
computed with. Memory: one `Workspace` for every thread, besides the shared H⁻¹.

The kernels in `greedy` and `blocks` choose the pivots. Numba's cache on disk sees changes of a kernel's own file: after
changing this one, touch those.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.arrays import Float64
from ..linalg.blas import subtract_products
from ..linalg.compiled import compiled, compiled_finite, compiled_fma


class Workspace(threading.local):
    """Scratch of the kernels, made once for every thread that uses it.

    room:   (columns, columns), the lower triangle of a row's A. factor: (epoch + block, columns), V. Both of `base`'s
            dtype: about 4 · columns² bytes in float32.
    """

    def __init__(self, columns: int, dtype: npt.DTypeLike, block: int = 1) -> None:
        self.room: npt.NDArray[Any] = np.empty((columns, columns), dtype)
        self.factor: npt.NDArray[Any] = np.empty((epoch(columns) + block, columns), dtype)


@compiled
def epoch(size: int) -> int:
    """How many columns to remove before A takes them in; the longer, the more is done with V alone, which is slower."""
    return 32 + int(2 * np.sqrt(size))


@compiled_fma
def append_column(a: np.ndarray, factor: np.ndarray, k: int, q: int, size: int, pivot: float) -> None:
    """factor[k] = column q of the current inverse, A[:, q] − V[:k]ᵀ V[:k, q], over the root of its pivot."""
    out = factor[k]
    for j in range(q + 1):
        out[j] = a[q, j]
    for j in range(q + 1, size):
        out[j] = a[j, q]
    t = 0
    while t + 4 <= k:
        v0, v1, v2, v3 = factor[t], factor[t + 1], factor[t + 2], factor[t + 3]
        c0, c1, c2, c3 = v0[q], v1[q], v2[q], v3[q]
        for j in range(size):
            out[j] -= (c0 * v0[j] + c1 * v1[j]) + (c2 * v2[j] + c3 * v3[j])
        t += 4
    while t < k:
        v0 = factor[t]
        c0 = v0[q]
        for j in range(size):
            out[j] -= c0 * v0[j]
        t += 1
    for j in range(size):
        out[j] /= np.sqrt(pivot)


@compiled_fma
def eliminate(v: np.ndarray, shift: float, w: Float64, diagonal: Float64, low: Float64, size: int) -> None:
    """The weights' update and the diagonal's downdate for the column v that `append_column` made."""
    for j in range(size):
        w[j] -= shift * v[j]
        d = diagonal[j] - np.float64(v[j]) * v[j]
        diagonal[j] = d if d > low[j] else low[j]


@compiled
def rebase(a: np.ndarray, room: np.ndarray, factor: np.ndarray, k: int, gone: np.ndarray, size: int) -> np.ndarray:
    """room = A − V[:k]ᵀ V[:k] on the positions that are not gone, the lower triangle; returns those, ascending.

    `a` may be `room` itself: nothing is overwritten before it is read.
    """
    stay = np.flatnonzero(gone[:size] == 0)
    for t in range(stay.size):
        source, target = a[stay[t]], room[t]
        for j in range(t + 1):
            target[j] = source[stay[j]]
    for t in range(k):
        v = factor[t]
        for j in range(stay.size):
            v[j] = v[stay[j]]
    subtract_products(room, factor, stay.size, k)
    return stay


@compiled_finite
def lowest(values: Float64, size: int) -> int:
    """The first position of the minimum."""
    a = b = c = d = e = f = g = h = values[0]  # eight minima side by side, or each comparison waits for the last one
    j = 0
    while j + 8 <= size:
        a, b, c, d = min(a, values[j]), min(b, values[j + 1]), min(c, values[j + 2]), min(d, values[j + 3])
        e, f, g, h = min(e, values[j + 4]), min(f, values[j + 5]), min(g, values[j + 6]), min(h, values[j + 7])
        j += 8
    while j < size:
        a = min(a, values[j])
        j += 1
    least = min(min(min(a, b), min(c, d)), min(min(e, f), min(g, h)))
    j = 0
    while values[j] != least and j < size - 1:
        j += 1
    return j
