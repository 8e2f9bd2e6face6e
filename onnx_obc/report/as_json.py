"""The report of a run: what became of every layer, what was checked, and the JSON of it (see docs/report.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import OutputError
from ..core.files import write_file
from ..pipeline.report import Report


def write_json(report: Report | Sequence[Report], path: Path) -> None:
    """Write a report, or a list of them, under a temporary name, then rename it. Raises OutputError."""
    plain = report.to_dict() if isinstance(report, Report) else [one.to_dict() for one in report]
    try:
        write_file(path, f"{json.dumps(plain, indent=2, allow_nan=False)}\n".encode())
    except OutputError as error:
        raise OutputError(f"{error}; the model was written") from error
