"""A study as JSON: the record, name by name, with what is proven of every chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.files import write_plain
from ..core.plain_values import plain_values
from ..study.paper import Theory
from ..study.record import Study

SCHEMA = 1


def write_study_json(found: Study | Theory, path: Path) -> None:
    """Write a study, or the theory alone, under a temporary name, then rename it. Raises OutputError."""
    write_plain(path, study_values(found))


def study_values(found: Study | Theory) -> dict[str, Any]:
    """Plain values, ready for JSON; infinite numbers become null."""
    plain: dict[str, Any] = {"schema": SCHEMA, **plain_values(found)}
    if isinstance(found, Study):
        for chunk, row in zip(plain["chunks"], found.chunks, strict=True):
            chunk["proven"] = row.proven
    return plain
