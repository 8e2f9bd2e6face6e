"""Where a result goes: checked before the work starts, and moved in when it is done."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from ..core.errors import OutputError, first_line
from ..core.files import remove_abandoned, scratch_prefix
from .model import PROTOBUF_LIMIT
from .tensors import tensors

REJECTED = ".rejected"  # how the name of a file ends that is not to be used
LONGEST_NAME = 180  # bytes: of the 255 that file systems allow, the rest is for temporary names and endings


def check_output(output: str | Path, source: object) -> Path:
    """The path of the result, if something can be written there that is not the model itself. Raises OutputError.

    What a process that was killed left there under temporary names is removed.
    """
    path = Path(output)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"cannot write {path}: its name is longer than {LONGEST_NAME} bytes; give a shorter one")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it, e.g. {path / 'model.onnx'}")
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is not a regular file; name another file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist; create it first")
    if isinstance(source, str | Path) and path.resolve() == Path(source).resolve():
        raise OutputError(f"cannot write {path}: it is the model itself; name another file")
    remove_abandoned(path.parent)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"cannot write into {path.parent}: {error.strerror}; choose another folder") from error
    return path


def check_beside(model: ir.Model, output: Path) -> None:
    """Raise OutputError if the weights of the result would replace the file that the model's own weights lie in."""
    beside = output.with_name(f"{output.name}.data").resolve()
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve() == beside:
            raise OutputError(f"cannot write {output}: {beside.name} holds the model's own weights; name another file")


def place_model(path: Path, target: Path) -> None:
    """Move a model and the file with its weights, if there is one, to `target`. Raises OutputError."""
    data = path.with_name(f"{path.name}.data")
    try:
        move_in(path.parent, target.parent, [data.name, path.name] if data.exists() else [path.name])
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; choose another folder or make room") from error


def leave_rejected(path: Path, target: Path | None) -> Path | None:
    """Keep a file that is not to be used under `.rejected`; returns where, None for a model in memory.

    Raises OutputError."""
    if target is None:
        return None
    rejected = target.with_name(f"{target.name}{REJECTED}")
    if path.with_name(f"{path.name}.data").exists():  # weights beside it go by the name of the file
        save_model(ir.load(path), rejected)
        return rejected
    try:
        path.replace(rejected)
    except OSError as error:
        raise OutputError(f"cannot write {rejected}: {error.strerror}; remove what is there, or make room") from error
    return rejected


def save_model(model: ir.Model, path: Path, external_threshold: int = PROTOBUF_LIMIT) -> None:
    """Write the model to `path`, all or nothing; an existing file is replaced only by a complete one.

    Weights go to `path.name + ".data"` beside it when the tensors hold more than `external_threshold` bytes or the
    model was read with large weights beside it. If that replaces the files that `model` itself was read from, read it
    again before using its weights. Raises OutputError.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it, e.g. {path / 'model.onnx'}")
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors(model))
    external = external or sum(tensor.nbytes for tensor in tensors(model)) > external_threshold
    data = f"{path.name}.data"
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=scratch_prefix()) as folder:
            scratch = Path(folder)
            ir.save(model, scratch / path.name, format="protobuf", external_data=data if external else None)
            move_in(scratch, path.parent, [data, path.name] if (scratch / data).exists() else [path.name])
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another folder or make room") from error
    except (EncodeError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {first_line(error)}") from error


def move_in(scratch: Path, folder: Path, names: list[str]) -> None:
    """Move files from `scratch` to `folder`, the model itself last. If that is interrupted, all stays as it was."""
    for name in names:
        shutil.copymode(scratch / names[-1], scratch / name)
    try:
        for name in names[:-1]:
            if (folder / name).exists():
                (folder / name).replace(scratch / f"{name}.before")
            (scratch / name).replace(folder / name)
        (scratch / names[-1]).replace(folder / names[-1])
    except BaseException:
        if (scratch / names[-1]).exists():  # else all files had arrived
            for name in names[:-1]:
                if not (scratch / name).exists():
                    (folder / name).unlink()
                if (scratch / f"{name}.before").exists():
                    (scratch / f"{name}.before").replace(folder / name)
        raise


def files_of(path: Path) -> list[Path]:
    """A model's file, and the files beside it that hold its weights."""
    proto = onnx.load(path, load_external_data=False)
    beside = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(beside))]


def file_bytes(path: Path) -> int:
    """The size of a model on disk, with the files beside it that hold its weights."""
    return sum(file.stat().st_size for file in files_of(path))
