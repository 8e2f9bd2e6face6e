"""What an engine is: something that runs ONNX files, can be timed, and says what it does inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import multimode
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..core.arrays import Feed


@dataclass(frozen=True)
class Kernel:
    """One operation that an engine runs for a file.

    name, op: as the engine calls it. nodes: the names of the file's nodes that it computes, as far as the engine says.
    precision: the numbers it multiplies: `int8`, `float32`, …, `int4-weights` where it reads weights of 4 bits from a
    file that gives it float inputs, or empty where it does not say.
    sources: the kernels whose outputs it reads, as positions in the same list. seconds: of one run, if it was profiled.
    sparsity: the fraction of zero weights that the engine skips, None where it does not say.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    precision: str = ""
    sources: tuple[int, ...] = ()
    seconds: float = 0.0
    sparsity: float | None = None


class Loaded(Protocol):
    """A file in an engine, ready to run feeds of the shapes that it was loaded for.

    supported: the fraction of the file's operations that the engine itself runs, where it leaves others to a fallback;
    None where there is none.
    """

    @property
    def supported(self) -> float | None:
        """See above."""

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs by name."""

    def seconds(self, feed: Feed, repeats: int) -> list[float]:
        """The time of each of so many runs, measured where the engine runs, after one that is not counted."""

    def kernels(self, feed: Feed, repeats: int) -> list[Kernel]:
        """What the engine runs for a feed, in the order of execution, with medians of so many profiled runs."""

    def close(self) -> None:
        """Give back what the engine holds."""


@dataclass(frozen=True)
class Engine:
    """An engine that may be installed here.

    version() → its name and version. load(file, feed, threads) → the file, for feeds of these shapes; threads None: as
    many as there are cores. Both raise EngineError where the engine is missing, crashes, or refuses the file.
    """

    version: Callable[[], str]
    load: Callable[[Path, Feed, int | None], Loaded]


def batch_of(feed: Feed) -> int:
    """How many samples a feed holds: the first axis of most arrays, the largest of those that as many have."""
    return max(multimode(array.shape[0] for array in feed.values() if array.ndim), default=1)
