"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OutputError


def write_file(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename. Raises OutputError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; make room, or name a folder that can be written"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
