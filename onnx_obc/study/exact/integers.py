"""The optimum over the integers of a row, exactly: heuristics to begin with, then a sphere decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import Int32
from .descent import descend
from .problem import FOREVER, Codes, Limit, Proof, Rounding, in_steps
from .sphere import Tree


@dataclass(frozen=True, eq=False)
class Integers(Proof):
    """The best codes found, (n,) int32, and what is proven of them."""

    codes: Int32


def solve_integers(problem: Rounding, start: Codes | None = None, limit: Limit = FOREVER) -> Integers:
    """The codes of least loss; if `limit` ends the search, the best found and a bound that is proven all the same.

    start: codes (n,) of a heuristic, clipped to the box; the search begins from the better of them and its own. The
    codes do not depend on the unit of weights and scale.
    Raises ValueError if the problem is not as it describes, among others if its Hessian is not positive semidefinite.
    """
    lattice = in_steps(problem)
    tree = Tree.of(lattice)
    best = tree.start(lattice)
    if start is not None:
        given = descend(lattice, np.clip(start - lattice.zero, lattice.low, lattice.high))
        best = min(best, given, key=lattice.distance)
    found, open_loss, nodes = tree.search(best, lattice.distance(best), limit)
    codes = lattice.codes(found)
    loss = problem.loss(codes)
    bound = loss if open_loss is None else min(loss, lattice.unit * max(open_loss, 0.0))
    return Integers(loss, bound, nodes, codes)
