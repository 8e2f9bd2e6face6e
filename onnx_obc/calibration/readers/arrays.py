"""Calibration data from arrays: an .npz or .npy file, a folder of them, or a dict.

The arrays are named after the model's inputs; an .npy file is for a model with one input. A file holds either

- samples: every array has the rank of its input, and axis 0 is the batch. All arrays agree in length. An input of rank
  0 has no batch; its value goes into every feed of the file's samples. Or
- whole feeds: an array has one axis more than its input, and that axis counts the feeds, each of which is used as it
  is. All arrays of one more axis agree in length. An array with just the rank of its input is used in every feed if the
  graph fixes that input's shape (a sampling rate, a table of anchors); if it leaves the first axis free, the array has
  a row for every feed, of batch 1. One sample is one feed.

Files are opened one at a time, and arrays that are stored uncompressed stay on disk until they are read (np.savez;
not np.savez_compressed), so memory does not grow with their number or size. Of compressed ones, those that the model
takes are unpacked when they are first needed.
"""

from __future__ import annotations

import zipfile
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError, shortened
from ...core.plural import counted
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples
from .feeds import as_arrays, check_dtype, check_names, check_shape, convert, deliver, plan_samples
from .magnitudes import magnitude_notes, magnitudes

SUFFIXES = (".npz", ".npy")
LABELS = "labels"  # an array of this name says something of every sample, such as its class, for metrics


@dataclass(frozen=True)
class Header:
    """What an array looks like, known without reading it. offset: where its values start in the file, if they lie there
    uncompressed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False
    offset: int | None = None


@dataclass(frozen=True)
class ArrayFile:
    """Arrays by name: all `names`, and the headers of those that may be read. `load` gives a function from name to
    array, which keeps what it had to unpack."""

    name: str
    names: tuple[str, ...]
    headers: dict[str, Header]
    load: Callable[[], Callable[[str], Array]]


def find(folder: Path) -> list[Path]:
    """The .npz and .npy files in a folder, sorted by name."""
    return sorted(
        entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    )


def open_path(path: Path, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of an .npz or .npy file, or of a folder of them. Raises CalibrationError."""
    paths = find(path) if path.is_dir() else [path]
    return _open([_read(each, inputs) for each in paths], str(path), inputs, options)


