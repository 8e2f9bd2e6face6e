"""The problem of rounding a few columns of a row, what is proven of its solution, and when a search stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...core.arrays import Float64

Codes: TypeAlias = npt.NDArray[np.integer]

_SLICE = 2**14  # nodes, some hundredths of a second: after them a search looks at the clock and can be interrupted


@dataclass(frozen=True)
class Limit:
    """When a search gives up: after so many nodes, or at this time of `time.monotonic`; None: never."""

    nodes: int | None = None
    deadline: float | None = None

    def slices(self) -> Iterator[int]:
        """How many nodes may come next, until the limit is reached."""
        left = self.nodes
        while (left is None or left > 0) and (self.deadline is None or time.monotonic() < self.deadline):
            size = _SLICE if left is None else min(_SLICE, left)
            yield size
            left = None if left is None else left - size


FOREVER = Limit()


@dataclass(frozen=True, eq=False)
class Proof:
    """What a search found, and what it proved.

    loss: ½ δᵀHδ of the solution found. bound: no solution loses less, but for rounding; it is the loss itself where the
    whole tree was searched. nodes: how many were looked at.
    """

    loss: float
    bound: float
    nodes: int

    @property
    def proven(self) -> bool:
        """Whether the solution is the optimum."""
        return self.bound >= self.loss


@dataclass(frozen=True, eq=False)
class Rounding:
    """Minimise ½ δᵀHδ over the integers of a row, δ = w − scale · (code − zero_point), low ≤ code ≤ high.

    weight: (n,) float64. hessian: (n, n) float64, symmetric and positive semidefinite; for H = 2 X Xᵀ / n it is the
    layer loss of the row. scale, positive, and the integers low, high and zero_point: one for all columns, or (n,).
    """

    weight: Float64
    hessian: Float64
    scale: float | Float64
    low: int | Codes
    high: int | Codes
    zero_point: int | Codes = 0

    def values(self, codes: Codes) -> Float64:
        """What the codes (n,) stand for, (n,) float64."""
        return np.asarray((codes - np.asarray(self.zero_point)) * np.asarray(self.scale, np.float64))

    def loss(self, codes: Codes) -> float:
        """½ δᵀHδ of the codes (n,)."""
        delta = self.weight - self.values(codes)
        return max(0.5 * float(delta @ self.hessian @ delta), 0.0)


@dataclass(frozen=True, eq=False)
class Lattice:
    """The same problem in steps of the grid: the loss is unit · (a − x)ᵀP(a − x), x = code − zero point.

    hessian: P, (n, n) float64, of mean diagonal 1 unless it is zero. target: a, (n,) float64. low, high: of x, (n,)
    float64, whole numbers. zero: the zero points, (n,) float64.
    """

    hessian: Float64
    target: Float64
    low: Float64
    high: Float64
    zero: Float64
    unit: float

    def distance(self, x: Float64) -> float:
        """(a − x)ᵀP(a − x)."""
        error = self.target - x
        return float(error @ self.hessian @ error)

    def codes(self, x: Float64) -> npt.NDArray[np.int32]:
        """The codes of whole numbers x, (n,)."""
        return np.asarray(np.rint(x + self.zero), np.int32)


def in_steps(problem: Rounding) -> Lattice:
    """The problem as a lattice. Raises ValueError if it holds something that is not as its description says."""
    n = len(problem.weight)
    scale, low, high, zero = (
        np.broadcast_to(np.asarray(part, np.float64), (n,))
        for part in (problem.scale, problem.low, problem.high, problem.zero_point)
    )
    check_hessian(problem.hessian, problem.weight)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("scale: it must be positive")
    if not all((np.isfinite(part) & (part == np.rint(part))).all() for part in (low, high, zero)) or (low > high).any():
        raise ValueError("low, high, zero_point: they must be whole numbers, and low at most high")
    raw = problem.hessian * scale[:, None] * scale
    mean = float(np.diagonal(raw).mean())
    unit = mean if mean > 0 else 1.0
    return Lattice(raw / unit, problem.weight / scale, low - zero, high - zero, zero, 0.5 * unit)


def check_hessian(hessian: Float64, weight: Float64) -> None:
    """Raises ValueError unless they are finite and fit each other, and the Hessian is symmetric."""
    if weight.ndim != 1 or not len(weight) or hessian.shape != (len(weight), len(weight)):
        raise ValueError(f"hessian: of shape {hessian.shape}, for weights of shape {weight.shape}")
    if not (np.isfinite(hessian).all() and np.isfinite(weight).all()):
        raise ValueError("hessian, weight: they must be finite")
    if np.abs(hessian - hessian.T).max() > 1e-9 * np.abs(hessian).max():
        raise ValueError("hessian: it must be symmetric")
