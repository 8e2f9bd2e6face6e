"""Calibration data: what the user names becomes `Samples`, model feeds that can be read any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class InputSpec:
    """A model input as the graph declares it: None in `shape` is a dimension that is free."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Batch:
    """One feed for the model and the samples that it holds: `count` of them, from index `first` on."""

    feed: dict[str, npt.NDArray[np.generic]]
    first: int
    count: int


@dataclass(frozen=True)
class DataOptions:
    """How calibration data is read. None means the default of the kind of data."""

    samples: int | None = None  # at most this many
    batch: int | None = None  # samples in a feed, where the graph leaves the batch free; None: 32
    preprocess: str | None = None  # imagenet, tf, unit or raw
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None  # height, width; None: the model's
    layout: str | None = None  # NCHW or NHWC; None: the model's
    augment: int = 1  # every image appears this often: once as it is, then flipped and cropped at random
    tokenizer: str | None = None
    max_tokens: int | None = None
    allow_random: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """Samples that can be read any number of times, always in the same order.

    count: how many. source: what they are, in a few words, for the report. synthetic: they are random numbers.
    notes: what the user should know, e.g. that there are fewer than were asked for.
    read(start, stop): the feeds that hold the samples start … stop−1, in order; a batch holds no other sample.
    """

    count: int
    source: str
    read: Callable[[int, int], Iterator[Batch]]
    synthetic: bool = False
    notes: tuple[str, ...] = ()


def open_samples(data: object, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Open calibration data of any kind for a model with these inputs. Raises CalibrationError."""
    raise NotImplementedError
