"""Calibration data: what the user names becomes `Samples`, model feeds that can be read any number of times."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import onnx_ir as ir

from ..core.errors import CalibrationError
from ..graph.model import InputSpec
from .options import KINDS, DataOptions
from .samples import Samples, existing

IMAGE_OPTIONS = ("preprocess", "mean", "std", "size", "layout", "augment")
TEXT_OPTIONS = ("tokenizer", "max_tokens", "encoder")


def open_samples(data: object, inputs: list[InputSpec], options: DataOptions, model: ir.Model | None = None) -> Samples:
    """Open calibration data of any kind for a model with these inputs. model: makes the caches of a decoder,
    and says which tokens there are.

    What `data` is decides how it is read:

    - path of an `.npz` or `.npy` file, or of a folder of them; a dict of arrays: see `arrays`.
    - path of a folder or a `.zip` of images: see `images`.
    - path of a `.csv`, `.tsv`, `.txt` or `.jsonl` file: see `text`, and `decoder` for models with caches.
    - `module.py:function`; a callable; a list of feeds: see `iterables`.
    - `random`: see `synthetic`.
    - Samples are passed through.

    Raises CalibrationError if the data cannot be read, does not fit the inputs, or an option does not apply to it.
    """
    # The readers are imported where they are used: they import this module, and Pillow and tokenizers take their time.
    from .readers import arrays, decoder, images, iterables, synthetic, text

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
        _refuse(options, "random numbers", ("preprocess", "mean", "std", "augment", "tokenizer", "encoder"))
        return synthetic.open_random(inputs, options, model)
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
    if decoder.is_decoder(inputs):
        return decoder.open_decoder(path, model, inputs, options)
    if options.encoder is not None:
        raise CalibrationError(f"--encoder {options.encoder}: the model has no decoder's inputs; leave it out")
    return text.open_text(path, inputs, options)


def _folder_kind(path: Path) -> str:
    from .readers import arrays, images, text

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
