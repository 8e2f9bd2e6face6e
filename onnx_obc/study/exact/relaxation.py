"""A certified lower bound on the loss of a row's integers: Shor's semidefinite relaxation with box.

In steps of the grid, counted from ⌊a⌋ so that y = x − ⌊a⌋ and u = a − ⌊a⌋, the loss is (u − y)ᵀP(u − y). With Y for yyᵀ
all whole numbers l ≤ y ≤ h satisfy (Park and Boyd, A semidefinite programming method for integer convex quadratic
minimization, 2018; the last is the box, without which the bound says little of a coarse grid)

    ⎡ Y  y ⎤
    ⎣ yᵀ 1 ⎦ ⪰ 0,    diag Y ≥ y,    diag Y ≤ (l + h) ∘ y − l ∘ h

over which tr PY − 2uᵀPy + uᵀPu is minimised. The multipliers λ, μ ≥ 0 of the last two make the Lagrangian

    (u − y)ᵀP(u − y) − Σⱼ λⱼ yⱼ(yⱼ − 1) + Σⱼ μⱼ (yⱼ − lⱼ)(yⱼ − hⱼ)

which is not above the loss at any allowed y. Where M = P − diag λ + diag μ is positive definite its minimum over all
real y is a bound, whatever the solver made of the multipliers. So they are the certificate: clipped to what is allowed,
given up in part until a Cholesky factorisation proves M positive definite, and the minimum less what rounding can make
of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array

from ...core.arrays import Float64, Int32
from ...core.errors import RecipeError
from .descent import descend
from .minorant import positive_definite
from .problem import Lattice, Rounding, in_steps

_EPS = float(np.finfo(np.float64).eps)
_TOLERANCE = (
    1e-8  # of the solver, in units of a heuristic's loss; with less it often stops short of it, and further away
)
_SMALLEST = 1e-8  # that unit, at least, in units of P's mean diagonal
_SAMPLES = 3  # per column
_PARTS = (0.0, *10.0 ** np.arange(-10, -0.5, 0.5))  # of the multipliers, given up to make M positive definite
_SHIFTS = (0.0, *10.0 ** np.arange(-13, 0.5))  # of M's diagonal, where that is not enough: a semidefinite P


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What the relaxation says of the integers of a row.

    bound: ½ δᵀHδ of no codes is lower, rounding included. primal: the minimum of the relaxation as the solver has it;
    the bound misses it by what the solver left open, mostly 1e-8 of it. codes: (n,) int32, the best of the samples,
    rounded and descended; loss: theirs.
    """

    bound: float
    primal: float
    codes: Int32
    loss: float


def relax_integers(problem: Rounding, seed: int = 0) -> Relaxed:
    """Bound the least loss from below by a certificate, and from above by rounding 3n samples of N(y, Y − yyᵀ).

    Takes a third of a second for 36 columns, two and a half for 63, and cannot be interrupted. seed: of the samples.
    Raises ValueError if the problem is not as it describes, RecipeError if Clarabel is not installed.
    """
    lattice = in_steps(problem)
    nearest = descend(lattice, np.clip(np.rint(lattice.target), lattice.low, lattice.high))
    codes = lattice.codes(nearest)
    if lattice.distance(nearest) <= 0 or (lattice.low == lattice.high).all():
        loss = problem.loss(codes)
        return Relaxed(loss, loss, codes, loss)
    offset = _Offset.of(lattice)
    up, down, moments = _solve(offset, max(lattice.distance(nearest), _SMALLEST))
    centre = offset.aim + moments[-1, :-1]
    spread = moments[:-1, :-1] - np.outer(moments[-1, :-1], moments[-1, :-1])  # Y − yyᵀ
    primal = float((offset.hessian * spread).sum()) + offset.distance(centre)
    codes = lattice.codes(min(_rounded(offset, centre, spread, seed), key=lattice.distance))
    loss = problem.loss(codes)
    return Relaxed(min(lattice.unit * _certify(offset, up, down), loss), lattice.unit * primal, codes, loss)


