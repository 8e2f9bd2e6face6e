"""The report of a run: what became of every layer, what was checked, and the JSON of it (see docs/report.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import OutputError
from ..core.files import write_file
from ..pipeline.report import Report

_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")  # no string holds a line break


def write_json(report: Report | Sequence[Report], path: Path) -> None:
    """Write a report, or a list of them, under a temporary name, then rename it. Raises OutputError."""
    plain = report.to_dict() if isinstance(report, Report) else [one.to_dict() for one in report]
    try:
        text = json.dumps(plain, indent=2, allow_nan=False)
        write_file(path, f"{_NUMBERS.sub(_on_one_line, text)}\n".encode())
    except OutputError as error:
        raise OutputError(f"{error}; the model was written") from error


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[0][1:-1].split())}]"
