"""Calibration data from arrays: an .npz or .npy file, a folder of them, or a dict.

The arrays are named after the model's inputs; an .npy file is for a model with one input. A file holds either

- samples: every array has the rank of its input, and axis 0 is the batch. All arrays agree in length. An input of rank
  0 has no batch; its value goes into every feed of the file's samples. Or
- whole feeds: an array has one axis more than its input, and that axis counts the feeds, each of which is used as it
  is. All arrays of one more axis agree in length; an array with just the rank of its input is used in every feed, and
  is allowed for an input whose shape the graph fixes (a sampling rate, a table of anchors). One sample is one feed.

Files are opened one at a time, and arrays that are stored uncompressed stay on disk until they are read (np.savez;
not np.savez_compressed), so memory does not grow with their number or size.
"""

from __future__ import annotations

import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples
from .feeds import check_dtype, check_names, check_shape, convert, deliver, plan_samples

SUFFIXES = (".npz", ".npy")
LABELS = "labels"  # an array of this name says the class of every sample, for a task loss


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
    """Arrays by name. `load` reads what is compressed, and gives a function from name to array."""

    name: str
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
    held = {str(name): np.asarray(array) for name, array in arrays.items()}
    headers = {name: Header(array.shape, array.dtype) for name, array in held.items()}
    return _open(
        [ArrayFile("the dict of arrays", headers, lambda: held.__getitem__)], "arrays from Python", inputs, options
    )


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

    def load(position: int) -> Feed:
        index = plan.order[position]
        number = bisect_right(ends, index)
        row = index - (ends[number - 1] if number else 0)
        where = f"{'feed' if whole else 'sample'} {row} of {files[number].name}"
        feed = {}
        for spec in inputs:
            array = opened(number)(spec.name)
            counted = array.ndim > len(spec.shape) if whole else bool(spec.shape)
            feed[spec.name] = convert(np.asarray(array[row] if counted else array), spec, where)
        return feed

    def label(position: int) -> int:
        index = plan.order[position]
        number = bisect_right(ends, index)
        return int(opened(number)(LABELS)[index - (ends[number - 1] if number else 0)])

    labelled = not whole and all(_has_labels(file, inputs) for file in files)
    kind = f"{_kind(whole)} of {source}"
    return deliver(plan, load, inputs, kind, whole=whole, label=label if labelled else None)


def _has_labels(file: ArrayFile, inputs: list[InputSpec]) -> bool:
    """Whether a file says the class of each sample, in an array `labels` that is no input of the model."""
    return LABELS in file.headers and all(spec.name != LABELS for spec in inputs)


def _examine(file: ArrayFile, inputs: list[InputSpec]) -> tuple[bool, int]:
    """(whether the file holds whole feeds, how many feeds or samples). Raises CalibrationError unless they fit."""
    labelled = _has_labels(file, inputs)
    check_names([name for name in file.headers if not (labelled and name == LABELS)], inputs, file.name)
    whole = any(len(file.headers[spec.name].shape) == len(spec.shape) + 1 for spec in inputs)
    counts: dict[str, int] = {}
    for spec in inputs:
        header = file.headers[spec.name]
        check_dtype(spec, header.dtype, file.name)
        if whole and len(header.shape) == len(spec.shape) + 1:
            counts[spec.name] = header.shape[0]
            check_shape(spec, header.shape[1:], spec.shape, file.name, "feeds of ")
        elif whole:
            check_shape(spec, header.shape, spec.shape, file.name)
            if None in spec.shape:
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
    if labelled and not whole:
        header = file.headers[LABELS]
        if header.shape != (count,) or header.dtype.kind not in "iu":
            raise CalibrationError(
                f"{file.name}: {LABELS!r} is {header.dtype.name}{list(header.shape)}; give the class of each of the "
                f"{count} samples, integers of shape ({count},), or leave it out"
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
    try:
        headers = {inputs[0].name: _npy_header(path)} if single else _npz_headers(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CalibrationError(f"{path}: cannot be read ({' '.join(str(error).split())}); save it anew") from error
    for name, header in headers.items():
        if header.dtype.hasobject:
            raise CalibrationError(f"{path}: {name!r} holds Python objects; save a plain array of numbers")

    def load() -> Callable[[str], Array]:
        packed = [name for name, header in headers.items() if header.offset is None]
        arrays = {}
        try:
            if packed:
                with np.load(path, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in packed}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise CalibrationError(f"{path}: cannot be read ({' '.join(str(error).split())}); save it anew") from error
        return lambda name: arrays[name] if name in arrays else _mapped(path, headers[name])

    return ArrayFile(str(path), headers, load)


def _npy_header(path: Path) -> Header:
    with path.open("rb") as file:
        header = _header(file)
        header = Header(header.shape, header.dtype, header.fortran, file.tell())
    _check_size(header, path.stat().st_size)
    return header


def _npz_headers(path: Path) -> dict[str, Header]:
    headers = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            with archive.open(info) as member:
                header = _header(member)
            if info.compress_type == zipfile.ZIP_STORED:
                # A zip member follows its local header: 30 bytes, the last 4 of which say what length follows.
                file.seek(info.header_offset + 26)
                file.seek(int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little"), 1)
                header = _header(file)
                header = Header(header.shape, header.dtype, header.fortran, file.tell())
                _check_size(header, path.stat().st_size)
            headers[info.filename.removesuffix(".npy")] = header
    return headers


def _header(file: Any) -> Header:
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format")
    return Header(shape, fortran=fortran, dtype=dtype)


def _check_size(header: Header, file_size: int) -> None:
    assert header.offset is not None
    if header.offset + prod(header.shape) * header.dtype.itemsize > file_size:
        raise ValueError("the file ends early")


def _mapped(path: Path, header: Header) -> Array:
    """The array as a read-only map of the file. What was read of it occupies memory until the map is dropped."""
    assert header.offset is not None
    if prod(header.shape) == 0:
        return np.empty(header.shape, header.dtype)
    raw = np.memmap(path, np.uint8, "r", header.offset, (prod(header.shape) * header.dtype.itemsize,))
    return np.ndarray(header.shape, header.dtype, raw, order="F" if header.fortran else "C")
