"""What a mask may prune, and good masks to begin with: the exact greedy, then exchanges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import Bool, Float64
from ...core.level import NM, Block, Sparsity
from ...solver.linalg.inverse import invert

_GAIN = 1e-12  # the fraction of the loss that an exchange must gain


@dataclass(frozen=True)
class Pattern:
    """`pruned` of every `per` consecutive units of `size` columns."""

    size: int
    per: int
    pruned: int

    @classmethod
    def of(cls, sparsity: Sparsity, n: int) -> Pattern:
        """For n columns. Raises ValueError if they are not a whole number of groups or blocks."""
        size = sparsity.size if isinstance(sparsity, Block) else 1
        if n % (sparsity.m if isinstance(sparsity, NM) else size):
            raise ValueError(f"sparsity {sparsity}: {n} columns are not a whole number of groups")
        if isinstance(sparsity, NM):
            return cls(1, sparsity.m, sparsity.m - sparsity.n)
        units = n // size
        return cls(size, units, min(max(round(sparsity.sparsity * units), 0), units))

    def columns(self, units: Bool) -> Bool:
        """(units,) to (columns,)."""
        return np.repeat(units, self.size)

    def counts(self, units: Bool) -> np.ndarray:
        """How many are True in each set, (sets,)."""
        return np.asarray(units.reshape(-1, self.per).sum(axis=1))

    def greedy(self, inverse: Float64, weight: Float64) -> Bool:
        """The exact greedy of Optimal Brain Surgeon. Returns which units are gone, (units,)."""
        a, x = inverse.copy(), weight.copy()
        own = np.arange(len(x)).reshape(-1, self.size)  # (units, size)
        gone = np.zeros(len(own), bool)
        for _ in range(self.pruned * len(own) // self.per):
            full = np.repeat(self.counts(gone) == self.pruned, self.per)  # (units,)
            open_ = np.flatnonzero(~gone & ~full)
            u = open_[np.argmin(costs(a, x, own[open_]))]
            j = own[u]
            gain = np.linalg.solve(a[np.ix_(j, j)], a[j]).T  # (columns, size)
            x -= gain @ x[j]
            a -= gain @ a[j]
            gone[u] = True
        return gone

    def exchange(self, hessian: Float64, weight: Float64, gone: Bool) -> Bool:
        """Exchange a unit that is gone for one that stays, always the best pair, as long as the loss falls, and at most
        ten times as often as there are units: of a Hessian that is singular to rounding losses are noise."""
        own = np.arange(len(weight)).reshape(-1, self.size)  # (units, size)
        part, gone = np.arange(len(own)) // self.per, gone.copy()
        for _ in range(10 * len(own)):
            out, stay = np.nonzero(gone[:, None] & ~gone & (part[:, None] == part))
            if not len(out):
                return gone
            tableau, state, loss = _transform(hessian, weight, ~self.columns(gone))
            change = -costs(tableau, state, np.hstack([own[out], own[stay]]))  # (pairs,)
            best = int(np.argmin(change))
            if not change[best] < -_GAIN * loss:
                return gone
            gone[out[best]], gone[stay[best]] = False, True
        return gone


def costs(matrix: Float64, x: Float64, chosen: np.ndarray) -> Float64:
    """x_Jᵀ (A_JJ)⁻¹ x_J for each row J of `chosen`, (k, size). Returns (k,) float64."""
    parts = matrix[chosen[:, :, None], chosen[:, None, :]]  # (k, size, size)
    own = x[chosen]  # (k, size)
    return np.asarray((own * np.linalg.solve(parts, own[:, :, None])[:, :, 0]).sum(axis=1))


def _transform(hessian: Float64, weight: Float64, mask: Bool) -> tuple[Float64, Float64, float]:
    """The principal pivot transform of H at a mask, the row's state, and twice its loss, as `refine.pivot` has them."""
    kept, gone = np.flatnonzero(mask), np.flatnonzero(~mask)
    tableau, state = np.empty_like(hessian), weight.copy()
    inverse = invert(hessian[np.ix_(kept, kept)])
    cross = inverse @ hessian[np.ix_(kept, gone)]  # (kept, gone)
    rest = hessian[np.ix_(gone, gone)] - hessian[np.ix_(gone, kept)] @ cross
    tableau[np.ix_(kept, kept)], tableau[np.ix_(gone, gone)] = -inverse, rest
    tableau[np.ix_(kept, gone)], tableau[np.ix_(gone, kept)] = cross, cross.T
    state[kept] += cross @ weight[gone]
    state[gone] = rest @ weight[gone]
    return tableau, state, float(weight[gone] @ state[gone])


def removal(inverse: Float64, weight: Float64, gone: Bool) -> float:
    """Twice the loss with these columns gone."""
    return float(costs(inverse, weight, np.flatnonzero(gone)[None])[0])
