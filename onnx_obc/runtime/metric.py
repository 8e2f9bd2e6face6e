"""What a user judges a model by: a number of its outputs on labelled samples, and how sure the difference of two is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ..core.arrays import Array, Feed

GROUPS = 20  # that samples are left out in, to see how much a metric depends on them


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample as a metric sees it. feed, outputs: by name, without the batch axis where there is one. label: what
    the data says of it, None if nothing."""

    feed: Feed
    outputs: Mapping[str, Any]
    label: Any


@dataclass(frozen=True)
class Metric:
    """A number of many samples.

    note(sample) → what is kept of a sample. value(notes, the dense model's notes of the same samples) → the number.
    higher: whether more is better. labels: whether it needs labels. together(note) → what notes share that only count
    together, such as two texts; None for a sample alone. note and value raise ValueError for outputs or labels that
    they cannot read, in words for the user.
    """

    name: str
    note: Callable[[Sample], Any]
    value: Callable[[Sequence[Any], Sequence[Any]], float]
    higher: bool = True
    labels: bool = True
    together: Callable[[Any], Any] = lambda note: None


def mean(notes: Sequence[Any], dense: Sequence[Any]) -> float:
    """The mean of numbers, whatever the dense model's are."""
    return float(np.mean(notes))


def cut(feed: Feed, outputs: Mapping[str, Any], count: int, labels: Array | None) -> Iterator[Sample]:
    """The samples of one run. count: how many the feed holds. labels: (count, …) or None.

    Where a feed is a sample of the user's own, which holds several along its first axis with a label each, these are.
    An array of a run of several that does not lie along them, such as the boxes of all images in one, is no sample's
    output: it is left out.
    """
    if count == 1 and labels is not None and np.ndim(labels[0]) > 0:
        own = np.asarray(labels[0])
        if all(isinstance(x, np.ndarray) and x.ndim and len(x) == len(own) for x in outputs.values()):
            count, labels = len(own), own

    def part(value: Any, index: int) -> Any:
        along = isinstance(value, np.ndarray) and value.ndim and len(value) == count
        return value[index] if along else value

    for index in range(count):
        yield Sample(
            {name: part(array, index) for name, array in feed.items()},
            {name: part(array, index) for name, array in outputs.items() if _of_each(array, count)},
            None if labels is None else labels[index],
        )


def _of_each(value: Any, count: int) -> bool:
    return count == 1 or not isinstance(value, np.ndarray) or value.ndim == 0 or len(value) == count


def standard_error(metric: Metric, dense: Sequence[Any], compressed: Sequence[Any]) -> float | None:
    """The standard error of the difference between two models' values, by leaving out groups of samples in turn.

    The delete-a-group jackknife (Kott 2001): it needs nothing of the metric but that it can be taken of fewer samples.
    dense, compressed: notes of the same samples, in the same order. None for fewer than two samples, or where the
    metric cannot be taken of a part.
    """
    keys = [metric.together(note) for note in dense]
    units: dict[Any, int] = {}  # what is left out at once, a sample or those that count together, by number
    numbers = [units.setdefault(("alone", i) if key is None else key, len(units)) for i, key in enumerate(keys)]
    groups = min(GROUPS, len(units))
    if groups < 2:
        return None
    differences = []
    for group in range(groups):
        kept = [index for index, number in enumerate(numbers) if number % groups != group]
        try:
            reference, other = ([notes[index] for index in kept] for notes in (dense, compressed))
            differences.append(metric.value(other, reference) - metric.value(reference, reference))
        except ValueError:
            return None
    spread = float(np.square(np.array(differences) - np.mean(differences)).sum())
    error = sqrt((groups - 1) / groups * spread)
    return error if np.isfinite(error) else None
