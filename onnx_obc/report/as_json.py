"""The report of a run: what became of every layer, what was checked, and the JSON of it (see docs/report.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import OutputError
from ..pipeline.report import Report


def write_json(report: Report | Sequence[Report], path: Path) -> None:
    """Write a report, or a list of them, under a temporary name, then rename it. Raises OutputError."""
    plain = report.to_dict() if isinstance(report, Report) else [one.to_dict() for one in report]
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: the report cannot be written ({error.strerror}), though the model was; check --report"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
