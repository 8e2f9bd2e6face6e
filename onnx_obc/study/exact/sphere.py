"""A sphere decoder with box: the search tree over the integers of a row.

In steps of the grid the loss is q(x) = (a − x)ᵀP(a − x), l ≤ x ≤ h. Around any x̂ with gradient g = 2P(x̂ − a)

    q(x) = q(x̂) + Σⱼ gⱼ(xⱼ − x̂ⱼ) + (x − x̂)ᵀP(x − x̂)

At the box's continuous optimum x̂ each gⱼ(xⱼ − x̂ⱼ) is at least 0 for all x in the box: what clipping costs is paid at
the root, and the tree looks for integers near x̂. P = GᵀDG, G lower triangular with ones on its diagonal, makes the
last term a sum in which a column depends on those before it alone (Fincke and Pohst 1985). A node is a choice for the
first columns. Its children are taken cheapest first (Schnorr and Euchner 1994), and it is left when what it has spent
and what the other columns must still spend, which `minorant` bounds, reach the loss of the best solution known.

Columns are sorted as Wübben et al. (2001) sort a QR decomposition: decided last is the one with the least diagonal of
P, before it the one with the least that is left when this one is at its best, and so on. The large pivots come first,
where they cut most. To take the least conditional variance first (V-BLAST) is a little better for most rows of real
layers and several times worse for the hardest.

P may be semidefinite: what is zero to rounding is taken as zero, and nothing is added to it. A column whose pivot is
zero costs nothing of its own, and all its integers are children; a null space of many columns makes a wide tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.arrays import Float64
from ...solver.linalg.compiled import compiled, compiled_finite
from .descent import box_minimum, descend
from .minorant import minorants
from .problem import Lattice, Limit

_ROUNDING = 1e-15  # per column: an eigenvalue this small against the largest is zero
_ORTHOGONAL = 1e-24  # so much of a column's square is left where the others span it
_SINGULAR = 1e-10  # smaller pivots are not divided by, and below −it nothing is rounding


@dataclass(frozen=True, eq=False)
class Tree:
    """The search tree of a lattice, its columns in the order that they are decided in.

    order: (n,). factor: G. spread: the transpose of G⁻¹. root: q(x̂) and all that can be gained below.
    columns: (6, n) float64: the diagonal of D, x̂, g, the least of g(x − x̂) over the box (0 but for rounding), l, h.
    shares: (2, n, n) float64, row k for the columns from k on: a minorant M, and g / 2M.
    """

    order: npt.NDArray[np.intp]
    factor: Float64
    spread: Float64
    columns: Float64
    shares: Float64
    root: float

    @classmethod
    def of(cls, lattice: Lattice) -> Tree:
        """Raises ValueError if P is not positive semidefinite."""
        middle = box_minimum(lattice)
        error = middle - lattice.target
        pull = 2 * lattice.hessian @ error  # (n,)
        pull[np.abs(pull) <= len(pull) * 1e-15 * (np.abs(lattice.hessian) @ np.abs(error))] = 0
        least = np.minimum(pull * (lattice.low - middle), pull * (lattice.high - middle))
        order, factor, pivots = _factorise(lattice.hessian)
        columns = np.stack([pivots, *(part[order] for part in (middle, pull, least, lattice.low, lattice.high))])
        singular = np.flatnonzero(pivots <= _SINGULAR * np.diagonal(lattice.hessian)[order])
        first = int(singular[-1]) + 1 if len(singular) else 0
        share = minorants(lattice.hessian[np.ix_(order, order)], first, float(pivots.mean()))
        with np.errstate(divide="ignore", invalid="ignore"):
            lean = np.where(columns[2] == 0, 0, columns[2] / (2 * share))  # infinite where the share is zero
        spread = np.ascontiguousarray(np.linalg.inv(factor).T)
        root = lattice.distance(middle) + float(least.sum())
        return cls(order, factor, spread, columns, np.stack([share, lean]), root)

    def start(self, lattice: Lattice) -> Float64:
        """Whole numbers (n,) to begin with: the better of rounding a and of rounding x̂ column by column, descended."""
        nearest = np.clip(np.rint(lattice.target), lattice.low, lattice.high)
        _, middle, _, _, low, high = self.columns
        x, error = np.empty_like(middle), np.zeros_like(middle)
        for k in range(len(x)):  # Babai 1986
            x[k] = np.clip(np.rint(middle[k] + self.factor[k] @ error), low[k], high[k])
            error[k] = middle[k] - x[k]
        return min((descend(lattice, each) for each in (nearest, self.back(x))), key=lattice.distance)

    def back(self, x: Float64) -> Float64:
        """From the order of the tree to that of the lattice."""
        found = np.empty_like(x)
        found[self.order] = x
        return found

    def search(self, start: Float64, radius: float, limit: Limit) -> tuple[Float64, float | None, int]:
        """The best whole numbers (n,); the least q of an open node, None if there is none; how many nodes were seen."""
        n = len(self.order)
        levels, centres = np.empty((5, n)), np.empty((n, n))
        centres[0] = self.columns[1]
        _enter(self.columns, centres, levels, 0, 0.0)
        where, best, least = np.zeros(2, np.int64), start[self.order], np.array([radius - self.root])
        for most in limit.slices():
            _search(self.spread, self.columns, self.shares, levels, centres, where, best, least, most)
            if where[0] < 0:
                return self.back(best), None, int(where[1])
        still = _open(self.columns, centres, levels, int(where[0]))
        return self.back(best), self.root + max(still, 0), int(where[1])


def _factorise(hessian: Float64) -> tuple[npt.NDArray[np.intp], Float64, Float64]:
    """The order of the columns, G and the diagonal of D in that order, P = GᵀDG. Raises ValueError.

    By a sorted QR decomposition of a square root of P. Elimination in P itself, least diagonal first, would lose all
    digits where P is nearly singular.
    """
    n = len(hessian)
    own = np.diagonal(hessian)  # (n,)
    root = np.sqrt(np.maximum(own, 0))
    divisor = np.where(root > 0, root, 1.0)
    values, vectors = np.linalg.eigh(hessian / np.outer(divisor, divisor))
    if values[0] < -_SINGULAR:
        raise ValueError("hessian: it must be positive semidefinite")
    values[values < _ROUNDING * n * values[-1]] = 0
    rest = np.sqrt(values)[:, None] * vectors.T * root  # (n, n), P = restᵀ rest
    left, order = np.ones(n, bool), np.empty(n, np.intp)
    rows, pivots = np.zeros((n, n)), np.zeros(n)
    for k in range(n - 1, -1, -1):
        square = (rest * rest).sum(axis=0)
        j = order[k] = int(np.argmin(np.where(left, square, np.inf)))
        left[j] = False
        if square[j] > _ORTHOGONAL * own[j]:
            pivots[k] = square[j]
            rows[k, left] = rest[:, j] @ rest[:, left] / square[j]
            rest -= np.outer(rest[:, j], rows[k])
    factor = rows[:, order]
    np.fill_diagonal(factor, 1)
    return order, factor, pivots


@compiled_finite
def _search(
    spread: Float64,
    columns: Float64,
    shares: Float64,
    levels: Float64,
    centres: Float64,
    where: np.ndarray,
    best: Float64,
    least: Float64,
    most: int,
) -> None:
    """Look at up to `most` nodes more, depth first.

    levels: (5, n), for each level its next integer above and below, where its integers cost least, what the columns
    before have spent, and the integer chosen. centres: (n, n), row k for the columns from k on: where they would be
    without the box, given those before. where: the level, −1 when there is nothing left, and the nodes so far.
    best, least: the best whole numbers and what they cost.
    """
    n = best.size
    middle, pull, free, low, high = columns[1], columns[2], columns[3], columns[4], columns[5]
    k = where[0]
    last = where[1] + most
    while where[1] < last:
        x = _next(columns, levels, k)
        spent = levels[3, k] + _cost(columns, centres, k, x)
        if x > high[k] or spent >= least[0]:
            k -= 1  # all others of this level cost more
            if k < 0:
                break
            continue
        if x == levels[0, k]:
            levels[0, k] += 1
        else:
            levels[1, k] -= 1
        where[1] += 1
        levels[4, k] = x
        if k == n - 1:
            least[0] = spent
            best[:] = levels[4]
            continue
        shift = x - centres[k, k]
        still = spent
        for i in range(k + 1, n):
            centre = centres[k, i] + spread[k, i] * shift
            centres[k + 1, i] = centre
            y = min(max(np.rint(centre - shares[1, k + 1, i]), low[i]), high[i])
            still += shares[0, k + 1, i] * (y - centre) ** 2 + pull[i] * (y - middle[i]) - free[i]
        if still < least[0]:
            k += 1
            _enter(columns, centres, levels, k, spent)
    where[0] = k


@compiled
def _enter(columns: Float64, centres: Float64, levels: Float64, k: int, spent: float) -> None:
    """Begin with the children of a node: integers from the cheapest on, alternately above and below."""
    pivot, pull, low, high = columns[0, k], columns[2, k], columns[4, k], columns[5, k]
    aim = centres[k, k]
    if pull != 0:
        aim -= pull / (2 * pivot)  # infinite if the pivot is zero
    first = min(max(np.rint(aim), low), high)
    levels[0, k], levels[1, k], levels[2, k], levels[3, k] = first, first - 1, aim, spent


@compiled
def _next(columns: Float64, levels: Float64, k: int) -> float:
    """The cheapest integer of a level that was not taken; h + 1 if there is none."""
    above, below, aim = levels[0, k], levels[1, k], levels[2, k]
    if below < columns[4, k] or (above <= columns[5, k] and above - aim <= aim - below):
        return float(above)
    return float(below)


@compiled
def _cost(columns: Float64, centres: Float64, k: int, x: float) -> float:
    """What the integer adds to the loss."""
    off = x - centres[k, k]
    return float(columns[0, k] * off * off + columns[2, k] * (x - columns[1, k]) - columns[3, k])


@compiled
def _open(columns: Float64, centres: Float64, levels: Float64, k: int) -> float:
    """The least that a node costs which was not looked at, on the way to level k."""
    least = np.inf
    for level in range(k + 1):
        x = _next(columns, levels, level)
        if x <= columns[5, level]:
            least = min(least, levels[3, level] + _cost(columns, centres, level, x))
    return least
