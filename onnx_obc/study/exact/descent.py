"""Descent by single columns on a lattice: with whole numbers, and in the box without them."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Float64
from ...solver.linalg.compiled import compiled
from .problem import Lattice

_SWEEPS = 200  # of coordinate descent in the box, a tenth of a millisecond: most bounds are right after it
_CHANGES = 4  # of the active set, per column; a search is right, if slower, wherever in the box this ends


def descend(lattice: Lattice, x: Float64) -> Float64:
    """From whole numbers x (n,) take the best step of a single one as long as there is one that gains; to (n,)."""
    found = x.copy()
    _descend(lattice.hessian, lattice.target, lattice.low, lattice.high, found)
    return found


def box_minimum(lattice: Lattice) -> Float64:
    """x̂: where q is least in the box without whole numbers, (n,) float64.

    The active set method of Stark and Parker (Bounded-variable least squares, 1995), begun by coordinate descent.
    """
    p, low, high = lattice.hessian, lattice.low, lattice.high
    x = np.clip(lattice.target, low, high)
    _descend_in_box(p, lattice.target, low, high, x)
    free = (x > low) & (x < high)
    for _ in range(_CHANGES * len(x)):
        pull, step = p @ (x - lattice.target), np.zeros_like(x)
        step[free] = -np.linalg.lstsq(p[np.ix_(free, free)], pull[free], rcond=1e-14)[0]
        room = np.full_like(x, np.inf)  # how many steps each column has to its bound
        np.divide(np.where(step > 0, high, low) - x, step, out=room, where=step != 0)
        j = int(np.argmin(room))
        x = np.clip(x + min(1.0, room[j]) * step, low, high)
        if room[j] < 1:
            x[j] = high[j] if step[j] > 0 else low[j]
            free[j] = False
            continue
        pull = p @ (x - lattice.target)
        gain = np.where(free | (low == high), 0, np.where(x == low, -pull, pull))
        j = int(np.argmax(gain))
        if gain[j] <= 1e-14 * (np.abs(p[j]) @ np.abs(x - lattice.target)):
            break
        free[j] = True
    return x


@compiled
def _pull(hessian: Float64, target: Float64, x: Float64) -> Float64:
    """P(x − a), (n,)."""
    n = x.size
    pull = np.zeros(n)
    for j in range(n):
        for i in range(n):
            pull[i] += hessian[j, i] * (x[j] - target[j])
    return pull


@compiled
def _descend_in_box(hessian: Float64, target: Float64, low: Float64, high: Float64, x: Float64) -> None:
    """Coordinate descent, in place."""
    n = x.size
    pull = _pull(hessian, target, x)
    for _ in range(_SWEEPS):
        moved = False
        for j in range(n):
            if hessian[j, j] > 0:
                goal = min(max(x[j] - pull[j] / hessian[j, j], low[j]), high[j])
                step = goal - x[j]
                if step != 0:
                    moved = moved or abs(step) > 1e-12
                    x[j] = goal
                    for i in range(n):
                        pull[i] += step * hessian[j, i]
        if not moved:
            break


@compiled
def _descend(hessian: Float64, target: Float64, low: Float64, high: Float64, x: Float64) -> None:
    """One-opt, in place."""
    n = x.size
    pull = _pull(hessian, target, x)
    while True:
        best, column, step = -1e-12, -1, 0
        for j in range(n):
            for t in (-1, 1):
                if low[j] <= x[j] + t <= high[j]:
                    change = hessian[j, j] + 2 * t * pull[j]
                    if change < best:
                        best, column, step = change, j, t
        if column < 0:
            return
        x[column] += step
        for i in range(n):
            pull[i] += step * hessian[column, i]
