"""Files that are read with care, and written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from .errors import OutputError


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The contents of a file, at most so many bytes. Raises OSError, also for a pipe or a device, which may not end."""
    if path.exists() and not path.is_file():
        raise OSError(0, "is a folder" if path.is_dir() else "is not a regular file", str(path))
    if most is not None and path.stat().st_size > most:
        raise OSError(0, f"is larger than {most >> 10} KiB", str(path))
    return path.read_bytes()


def scratch_prefix() -> str:
    """How the names of temporary files and folders beside results begin: with this process's machine and number."""
    return f".onnx-obc-{_machine()}-{os.getpid()}-"


def remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that are gone left in a folder under temporary names."""
    name = re.compile(rf"\.onnx-obc-{re.escape(_machine())}-(\d+)-.+")
    try:
        left = [(path, match) for path in folder.iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        return
    for path, match in left:
        if not _runs(int(match[1])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "", platform.node())[:40] or "here"


def _runs(process: int) -> bool:
    return bool(psutil.pid_exists(process))


def write_plain(path: Path, values: object, indent: int = 2) -> None:
    """Write plain values as JSON, like `write_file`. Raises ValueError for numbers that JSON does not have."""
    write_file(path, f"{json.dumps(values, indent=indent, allow_nan=False)}\n".encode())


def write_file(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename. Raises OutputError."""
    scratch = path.with_name(f"{scratch_prefix()}{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; make room, or name a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):  # its folder is none
            scratch.unlink()
