"""What a run tells while it works: how far it is, what it plans, and how long each stage took."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias


class Stopwatch:
    """Adds up the seconds spent in each stage: `with watch("solve"): …`. Stages may come again, and within others, to
    which their seconds do not count."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stages: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []  # of each stage that runs, the seconds of those that ran within it

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the block to this stage."""
        began = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._stages[stage] += seconds - self._within.pop()
            if self._within:
                self._within[-1] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and in total since the watch was made."""
        return {**self._stages, "total": time.perf_counter() - self._began}


Progress: TypeAlias = Callable[[str, int, int], None]  # stage, done since the last call, in all


def hundredths(progress: Progress, stage: str, parts: int) -> Callable[[float], None]:
    """What tells the share that is done of one of so many parts, in hundredths of it."""
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        progress(stage, int(100 * share) - told, 100 * parts)
        told = int(100 * share)

    return tell


@dataclass(frozen=True)
class Feedback:
    """Where a run tells what it does.

    progress: called with the name of a stage, how much was done since the last call, and how much there is in all; a
    stage that was finished may begin again.
    say: called with lines of text for the user: what is planned, before it begins. watch: the seconds of each stage.
    """

    progress: Progress = lambda stage, done, total: None
    say: Callable[[str], None] = lambda line: None
    watch: Stopwatch = field(default_factory=Stopwatch)
