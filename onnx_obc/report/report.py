"""The report of a run: what became of every layer, what was checked, and the JSON of it (see docs/report.md)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..graph.layers import LeftOut
from ..verify import Check, OutputMatch

SCHEMA = 1


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer.

    All losses are layer losses ‖WX − ŴX‖² / n over the calibration positions. loss_predicted and loss_measured are on
    the damped Hessian, which the solver works with; loss and loss_baseline (rounding or magnitude pruning at the same
    level) are on the plain one, and relative to ‖WX‖² / n they are loss_relative and baseline_relative. damping is the
    fraction of the mean diagonal really used. Bytes count true bits, scales and zero points included.
    """

    name: str
    op: str
    groups: int
    rows: int
    columns: int
    level: str
    activations: str
    loss_predicted: float
    loss_measured: float
    loss: float
    loss_relative: float
    loss_baseline: float
    baseline_relative: float
    zeros: float
    damping: float
    dead_columns: int
    positions: int
    seconds: float
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddingReport:
    """One table that is stored as integers, by rounding. error_relative: ‖T − T̂‖² / ‖T‖²."""

    name: str
    rows: int
    columns: int
    level: str
    error_relative: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Report:
    """Everything about one run. `seconds` are of each stage; file sizes are in bytes, external data included."""

    schema: int
    version: str
    model: str
    output: str
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any]
    layers: tuple[LayerReport, ...]
    left_out: tuple[LeftOut, ...]
    embeddings: tuple[EmbeddingReport, ...]
    activations: Mapping[str, tuple[float, float]]
    outputs: tuple[OutputMatch, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    file_bytes_before: int | None
    file_bytes_after: int

    @property
    def totals(self) -> dict[str, float]:
        """Sums and means over all compressed layers."""
        count = max(len(self.layers), 1)
        return {
            "layers": len(self.layers),
            "left_out": len(self.left_out),
            "parameters": sum(x.groups * x.rows * x.columns for x in self.layers),
            "bytes_before": sum(x.bytes_before for x in self.layers),
            "bytes_after": sum(x.bytes_after for x in self.layers),
            "mean_loss_relative": sum(x.loss_relative for x in self.layers) / count,
            "mean_baseline_relative": sum(x.baseline_relative for x in self.layers) / count,
            "solve_seconds": sum(x.seconds for x in self.layers),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; infinite numbers become null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return {**plain, "totals": _plain(self.totals)}


def write_json(report: Report, path: Path) -> None:
    """Write the report under a temporary name, then rename it. Raises OutputError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({error.strerror}); check --report") from error
    finally:
        scratch.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else value.item()