@dataclass(frozen=True, eq=False)
class _Offset:
    """The columns of a lattice that are free, k of n, as y = x − base.

    hessian: (k, k) float64, P of those columns. base: ⌊a⌋, or the nearest to it whose successor is in the box too. low,
    high, aim: (k,) float64, l ≤ 0, h ≥ 1, and u, the real y of least loss.
    """

    lattice: Lattice
    free: npt.NDArray[np.intp]
    hessian: Float64
    base: Float64
    low: Float64
    high: Float64
    aim: Float64

    @classmethod
    def of(cls, lattice: Lattice) -> _Offset:
        free = np.flatnonzero(lattice.high > lattice.low)
        hessian = lattice.hessian[np.ix_(free, free)]
        low, high, aim = lattice.low[free], lattice.high[free], lattice.target[free]
        base = np.clip(np.floor(aim), low, high - 1)
        if len(free) < len(lattice.target):  # what is not free pulls on what is
            still = np.where(lattice.high > lattice.low, 0, lattice.low - lattice.target)
            aim = aim - np.linalg.lstsq(hessian, lattice.hessian[free] @ still, rcond=1e-14)[0]
        return cls(lattice, free, hessian, base, low - base, high - base, aim - base)

    def whole(self, y: Float64) -> Float64:
        """The x (n,) of a y (k,)."""
        x = self.lattice.low.copy()
        x[self.free] = self.base + y
        return x

    def distance(self, y: Float64) -> float:
        """The loss of a y (k,), in the lattice's unit."""
        return self.lattice.distance(self.whole(y))

    def pull(self, y: Float64) -> Float64:
        """Half the gradient of it, (k,)."""
        return np.asarray(self.lattice.hessian[self.free] @ (self.whole(y) - self.lattice.target))


def _solve(offset: _Offset, unit: float) -> tuple[Float64, Float64, Float64]:
    """λ and μ, (k,) each, and [[Y, y], [yᵀ, 1]], (k + 1, k + 1), counted from u, for P in this unit.

    The solver gets the dual, which has a variable for each multiplier and not for each entry of Y: minimise
    γ + Σⱼ λⱼuⱼ(uⱼ − 1) − Σⱼ μⱼ(uⱼ − lⱼ)(uⱼ − hⱼ), where [[M, v], [vᵀ, γ]] ⪰ 0, v = −λ ∘ (u − ½) + μ ∘ (u − ½(l + h)).
    Where l = 0 and h = 1 both constraints are one equation: λ may be negative, and there is no μ.
    """
    clarabel = _clarabel()
    u, k = offset.aim, len(offset.aim)
    wide = np.flatnonzero(offset.high - offset.low > 1)
    w, low, high = len(wide), offset.low[wide], offset.high[wide]
    column, row = np.tril_indices(k + 1)  # the upper triangle, column by column
    weight = np.where(row == column, 1.0, np.sqrt(2.0))
    size, gamma = len(row), k + w
    own = np.arange(k) * (np.arange(k) + 3) // 2  # where (j, j) is, and (j, k)
    last = k * (k + 1) // 2 + np.arange(k)
    lambdas, mus = np.arange(k), np.arange(k, k + w)
    entries = [  # value, row and column of A, for A · (λ, μ, γ) + s = b, s in the cones
        (-1.0, np.arange(w), wide),
        (-1.0, np.arange(w, 2 * w), mus),
        (1.0, 2 * w + own, lambdas),
        (np.sqrt(2.0) * (u - 0.5), 2 * w + last, lambdas),
        (-1.0, 2 * w + own[wide], mus),
        (-np.sqrt(2.0) * (u[wide] - 0.5 * (low + high)), 2 * w + last[wide], mus),
        (-1.0, np.array([2 * w + size - 1]), np.array([gamma])),
    ]
    values = np.concatenate([np.broadcast_to(value, place.shape) for value, place, _ in entries])
    places = (np.concatenate([place for _, place, _ in entries]), np.concatenate([of for _, _, of in entries]))
    constant = np.zeros((k + 1, k + 1))
    constant[:k, :k] = offset.hessian / unit
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads, settings.direct_solve_method = False, 1, "faer"
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _TOLERANCE
    solution = clarabel.DefaultSolver(
        csc_array((gamma + 1, gamma + 1)),
        np.concatenate([u * (u - 1), -(u[wide] - low) * (u[wide] - high), [1.0]]),
        csc_array((values, places), shape=(2 * w + size, gamma + 1)),
        np.concatenate([np.zeros(2 * w), constant[row, column] * weight]),
        [clarabel.NonnegativeConeT(2 * w)] * bool(w) + [clarabel.PSDTriangleConeT(k + 1)],
        settings,
    ).solve()
    x, z = (np.nan_to_num(np.array(part)) for part in (solution.x, solution.z))
    mu, moments = np.zeros(k), np.zeros((k + 1, k + 1))
    mu[wide] = x[mus]
    moments[row, column] = moments[column, row] = z[2 * w :] / weight
    return x[:k] * unit, mu * unit, moments / (moments[-1, -1] or 1.0)


