"""The record of what was done: every layer, every check, every figure."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..core.machine import peak_memory, this_machine, usable_cores
from ..core.plain_values import plain_values
from ..core.plural import counted
from ..core.version import __version__
from ..graph.layers import LeftOut
from ..graph.save import file_bytes
from ..targets.check import FileCheck
from ..targets.registry import TARGETS
from .attempts import CorrectionReport
from .draft import Draft
from .examine import MetricReport
from .gates import Gate, judge
from .histograms import Histogram, WeightPicture, activation_histograms, graph_order, weight_pictures
from .layer import EmbeddingReport, LayerReport
from .material import Material
from .quality import quality_notes
from .recipe import Recipe
from .speed import Speed
from .verify import Check, OutputMatch, Verdict
from .worst import WorstSample

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Everything about one run. `seconds` are of each stage; file sizes are in bytes, external data included."""

    schema: int
    version: str
    model: str
    output: str
    command: tuple[str, ...] | None
    versions: Mapping[str, str]
    machine: str
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any]
    search: Mapping[str, Any] | None
    order: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    weights: Mapping[str, WeightPicture]
    left_out: tuple[LeftOut, ...]
    embeddings: tuple[EmbeddingReport, ...]
    activations: Mapping[str, tuple[float, float]]
    histograms: Mapping[str, Histogram]
    corrections: tuple[CorrectionReport, ...]
    outputs: tuple[OutputMatch, ...]
    worst: tuple[WorstSample, ...]
    output_loss: float | None
    checks: tuple[Check, ...]
    engine: Mapping[str, Any] | None
    speed: Speed | None
    metric: MetricReport | None
    gates: tuple[Gate, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    file_bytes_before: int | None
    file_bytes_after: int
    peak_memory_bytes: int

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
        plain: dict[str, Any] = plain_values(self)
        return {**plain, "totals": plain_values(self.totals)}


def make_report(
    material: Material,
    draft: Draft,
    recipe: Recipe,
    verdict: Verdict,
    search: Mapping[str, Any] | None,
    written: Path,
    seconds: Mapping[str, float],
) -> Report:
    """Gather what the stages found. written: where the file lies now; `output`, where it goes, is left empty, and so
    is `command`, which only the command line knows."""
    plan, model = draft.plan, material.source
    judged = recipe.verify and not verdict.faults  # of a file that fails a check nothing more was measured
    notes = [*plan.notes, *material.notes]
    reports = [entry.report for entry in draft.solved.values()]
    dynamic = TARGETS[recipe.target].dynamic
    notes += quality_notes(reports, verdict.outputs, material.calibration["held_out"], dynamic)
    if (asked := recipe.threads or 0) > usable_cores():
        there = counted(usable_cores(), "core")
        notes.append(f"{asked} threads were asked for, but the machine has {there}: as many were used")
    if not recipe.verify:
        notes.append("the file was not verified")
    if verdict.file_check is not None:
        notes += _findings(verdict.file_check)
    return Report(
        schema=SCHEMA,
        version=__version__,
        model=str(model) if isinstance(model, str | Path) else type(model).__name__,
        output="",
        command=None,
        versions=_versions(),
        machine=this_machine(),
        recipe=recipe.model_dump(mode="json"),
        calibration=dict(material.calibration),
        search=search,
        order=graph_order(draft),
        layers=tuple(entry.report for entry in draft.solved.values()),
        weights=weight_pictures(draft),
        left_out=plan.left_out,
        embeddings=tuple(draft.embeddings),
        activations=dict(draft.intervals),
        histograms=activation_histograms(draft),
        corrections=(*material.transforms, *draft.corrections),
        outputs=verdict.outputs,
        worst=verdict.worst,
        output_loss=verdict.loss,
        checks=verdict.checks,
        engine=None if verdict.file_check is None else _engine(verdict.file_check),
        speed=verdict.speed,
        metric=verdict.metric,
        gates=judge(recipe, verdict.outputs, verdict.metric, verdict.speed) if judged else (),
        notes=tuple(notes),
        seconds=dict(seconds),
        file_bytes_before=_model_bytes(model),
        file_bytes_after=file_bytes(written),
        peak_memory_bytes=peak_memory(),
    )


def _versions() -> dict[str, str]:
    """Of what the result depends on, by name."""
    import onnxruntime

    return {
        "onnx-obc": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _engine(found: FileCheck) -> dict[str, Any]:
    """What the runtime does with the file: how many products run as their form in the file promises."""
    kept, promised = found.count("int8")
    weights, all_weights = found.weights
    return {
        "runtime": found.engine,
        "ran": found.ran,
        "quantized": promised,
        "in_integers": kept,
        "integer_weights": all_weights,
        "in_weight_kernels": weights,
    }


def _findings(found: FileCheck) -> list[str]:
    """What the runtime's checker says, each sentence once."""
    nodes: dict[str, list[str]] = {}
    for finding in found.findings:
        if finding.severity != "note" or finding.rule in ("saturation", "trtexec"):
            nodes.setdefault(finding.message, []).append(finding.node)
    return [_about(names, text) for text, names in nodes.items()]


def _about(names: Sequence[str], text: str) -> str:
    where = f"{len(names)} layers" if len(names) > 1 else names[0]
    return f"{where}: {text}" if where else text


def _model_bytes(model: object) -> int | None:
    if isinstance(model, bytes):
        return len(model)
    if isinstance(model, onnx.ModelProto):
        return int(model.ByteSize())
    return file_bytes(Path(model)) if isinstance(model, str | Path) else None