def open_dict(arrays: Mapping[Any, Any], inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of a dict of input name to array. Raises CalibrationError."""
    held = as_arrays(arrays, "the dict of arrays")
    headers = {name: Header(array.shape, array.dtype) for name, array in held.items()}
    file = ArrayFile("the dict of arrays", tuple(held), headers, lambda: held.__getitem__)
    return _open([file], "arrays from Python", inputs, options)


def _open(files: Sequence[ArrayFile], source: str, inputs: list[InputSpec], options: DataOptions) -> Samples:
    looked = [_examine(file, inputs) for file in files]
    whole = looked[0][0]
    for file, (is_whole, _) in zip(files, looked, strict=True):
        if is_whole != whole:
            raise CalibrationError(
                f"{files[0].name} holds {_kind(whole)}, but {file.name} holds {_kind(is_whole)} "
                "(one axis more or less); give all files one form"
            )
    ends = list(accumulate(count for _, count in looked))
    plan = plan_samples(ends[-1], f"{_kind(whole)} in {source}", inputs, options, whole=whole)
    opened = lru_cache(maxsize=1)(lambda index: files[index].load())

    def place(position: int) -> tuple[int, int]:
        index = plan.order[position]
        number = bisect_right(ends, index)
        return number, index - (ends[number - 1] if number else 0)

    def name_of(position: int) -> str:
        number, row = place(position)
        return f"{'feed' if whole else 'sample'} {row} of {files[number].name}"

    def load(position: int) -> Feed:
        number, row = place(position)
        feed = {}
        for spec in inputs:
            array = opened(number)(spec.name)
            if whole and array.ndim == len(spec.shape):
                part = array[row : row + 1] if None in spec.shape else array  # see `_examine`
            else:
                part = array[row] if spec.shape or whole else array
            feed[spec.name] = convert(np.asarray(part), spec, name_of(position))
        return feed

    def label(position: int) -> Any:
        number, row = place(position)
        return opened(number)(LABELS)[row]

    def notes_on_values() -> tuple[str, ...]:
        return magnitude_notes([magnitudes(load(position)) for position in range(len(plan.order))], name_of)

    labelled = all(_has_labels(file, inputs) for file in files)
    kind = f"{_kind(whole)} of {source}"
    samples = deliver(plan, load, inputs, kind, name_of, whole=whole, label=label if labelled else None)
    return replace(samples, notes_on_values=notes_on_values)


def _has_labels(file: ArrayFile, inputs: list[InputSpec]) -> bool:
    """Whether a file says something of each sample, in an array `labels` that is no input of the model."""
    return LABELS in file.names and all(spec.name != LABELS for spec in inputs)


def _examine(file: ArrayFile, inputs: list[InputSpec]) -> tuple[bool, int]:
    """(whether the file holds whole feeds, how many feeds or samples). Raises CalibrationError unless they fit."""
    labelled = _has_labels(file, inputs)
    check_names([name for name in file.names if not (labelled and name == LABELS)], inputs, file.name)
    whole = any(len(file.headers[spec.name].shape) == len(spec.shape) + 1 for spec in inputs)
    counts: dict[str, int] = {}
    feeds = {file.headers[x.name].shape[0] for x in inputs if len(file.headers[x.name].shape) == len(x.shape) + 1}
    for spec in inputs:
        header = file.headers[spec.name]
        check_dtype(spec, header.dtype, file.name)
        if whole and len(header.shape) == len(spec.shape) + 1:
            counts[spec.name] = header.shape[0]
            check_shape(spec, header.shape[1:], spec.shape, file.name, "feeds of ")
        elif whole:
            check_shape(spec, header.shape, spec.shape, file.name)
            if None in spec.shape and (spec.shape[0] is not None or feeds != {header.shape[0]}):
                raise CalibrationError(
                    f"{file.name}: {spec.name!r} has no axis that counts feeds, which another array has; stack "
                    "whole feeds for both"
                )
        else:
            check_shape(spec, header.shape, (None, *spec.shape[1:]) if spec.shape else (), file.name)
            if spec.shape:
                counts[spec.name] = header.shape[0]
    if len(set(counts.values())) > 1:
        (a, size_a), (b, size_b) = sorted(counts.items(), key=lambda item: item[1])[:: len(counts) - 1]
        raise CalibrationError(
            f"{file.name}: {a!r} has {size_a} {_kind(whole)}, but {b!r} has {size_b}; axis 0 must agree"
            + ("" if whole else ", or give whole feeds: arrays with one more axis in front")
        )
    count = next(iter(counts.values()), 1)
    if labelled:
        header = file.headers[LABELS]
        if header.shape[:1] != (count,):
            raise CalibrationError(
                f"{file.name}: {LABELS!r} is {header.dtype.name}{list(header.shape)}; give the class, or another "
                f"label, of each of the {counted(count, _kind(whole)[:-1])} along its first axis, or leave it out"
            )
    return whole, count


def _kind(whole: bool) -> str:
    return "feeds" if whole else "samples"


def _read(path: Path, inputs: list[InputSpec]) -> ArrayFile:
    """The headers of an .npz or .npy file. Raises CalibrationError."""
    single = path.suffix.lower() == ".npy"
    if single and len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise CalibrationError(
            f"{path}: an .npy file names no input, but the model has {names}; save an .npz with them"
        )
    wanted = {LABELS, *(spec.name for spec in inputs)}
    try:
        if single:
            headers: dict[str, Header | None] = {inputs[0].name: _npy_header(path)}
        else:
            headers = _npz_headers(path, wanted)
    except Exception as error:  # whatever a file that numpy did not write brings forth
        raise _unreadable(path, error) from error
    for name, header in headers.items():
        if header is not None and header.dtype.hasobject:
            raise CalibrationError(f"{path}: {name!r} holds Python objects; save plain arrays of numbers, or of str")
    known = {name: header for name, header in headers.items() if header is not None}

    def load() -> Callable[[str], Array]:
        unpacked: dict[str, Array] = {}

        def get(name: str) -> Array:
            if known[name].offset is not None:
                return _mapped(path, known[name])
            if name not in unpacked:
                try:
                    with np.load(path, allow_pickle=False) as archive:
                        unpacked[name] = archive[name]
                except MemoryError as error:
                    raise CalibrationError(
                        f"{path}: {name!r} does not fit in memory; save it with numpy.savez, which stays on disk"
                    ) from error
                except Exception as error:
                    raise _unreadable(path, error) from error
            return unpacked[name]

        return get

    return ArrayFile(str(path), tuple(headers), known, load)


def _unreadable(path: Path, error: Exception) -> CalibrationError:
    return CalibrationError(f"{path}: cannot be read ({shortened(str(error))}); save it anew")


def _npy_header(path: Path) -> Header:
    if not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        header = _header(file)
        header = Header(header.shape, header.dtype, header.fortran, file.tell())
    _check_size(header, path.stat().st_size)
    return header


def _npz_headers(path: Path, wanted: Collection[str]) -> dict[str, Header | None]:
    """All arrays of a file, with the headers of those that are wanted."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    headers: dict[str, Header | None] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name not in wanted:
                headers[name] = None
                continue
            with archive.open(info) as member:
                header, offset = _header(member), member.tell()
            _check_size(replace(header, offset=offset), info.file_size)
            if info.compress_type == zipfile.ZIP_STORED:
                # A zip member follows its local header: 30 bytes, the last 4 of which say what length follows.
                file.seek(info.header_offset + 26)
                file.seek(int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little"), 1)
                header = replace(_header(file), offset=file.tell())
                _check_size(header, path.stat().st_size)
            headers[name] = header
    return headers


def _header(file: Any) -> Header:
    """Raises ValueError for what is no header of numpy's."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format")
    try:
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except EOFError:
        raise
    except Exception as error:  # numpy parses it as Python, which fails in many ways
        raise ValueError("its header is damaged") from error
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its header gives no shape")
    return Header(shape, fortran=fortran, dtype=dtype)


def _check_size(header: Header, file_size: int) -> None:
    assert header.offset is not None
    if not header.dtype.hasobject and header.offset + prod(header.shape) * header.dtype.itemsize > file_size:
        raise ValueError("the file ends early")


def _mapped(path: Path, header: Header) -> Array:
    """The array as a read-only map of the file. What was read of it occupies memory until the map is dropped."""
    assert header.offset is not None
    if prod(header.shape) == 0:
        return np.empty(header.shape, header.dtype)
    raw = np.memmap(path, np.uint8, "r", header.offset, (prod(header.shape) * header.dtype.itemsize,))
    return np.ndarray(header.shape, header.dtype, raw, order="F" if header.fortran else "C")
