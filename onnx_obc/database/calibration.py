"""Feeds and activation ranges in a database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.ranges import RangeObserver
from ..calibration.samples import Batch, Samples
from .files import content_key, read_arrays, write_arrays


def samples_key(samples: Samples) -> str:
    """A hash of all feeds."""
    return content_key(*(part for batch in samples.read(0, samples.count) for part in _parts(batch)))


def write_samples(path: Path, parts: Mapping[str, Samples], key: str) -> None:
    """Write the feeds of several named Samples into one file, as they are read."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    info: dict[str, Any] = {}
    for name, samples in parts.items():
        counts = []
        texts: set[str] = set()
        for number, batch in enumerate(samples.read(0, samples.count)):
            counts.append(batch.count)
            texts |= {source for source, array in batch.feed.items() if array.dtype.hasobject}
            arrays |= {f"{name}/{number:05d}/{source}": _stored(array) for source, array in batch.feed.items()}
        info[name] = {
            "counts": counts,
            "labels": [_classes(batch) for batch in samples.read(0, samples.count)],
            "source": samples.source,
            "synthetic": samples.synthetic,
            "notes": samples.notes,
            "batch": samples.batch,
            "names": [samples.name_of(position) for position in range(samples.count)],
            "texts": sorted(texts),
        }
    write_arrays(path, arrays, key, info)


def read_samples(path: Path, key: str) -> dict[str, Samples]:
    """The Samples of a file, by name. Each of them can be read in whole feeds only. Raises DatabaseError."""
    arrays, info = read_arrays(path, key)
    return {name: _samples(name, arrays, about) for name, about in info.items()}


def write_ranges(path: Path, observers: Mapping[str, RangeObserver], key: str) -> None:
    """Write what was seen of activations."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, observer in observers.items():
        arrays[f"counts/{name}"], arrays[f"limits/{name}"] = observer.arrays()
    write_arrays(path, arrays, key, {})


def read_ranges(path: Path, key: str) -> dict[str, RangeObserver]:
    """What was seen of activations, by name. Raises DatabaseError."""
    arrays, _ = read_arrays(path, key)
    names = [name.removeprefix("counts/") for name in arrays if name.startswith("counts/")]
    return {name: RangeObserver.restored(arrays[f"counts/{name}"], arrays[f"limits/{name}"]) for name in names}


def _stored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array as it is stored: text as the bytes of its shape and values in JSON."""
    if not array.dtype.hasobject:
        return np.asarray(array)
    return np.frombuffer(json.dumps([array.shape, array.ravel().tolist()]).encode(), np.uint8)


def _text(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shape, values = json.loads(stored.tobytes())
    return np.array(values, dtype=object).reshape(shape)


def _parts(batch: Batch) -> Iterator[object]:
    yield batch.count
    yield from (part for name in sorted(batch.feed) for part in (name, np.asarray(batch.feed[name])))
    yield _classes(batch)


def _samples(name: str, arrays: Mapping[str, npt.NDArray[Any]], info: Mapping[str, Any]) -> Samples:
    feeds: list[dict[str, npt.NDArray[Any]]] = [{} for _ in info["counts"]]
    for key, array in arrays.items():
        part, _, rest = key.partition("/")
        if part == name:
            number, _, source = rest.partition("/")
            feeds[int(number)][source] = _text(array) if source in info["texts"] else array
    first = [0, *np.cumsum(info["counts"]).tolist()]
    labels = [None if x is None else np.array(x, np.int64) for x in info["labels"]]
    batches = [Batch(*x) for x in zip(feeds, first, info["counts"], labels, strict=False)]

    def read(start: int, stop: int) -> Iterator[Batch]:
        if start not in first or stop not in first:
            raise ValueError(f"samples {start} to {stop} are not whole feeds")
        yield from (batch for batch in batches if start <= batch.first and batch.first + batch.count <= stop)

    step = info["counts"][0] if info["counts"] else 1
    about = (info["synthetic"], tuple(info["notes"]), step, info["batch"])
    names = info.get("names")  # of databases that know them
    name_of = Samples.name_of if names is None else names.__getitem__
    return Samples(first[-1], info["source"], read, *about, name_of)


def _classes(batch: Batch) -> list[int] | None:
    """The labels of a batch that are kept: classes."""
    labels = batch.labels
    return None if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" else labels.tolist()
