"""Times files against each other in one engine: in turn, so that what else the machine does hits all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.arrays import Feed
from ..core.machine import this_machine, workers
from ..core.progress import Progress
from ..graph.save import file_bytes
from ..runtime.sqnr import agreement_db, is_float
from .engine import Loaded, batch_of
from .registry import TARGETS

ROUNDS = 15
TURN_SECONDS = 0.2  # that a file runs before it is another one's turn
MOST_RUNS = 100  # in a turn


@dataclass(frozen=True)
class Timed:
    """One file among others.

    seconds: the median of a run. ratio: how many times faster it is than the first file, the median over the rounds of
    the ratio in each; low, high: its quartiles. sqnr_db: how far its first output is from the first file's, infinite if
    equal, −infinite if of another shape, NaN where there is nothing to compare; top1: on how many samples the largest
    entry is the same, where the output is a matrix. bytes: of the file.
    """

    file: str
    seconds: float
    ratio: float
    low: float
    high: float
    sqnr_db: float
    top1: float | None
    bytes: int


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured. threads: of an engine on the CPU. synthetic: on random numbers, which ranges clip."""

    runtime: str
    machine: str
    batch: int
    threads: int
    rounds: int
    files: tuple[Timed, ...]
    synthetic: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON. sqnr_db is null where it is not finite, and equal says whether outputs are."""
        plain = asdict(self)
        for entry in plain["files"]:
            entry["equal"] = entry["sqnr_db"] == math.inf
            entry["sqnr_db"] = entry["sqnr_db"] if math.isfinite(entry["sqnr_db"]) else None
        return plain


def bench(
    files: Sequence[Path],
    runtime: str,
    feed: Feed,
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Progress = lambda stage, done, total: None,
    turn_seconds: float = TURN_SECONDS,
) -> Benchmark:
    """Load the files into an engine and run them in turn. Raises EngineError if it is not here or refuses one."""
    engine = TARGETS[runtime].engine
    version = engine.version()
    with ExitStack() as stack:
        loaded: list[Loaded] = []
        for path in files:
            loaded.append(engine.load(path, feed, threads))
            stack.callback(loaded[-1].close)
        outputs = [one.run(feed) for one in loaded]
        runs = [int(np.clip(turn_seconds / max(min(one.seconds(feed, 2)), 1e-9), 1, MOST_RUNS)) for one in loaded]
        turns: list[list[float]] = [[] for _ in files]
        every: list[list[float]] = [[] for _ in files]
        for turn in range(rounds):
            order = range(len(files)) if turn % 2 == 0 else reversed(range(len(files)))
            for index in order:
                seconds = loaded[index].seconds(feed, runs[index])
                turns[index].append(median(seconds))
                every[index] += seconds
            progress("bench", 1, rounds)
    entries = []
    for index, path in enumerate(files):
        ratios = np.array(turns[0]) / np.array(turns[index])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        db, top1 = compare(outputs[0], outputs[index])
        entries.append(
            Timed(
                *(str(path), median(every[index]), float(middle), float(low), float(high)),
                *(db, top1, file_bytes(path)),
            )
        )
    return Benchmark(version, this_machine(), batch_of(feed), workers(threads), rounds, tuple(entries))


def compare(
    first: Mapping[str, npt.NDArray[np.generic]], other: Mapping[str, npt.NDArray[np.generic]]
) -> tuple[float, float | None]:
    """How far the first float output of `other` is from that of `first`, in decibels, and how often the argmax agrees.

    Outputs are taken by name, or in order where the names differ.
    """
    name, wanted = next(((n, a) for n, a in first.items() if is_float(a)), (None, None))
    if name is None or wanted is None:
        return math.nan, None
    found = other.get(name, dict(zip(first, other.values(), strict=False)).get(name))
    if not is_float(found):
        return math.nan, None
    top1 = None
    if wanted.ndim == 2 and wanted.shape[1] > 1 and found.shape == wanted.shape:
        top1 = float((wanted.argmax(axis=1) == found.argmax(axis=1)).mean())
    return agreement_db(wanted, found), top1
