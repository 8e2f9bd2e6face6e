"""What debugging found, as JSON: the record, name by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.files import write_plain
from ..core.plain_values import plain_values
from ..debug.record import Debug

SCHEMA = 1


def write_debug_json(found: Debug, path: Path) -> None:
    """Write it under a temporary name, then rename it. Raises OutputError."""
    write_plain(path, debug_values(found))


def debug_values(found: Debug) -> dict[str, Any]:
    """Plain values, ready for JSON; infinite numbers become null."""
    return {"schema": SCHEMA, "equal": found.equal, **plain_values(found)}
