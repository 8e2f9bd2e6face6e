"""Reports as plain values, as `Report.to_dict` gives them and files hold them: read, and checked before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import ReportError, first_line, quoted, shortened
from ..core.files import read_regular

LARGEST = 2**28  # bytes of a file that is looked into
SCHEMA = 1

Count: TypeAlias = Annotated[int, Field(ge=0, le=2**62)]
Number: TypeAlias = float | None  # what is not finite is null
Image: TypeAlias = Annotated[str, Field(pattern=r"^data:image/(jpeg|png);base64,[A-Za-z0-9+/=]*$")]


class Part(BaseModel):
    """A part of a report. What it does not name is left alone; whatever came later than version 0.1 may be missing."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=False)


class HistogramPart(Part):
    """Counts in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4096)]


class GridPart(Part):
    """The grid of the row with the median scale."""

    scale: float
    zero_point: int
    bits: Annotated[int, Field(ge=1, le=16)]
    symmetric: bool
    smallest: float
    largest: float


class WeightPart(Part):
    """A layer's weight."""

    histogram: HistogramPart
    grid: GridPart | None = None
    nodes: tuple[str, ...] = ()
    input: str | None = None


class LayerPart(Part):
    """A compressed layer."""

    name: str
    op: str
    groups: Count
    rows: Count
    columns: Count
    level: str
    activations: str
    solver: str = ""
    loss_predicted: Number = None
    loss_greedy: Number = None
    loss_measured: Number = None
    loss_bound: Number = None
    loss: Number = None
    loss_relative: Number = None
    loss_baseline: Number = None
    baseline_relative: Number = None
    ordered_over_exact: Number = None
    zeros: Number = None
    damping: Number = None
    dead_columns: Count = 0
    positions: Count = 0
    seconds: Number = None
    bytes_before: Count
    bytes_after: Count
    notes: tuple[str, ...] = ()


class LeftPart(Part):
    """A weight that stays as it is."""

    name: str
    op: str
    reason: str


class TablePart(Part):
    """A table stored as integers."""

    name: str
    rows: Count
    columns: Count
    level: str
    error_relative: Number
    bytes_before: Count
    bytes_after: Count


class CorrectionPart(Part):
    """A correction that was tried."""

    kinds: tuple[str, ...]
    sites: Count
    loss_before: Number
    loss_after: Number
    standard_error: Number = None
    kept: bool


class OutputPart(Part):
    """How far an output is from the dense model's."""

    name: str
    sqnr_db: Number
    top1_agreement: Number = None
    not_finite: tuple[str, ...] = ()
    integers: bool = False


class SamplePart(Part):
    """One of the worst samples."""

    name: str
    loss: Number
    sqnr_db: Number = None
    dense_class: int | None = None
    found_class: int | None = None
    text: str | None = None
    image: Image | None = None


class CheckPart(Part):
    """A check of the written file."""

    name: str
    passed: bool
    detail: str


class SpeedPart(Part):
    """How fast the file is against the dense model in its runtime."""

    runtime: str
    batch: Count
    threads: Count | None = None
    dense_seconds: float
    seconds: Annotated[float, Field(gt=0)]
    ratio: float
    low: Number = None
    high: Number = None
    machine: str = ""
    layers: Mapping[str, tuple[Number, Number]] | None = None


class MetricPart(Part):
    """What the user measures a model by, of both."""

    name: str
    dense: float
    compressed: float
    drop: Number = None
    samples: Count | None = None
    standard_error: Number = None


class GatePart(Part):
    """What the user demanded, and whether it was reached."""

    name: str
    wanted: str | float | None = None
    reached: str | float | None = None
    passed: bool
    advice: str | None = None


class SearchPart(Part):
    """What a budget led to."""

    budget: str
    search: str = ""
    sensitivity: str = ""
    predicted_loss: Number = None
    costs: Mapping[str, Number] = {}
    latency: Mapping[str, Any] | None = None


class EnginePart(Part):
    """What the runtime does with the file."""

    runtime: str
    ran: bool
    quantized: Count = 0
    in_integers: Count = 0
    integer_weights: Count = 0
    in_weight_kernels: Count = 0


class CalibrationPart(Part):
    """What the model was calibrated on."""

    source: str = ""
    synthetic: bool = False
    samples: Count = 0
    held_out: Count = 0


class PlainReport(Part):
    """A report; see docs/report.md."""

    schema_: Annotated[int, Field(alias="schema")]
    version: str
    model: str
    output: str = ""
    command: tuple[str, ...] | None = None
    versions: Mapping[str, str] = {}
    machine: str = ""
    recipe: Mapping[str, Any]
    calibration: CalibrationPart
    search: SearchPart | None = None
    order: tuple[str, ...] = ()
    layers: tuple[LayerPart, ...]
    weights: Mapping[str, WeightPart] = {}
    left_out: tuple[LeftPart, ...] = ()
    embeddings: tuple[TablePart, ...] = ()
    activations: Mapping[str, tuple[float, float]] = {}
    histograms: Mapping[str, HistogramPart] = {}
    corrections: tuple[CorrectionPart, ...] = ()
    outputs: tuple[OutputPart, ...] = ()
    worst: tuple[SamplePart, ...] = ()
    output_loss: Number = None
    checks: tuple[CheckPart, ...] = ()
    engine: EnginePart | None = None
    speed: SpeedPart | None = None
    metric: MetricPart | None = None
    gates: tuple[GatePart, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, Number] = {}
    file_bytes_before: Count | None = None
    file_bytes_after: Count
    peak_memory_bytes: Count | None = None


def read_reports(path: Path) -> tuple[PlainReport, ...]:
    """The report, or the list of reports, of a JSON file. Raises ReportError that says what is wrong with it."""
    try:
        text = read_regular(path, LARGEST).decode()
    except FileNotFoundError as error:
        raise ReportError(f"{path}: not found; give the file that --report wrote") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: is not UTF-8 text; give the file that --report wrote") from error
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror or 'cannot be read'}; give the file that --report wrote") from error
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: is no JSON ({first_line(error)}); give the file that --report wrote") from error
    return checked_reports(plain, str(path))


def checked_reports(plain: object, where: str) -> tuple[PlainReport, ...]:
    """Plain values as reports: those of one, or a list of them, as several budgets give. Raises ReportError."""
    several = isinstance(plain, list)
    given = plain if isinstance(plain, list) else [plain]
    if not given:
        raise ReportError(f"{where}: a list without a report; give the file that --report wrote")
    return tuple(_checked(one, f"{where}, report {i}" if several else where) for i, one in enumerate(given, 1))


def _checked(plain: object, where: str) -> PlainReport:
    if not isinstance(plain, dict) or not {"schema", "layers"} <= set(plain) or "unmatched" in plain:  # that of `debug`
        raise ReportError(
            f"{where}: is no report of a run of onnx-obc that made a model; give the file that --report wrote"
        )
    if plain["schema"] != SCHEMA:
        found = quoted(plain["schema"])
        raise ReportError(f"{where}: schema {found}, but this version reads {SCHEMA}; use the onnx-obc that wrote it")
    try:
        return PlainReport.model_validate(plain)
    except (ValidationError, RecursionError, ValueError) as error:
        raise ReportError(f"{where}: {_first_fault(error)}; give the file that --report wrote") from error


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return first_line(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return shortened(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
