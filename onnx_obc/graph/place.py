"""Where a result goes: checked before the work starts, and moved in when it is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from ..errors import OutputError
from .model import move_in
from .tensors import tensors


def check_output(output: str | Path, source: object) -> Path:
    """The path of the result, if something can be written there that is not the model itself. Raises OutputError."""
    path = Path(output)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it, e.g. {path / 'model.onnx'}")
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is not a regular file; name another file")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist; create it first")
    if isinstance(source, str | Path) and path.resolve() == Path(source).resolve():
        raise OutputError(f"cannot write {path}: it is the model itself; name another file")
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
