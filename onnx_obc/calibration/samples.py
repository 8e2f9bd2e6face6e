"""What calibration data is once it is open: batches of feeds, in a fixed order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.arrays import Array, Feed
from ..core.errors import CalibrationError, ModelError
from .options import KINDS

NEAR = 0.65  # of 1, how alike two names are that one can be a slip of: x and xx, not data and calibration


@dataclass(frozen=True)
class Batch:
    """One feed for the model and the samples that it holds: `count` of them, from index `first` on.

    labels: (count, …), what the data says of each sample, such as its class; only metrics and task losses look at them.
    """

    feed: Feed
    first: int
    count: int
    labels: Array | None = None


@dataclass(frozen=True)
class Shown:
    """A sample as a person sees it: its text, or a small picture as a data: URI."""

    text: str | None = None
    image: str | None = None


def _not_shown(position: int) -> Shown | None:
    return None


@dataclass(frozen=True)
class Samples:
    """Samples that can be read any number of times, always in the same order.

    count: how many. source: what they are, in a few words, for the report. synthetic: they are random numbers.
    notes: what the user should know, e.g. that there are fewer than were asked for. notes_on_values(): what else, which
    only reading them all tells.
    read(start, stop): the feeds that hold the samples start … stop−1, in order; a batch holds no other sample. Raises
    CalibrationError for values that cannot be used, ValueError for a range that does not fit `count` and `step`.
    name_of(position): what the user calls the sample at this position: by its index in the data, or its file.
    shown(position): the sample itself, for people, None where its reader cannot show it.
    step: samples come in multiples of this: start and stop must be, and count is. It is the batch where the graph
    fixes that, and otherwise 1. batch: the most samples in one feed.

    Of data that can be read in any order, evenly spread samples are taken, and they are dealt like cards into ten or
    more hands of about a hundred, read one hand after the other: whatever the data is sorted by, its first samples and
    its last ones, which can be held out, each spread over all of it. `batch` changes neither samples nor their order.
    """

    count: int
    source: str
    read: Callable[[int, int], Iterator[Batch]]
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    step: int = 1
    batch: int = 1
    name_of: Callable[[int], str] = "sample {}".format
    notes_on_values: Callable[[], tuple[str, ...]] = tuple
    shown: Callable[[int], Shown | None] = _not_shown

    def feeds(self) -> Iterator[Feed]:
        """All feeds, in order."""
        return (batch.feed for batch in self.read(0, self.count))

    def outputs(self, run: Callable[[Feed], Feed], batch: Batch) -> Feed:
        """What a model makes of one of these batches. Raises ModelError that names the samples that it fails on."""
        try:
            return run(batch.feed)
        except ModelError as error:
            raise ModelError(f"{self._failing(run, batch)}: {error}") from error

    def _failing(self, run: Callable[[Feed], Feed], batch: Batch) -> str:
        """The first sample of a batch that a model fails on alone; the batch where samples cannot be told apart."""
        names = [self.name_of(batch.first + index) for index in range(batch.count)]
        if self.step == 1 and all(array.ndim and len(array) == batch.count for array in batch.feed.values()):
            for index, name in enumerate(names):
                try:
                    run({key: array[index : index + 1] for key, array in batch.feed.items()})
                except ModelError:
                    return name
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    def part(self, start: int, stop: int) -> Samples:
        """Only the samples start … stop−1, counted from 0; both are multiples of `step`."""

        def read(first: int, last: int) -> Iterator[Batch]:
            if not 0 <= first <= last <= stop - start:
                raise ValueError(f"samples {first} to {last} do not lie among the {stop - start} of this part")
            for batch in self.read(start + first, start + last):
                yield replace(batch, first=batch.first - start)

        named, shown = (lambda position, of=of: of(start + position) for of in (self.name_of, self.shown))
        return replace(self, count=stop - start, read=read, name_of=named, shown=shown)


def existing(path: Path) -> Path:
    """The path, if there is a file or folder. Raises CalibrationError that names what is there under a similar name."""
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        raise CalibrationError(f"{path}: a pipe or device cannot be read again; give a file")
    if not path.parent.is_dir():
        raise CalibrationError(f"{path}: not found, nor is the folder {path.parent}; check the path")
    near = _nearest(path)
    hint = f"did you mean {near}?" if near is not None else f"check the path, or give {KINDS}"
    raise CalibrationError(f"{path}: not found; {hint}")


def _nearest(path: Path) -> Path | None:
    """The file or folder beside it whose name is most like it; None if none is. Endings count only between equals."""
    there = sorted(entry for entry in path.parent.iterdir() if not entry.name.startswith("."))
    likeness = {entry: difflib.SequenceMatcher(None, path.stem, entry.stem).ratio() for entry in there}
    best = max(there, key=lambda entry: (likeness[entry], entry.suffix == path.suffix), default=None)
    return best if best is not None and likeness[best] >= NEAR else None
