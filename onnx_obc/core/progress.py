"""How long each stage takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent in each stage: `with watch("solve"): …`. Stages may come again."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stages: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the block to this stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._stages[stage] += time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, and in total since the watch was made."""
        return {**self._stages, "total": time.perf_counter() - self._began}


Progress = Callable[[str, int, int], None]
