"""What a mask may prune, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import Bool, Float64
from ...core.level import NM, Block, Sparsity


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


def removal(inverse: Float64, weight: Float64, gone: Bool) -> float:
    """Twice the loss with these columns gone, w_Sᵀ ([H⁻¹]_SS)⁻¹ w_S."""
    own = weight[gone]  # (columns gone,)
    return float(own @ np.linalg.solve(inverse[np.ix_(gone, gone)], own))
