"""Calibration data: what the user names becomes `Samples`, model feeds that can be read any number of times."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError


@dataclass(frozen=True)
class InputSpec:
    """A model input as the graph declares it: None in `shape` is a dimension that is free."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Batch:
    """One feed for the model and the samples that it holds: `count` of them, from index `first` on.

    labels: (count,) int64, the class of each sample, where the data says it; only a task loss looks at them.
    """

    feed: dict[str, npt.NDArray[np.generic]]
    first: int
    count: int
    labels: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class DataOptions:
    """How calibration data is read. None means the default of the kind of data."""

    samples: int | None = None  # at most this many, before augmentation; None: 1024, and 64 of random numbers
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
    read(start, stop): the feeds that hold the samples start … stop−1, in order; a batch holds no other sample. Raises
    CalibrationError for values that cannot be used, ValueError for a range that does not fit `count` and `step`.
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

    def part(self, start: int, stop: int) -> Samples:
        """Only the samples start … stop−1, counted from 0; both are multiples of `step`."""

        def read(first: int, last: int) -> Iterator[Batch]:
            if not 0 <= first <= last <= stop - start:
                raise ValueError(f"samples {first} to {last} do not lie among the {stop - start} of this part")
            for batch in self.read(start + first, start + last):
                yield replace(batch, first=batch.first - start)

        return replace(self, count=stop - start, read=read)


IMAGE_OPTIONS = ("preprocess", "mean", "std", "size", "layout", "augment")
TEXT_OPTIONS = ("tokenizer", "max_tokens")
KINDS = "an .npz file, a folder of .npz, .npy or image files, a .zip of images, a .csv, .tsv, .txt or .jsonl file, "
KINDS += "module.py:function, or random"


def open_samples(data: object, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Open calibration data of any kind for a model with these inputs.

    What `data` is decides how it is read:

    - path of an `.npz` or `.npy` file, or of a folder of them; a dict of arrays: see `arrays`.
    - path of a folder or a `.zip` of images: see `images`.
    - path of a `.csv`, `.tsv`, `.txt` or `.jsonl` file: see `text`.
    - `module.py:function`; a callable; a list of feeds: see `iterables`.
    - `random`: see `synthetic`.
    - Samples are passed through.

    Raises CalibrationError if the data cannot be read, does not fit the inputs, or an option does not apply to it.
    """
    # The readers are imported where they are used: they import this module, and Pillow and tokenizers take their time.
    from . import arrays, images, iterables, synthetic, text

    if isinstance(data, Samples):
        return data
    for name in ("samples", "batch", "augment", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise CalibrationError(f"--{name.replace('_', '-')} {value}: ask for at least 1")
    if options.seed < 0:
        raise CalibrationError(f"--seed {options.seed}: give 0 or more")

    if isinstance(data, Mapping):
        _refuse(options, "arrays", IMAGE_OPTIONS + TEXT_OPTIONS)
        return arrays.open_dict(data, inputs, options)
    if isinstance(data, list | tuple):
        _refuse(options, "feeds", IMAGE_OPTIONS + TEXT_OPTIONS)
        return iterables.open_list(data, inputs, options)
    if callable(data):
        _refuse(options, "feeds", IMAGE_OPTIONS + TEXT_OPTIONS)
        return iterables.open_function(data, inputs, options)
    if isinstance(data, Iterator):
        raise CalibrationError(
            "calibration data is read more than once: pass the function that makes it, not its result"
        )
    if not isinstance(data, str | os.PathLike):
        raise CalibrationError(
            f"calibration data of type {type(data).__name__} cannot be read; "
            "give a dict of input name to array, a list of such dicts, a function that yields them, or a path"
        )
    if data == "":
        raise CalibrationError(f"--calib is empty: name the calibration data, {KINDS}")
    if data == "random":
        _refuse(options, "random numbers", ("preprocess", "mean", "std", "augment", "tokenizer"))
        return synthetic.open_random(inputs, options)
    if match := re.fullmatch(r"(.+\.py):(\w+)", str(data)):
        _refuse(options, "feeds", IMAGE_OPTIONS + TEXT_OPTIONS)
        function = iterables.load_function(existing(Path(match[1])), match[2])
        return iterables.open_function(function, inputs, options, str(data))
    path = existing(Path(data))
    suffix = path.suffix.lower()
    if path.is_dir():
        kind = _folder_kind(path)
    elif suffix in (".npz", ".npy"):
        kind = "arrays"
    elif suffix == ".zip":
        kind = "images"
    elif suffix in text.SUFFIXES:
        kind = "text"
    elif suffix == ".py":
        raise CalibrationError(f"{path}: say which function makes the feeds, e.g. {path}:feeds")
    else:
        hint = "give the folder that it lies in" if suffix in images.SUFFIXES else f"give {KINDS}"
        raise CalibrationError(f"{path}: {suffix or 'a file without a suffix'} is no known kind of data; {hint}")
    if kind == "arrays":
        _refuse(options, "arrays", IMAGE_OPTIONS + TEXT_OPTIONS)
        return arrays.open_path(path, inputs, options)
    if kind == "images":
        _refuse(options, "images", TEXT_OPTIONS)
        return images.open_images(path, inputs, options)
    _refuse(options, "text", IMAGE_OPTIONS)
    return text.open_text(path, inputs, options)


def existing(path: Path) -> Path:
    """The path, if there is something. Raises CalibrationError that names what is there under a similar name."""
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise CalibrationError(f"{path}: not found, nor is the folder {path.parent}; check the path")
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"check the path, or give {KINDS}"
    raise CalibrationError(f"{path}: not found; {hint}")


def _folder_kind(path: Path) -> str:
    from . import arrays, images, text

    has_arrays, has_images = bool(arrays.find(path)), bool(images.find(path))
    if has_arrays and has_images:
        raise CalibrationError(f"{path}: holds both arrays and images; give a folder that holds only one kind")
    if not has_arrays and not has_images:
        files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in (".zip", *text.SUFFIXES))
        hint = f"did you mean {files[0]}?" if files else "give a folder that does"
        raise CalibrationError(f"{path}: this folder holds no .npz, .npy or image file; {hint}")
    return "arrays" if has_arrays else "images"


def _refuse(options: DataOptions, kind: str, names: tuple[str, ...]) -> None:
    """Raise CalibrationError if one of these options, which mean nothing for this kind of data, was given."""
    for field in fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise CalibrationError(f"--{field.name.replace('_', '-')} does not apply to {kind}; leave it out")
