"""The held-out samples whose outputs are furthest from the dense model's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration.samples import Batch, Samples, Shown
from ..calibration.thumbnails import picture_of
from ..core.arrays import Feed
from ..core.errors import shortened
from ..runtime.output_loss import OutputLoss, of_classes
from ..runtime.sqnr import Match, is_float

KEPT = 8
LONGEST = 300  # characters of a text


@dataclass(frozen=True)
class WorstSample:
    """One held-out sample. loss: its output loss; sqnr_db: the lowest over its float outputs.

    dense_class, found_class: the largest entries of the first output that is class scores, where there is one. text,
    image: the sample itself, as far as its reader, or its shape, can show it; an image is a data: URI.
    """

    name: str
    loss: float
    sqnr_db: float
    dense_class: int | None = None
    found_class: int | None = None
    text: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class _Seen:
    sample: WorstSample
    position: int
    feed: Feed


class WorstSamples:
    """Looks at every sample while outputs are compared, and keeps the worst."""

    def __init__(self, scores: Collection[str]) -> None:
        """`scores`: the names of the outputs that are class scores."""
        self._scores = scores
        self._kept: list[_Seen] = []

    def add(self, batch: Batch, dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> None:
        """Add the outputs of one feed. Those that do not lie along its samples say nothing of one of several."""
        names = [name for name, y in dense.items() if is_float(y) and (batch.count == 1 or _along(y, batch.count))]
        for index in range(batch.count if names else 0):
            one = slice(None) if batch.count == 1 else slice(index, index + 1)
            parts = {name: (dense[name][one], compressed[name][one]) for name in names if dense[name].ndim}
            self._look(batch, index, parts)
        self._kept = sorted(self._kept, key=lambda seen: (-seen.sample.loss, seen.position))[:KEPT]

    def _look(self, batch: Batch, index: int, parts: Mapping[str, tuple[Any, Any]]) -> None:
        total, lowest = OutputLoss(self._scores), np.inf
        total.add({name: y for name, (y, _) in parts.items()}, {name: found for name, (_, found) in parts.items()})
        for y, found in parts.values():
            match = Match()
            match.add(y, found, False)
            lowest = min(lowest, match.sqnr_db)
        if not total.value > (self._kept[-1].sample.loss if len(self._kept) == KEPT else 0):
            return
        scored = [pair for name, pair in parts.items() if name in self._scores and of_classes(pair[0].shape)]
        classes = [int(side.reshape(-1, side.shape[-1])[0].argmax()) for side in scored[0]] if scored else [None, None]
        sample = WorstSample("", total.value, lowest, classes[0], classes[1])
        feed = {name: array[index : index + 1] for name, array in batch.feed.items() if _along(array, batch.count)}
        self._kept.append(_Seen(sample, batch.first + index, feed))

    def found(self, samples: Samples) -> tuple[WorstSample, ...]:
        """The worst samples, the worst first, as their reader names and shows them."""
        worst = []
        for seen in self._kept:
            shown = samples.shown(seen.position) or Shown(image=picture_of(seen.feed))
            text = None if shown.text is None else shortened(shown.text, LONGEST)
            about = {"name": samples.name_of(seen.position), "text": text, "image": shown.image}
            worst.append(WorstSample(**{**vars(seen.sample), **about}))
        return tuple(worst)


def _along(array: Any, count: int) -> bool:
    return bool(getattr(array, "ndim", 0)) and len(array) == count
