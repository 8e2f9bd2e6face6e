"""From solved layers to a checked file: write, correct statistics, verify, report, and move it into place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .calibration.data import Samples
from .calibration.ranges import RangeObserver
from .correcting import CorrectionReport, correct_statistics, sites_of, train_all
from .errors import VerificationError
from .graph.fold import remove_unused
from .graph.model import save_model
from .graph.place import place_model
from .graph.qdq import Activation, Writer, WrittenWeight
from .plan import Plan
from .recipe import Recipe
from .report.report import Report, make_report
from .solving import EmbeddingReport, Solved, round_embedding
from .stopwatch import Stopwatch
from .verify import Check, Verdict, verify

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """A compressed model and the report on it. `path` is where it was written, None if it was kept in memory."""

    model: ir.Model
    report: Report
    path: Path | None


@dataclass(frozen=True)
class Material:
    """What a compressed model is made and judged with.

    source: what the user named the model by. feeds: samples that corrections look at; held_out: those that outputs are
    compared on. calibration: what the report says of the data; notes: what else it says.
    """

    source: object
    dense: ir.Model
    feeds: Samples
    held_out: Samples
    calibration: Mapping[str, Any]
    notes: Sequence[str]


def finish(
    material: Material,
    plan: Plan,
    solved: dict[str, Solved],
    ranges: Mapping[str, RangeObserver],
    recipe: Recipe,
    target: Path | None,
    checks: Sequence[Check],
    watch: Stopwatch,
    progress: Progress,
    search: Mapping[str, Any] | None = None,
) -> Result:
    """Write the solutions into the plan's graph, correct it, check the file, and put it at `target`.

    checks: what was checked before. search: what the report says of the budget, if there was one. Raises
    VerificationError if the file fails a check: it is then left under a `.rejected` name.
    """
    corrections: tuple[CorrectionReport, ...] = ()
    if recipe.global_adaprune and plan.layers:
        with watch("correct"):
            solved, corrections = train_all(material, plan, solved, recipe, progress)
    reference, sites = plan.model.clone(), sites_of(plan, material.dense)
    with watch("write"):
        written, embeddings, intervals = write(plan, solved, ranges, recipe)
    if recipe.correct and plan.layers:
        with watch("correct"):
            found = correct_statistics(material, plan, reference, sites, solved, written, recipe, progress)
            solved, corrections = found[0], (*corrections, *found[1])
    with tempfile.TemporaryDirectory(prefix=".onnx-obc-", dir=target.parent if target is not None else None) as scratch:
        path = Path(scratch) / (target.name if target is not None else "model.onnx")
        save_model(plan.model, path)
        verdict = Verdict()
        if recipe.verify:
            with watch("verify"):
                verdict = verify(path, material.dense, solved, written, material.held_out, recipe, progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        report = make_report(
            model=material.source,
            target=target,
            written=path,
            recipe=recipe,
            plan=plan,
            calibration=material.calibration,
            notes=material.notes,
            solved=solved,
            embeddings=embeddings,
            ranges=intervals,
            corrections=corrections,
            search=search,
            verdict=verdict,
            seconds=watch.seconds,
        )
        if verdict.faults:
            raise VerificationError(f"{verdict.faults}{leave_rejected(path, target)}")
        if target is not None:
            place_model(path, target)
    return Result(plan.model, report, target)


def write(
    plan: Plan, solved: Mapping[str, Solved], ranges: Mapping[str, RangeObserver], recipe: Recipe
) -> tuple[list[WrittenWeight], list[EmbeddingReport], dict[str, tuple[float, float]]]:
    """Write solutions, tables and Q/DQ pairs into the plan's graph. Returns where, what, and each range."""
    writer = Writer(plan.model)
    written = [writer.weight(entry.layer, entry.solution) for entry in solved.values()]
    embeddings = []
    for embedding in plan.embeddings:
        codes, grid, block, report = round_embedding(embedding, recipe)
        writer.embedding(embedding, codes, grid, block)
        embeddings.append(report)
    intervals: dict[str, tuple[float, float]] = {}
    for activation in plan.activations:
        found = interval(activation, ranges, recipe)
        writer.activation(activation, *found)
        name = activation.value if activation.value not in intervals else f"{activation.value} ({activation.bits} bits)"
        intervals[name] = found
    remove_unused(plan.model)
    return written, embeddings, intervals


def interval(activation: Activation, ranges: Mapping[str, RangeObserver], recipe: Recipe) -> tuple[float, float]:
    """The interval that an activation's integers span."""
    return ranges[activation.value].interval(recipe.ranges, activation.bits, activation.symmetric)


def leave_rejected(path: Path, target: Path | None) -> str:
    """Keep a file that failed a check under a name that nobody takes for a good one; says where."""
    if target is None:
        return ""
    rejected = target.with_name(f"{target.name}.rejected")
    if path.with_name(f"{path.name}.data").exists():  # weights beside it go by the name of the file
        save_model(ir.load(path), rejected)
    else:
        path.replace(rejected)
    return f"; the file was left as {rejected} for you to look at: please report it"