def _certify(offset: _Offset, up: Float64, down: Float64) -> float:
    """The best bound that the multipliers λ and μ prove, given up in part, in the lattice's unit."""
    binary = offset.high - offset.low == 1
    up, down = np.where(binary, up, np.maximum(up, 0)), np.where(binary, 0, np.maximum(down, 0))
    best = 0.0
    for part in _PARTS:
        for shift in _SHIFTS:
            lam = up - part * np.abs(up)
            less = np.where(binary, shift, np.minimum(lam, shift))
            value = _minimum(offset, lam - less, (1 + part) * down + shift - less)
            if value is not None:
                best = max(best, value)
                break
    return best


def _minimum(offset: _Offset, lam: Float64, mu: Float64) -> float | None:
    """A number just below the minimum of the Lagrangian; None if M is not proved positive definite."""
    low, high, k = offset.low, offset.high, len(lam)
    matrix = offset.hessian + np.diag(mu - lam)  # M, (k, k)
    least = 0.5 * float(np.linalg.eigvalsh(matrix)[0])
    if not (least > 0 and positive_definite(matrix - least * np.eye(k), k)):
        return None
    middle = 0.5 * (low + high)
    y = np.asarray(np.linalg.solve(matrix, lam * -0.5 + mu * middle - offset.pull(np.zeros(k))), np.float64)
    terms = np.array([lam * y * (1 - y), mu * (y - low) * (y - high)])
    # The gradient at y is zero but for rounding. Of half of it, r, the minimum is at most rᵀM⁻¹r below the value at y.
    rest = np.abs(offset.pull(y) - lam * (y - 0.5) + mu * (y - middle))
    size, error = np.abs(offset.lattice.hessian), np.abs(offset.whole(y) - offset.lattice.target)
    rounding = 4 * (len(error) + 4) * _EPS
    rest += rounding * (size[offset.free] @ error + lam * (np.abs(y) + 1) + mu * (np.abs(y) + high - low))
    slack = rounding * float(error @ size @ error + np.abs(terms).sum()) + float(rest @ rest) / least
    return offset.distance(y) + float(terms.sum()) - slack


def _rounded(offset: _Offset, centre: Float64, spread: Float64, seed: int) -> list[Float64]:
    """Samples of N(centre, spread) and the centre, rounded and descended: whole numbers (n,) each."""
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.maximum(values, 0))  # (k, k)
    random = np.random.default_rng(seed).standard_normal((_SAMPLES * len(offset.lattice.target), len(centre)))
    samples = np.clip(np.rint(np.vstack([centre, centre + random @ root.T])), offset.low, offset.high)
    return [descend(offset.lattice, offset.whole(y)) for y in np.unique(samples, axis=0)]


def _clarabel() -> Any:
    """Clarabel. Raises RecipeError if it is not installed."""
    try:
        import clarabel
    except ImportError:
        raise RecipeError("the semidefinite bound needs Clarabel; pip install 'onnx-obc[study]'") from None
    return clarabel
