"""Caches that the levels of one layer share, and the sum of their progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.level import Block, Level, Sparsity, Unstructured
from ..core.solution import Solution
from .exact.prune import Trace
from .linalg.inverse import Precision
from .linalg.threads import RowsDone


@dataclass
class Shared:
    """What earlier levels leave to later ones.

    traces: of the greedy, by `pattern_of` and precision; 12 bytes · groups · rows · columns each.
    pruned: solutions with float weights: the greedy's, and behind it the refined one, if masks are refined; 5 bytes ·
    groups · rows · columns each.
    """

    traces: dict[tuple[object, Precision], Trace] = field(default_factory=dict)
    pruned: dict[Sparsity, tuple[Solution, ...]] = field(default_factory=dict)

    def forget(self, later: Sequence[Level]) -> None:
        """Keep only what one of the later levels will ask for."""
        wanted = {level.sparsity for level in later if level.sparsity is not None}
        self.pruned = {sparsity: solutions for sparsity, solutions in self.pruned.items() if sparsity in wanted}
        patterns = {pattern_of(sparsity) for sparsity in wanted - self.pruned.keys()}
        self.traces = {key: trace for key, trace in self.traces.items() if key[0] in patterns}


def pattern_of(sparsity: Sparsity) -> object:
    """What the sparsities that one trace serves have in common: all fractions, those of blocks of one size, or N:M."""
    if isinstance(sparsity, Unstructured):
        return Unstructured
    return (Block, sparsity.size) if isinstance(sparsity, Block) else sparsity


class Passes:
    """A progress over all passes of a level together, each of which counts to `rows`.

    finished: rows of whole passes, over all of them. before: what is added, the rows of earlier levels.
    """

    def __init__(self, passes: int, rows: int, progress: RowsDone | None, before: int = 0) -> None:
        self._passes, self._rows, self._progress, self._before = passes, rows, progress, before
        self._told = 0
        self.finished = 0

    def __call__(self, done: int) -> None:
        """A pass has finished so many rows."""
        now = min((self.finished + done) // self._passes, self._rows)
        if self._progress is not None and now >= self._told:
            self._progress(self._before + now)
            self._told = now
        self.finished += self._rows if done == self._rows else 0

    def reach(self, passes: int) -> None:
        """So many passes are behind, whether they ran or an earlier level's were taken."""
        self.finished = passes * self._rows
        self(0)
