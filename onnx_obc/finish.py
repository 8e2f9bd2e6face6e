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
from .check import examine
from .correcting import CorrectionReport, correct_statistics, sites_of, train_all
from .errors import VerificationError
from .graph.fold import remove_unused
from .graph.model import save_model
from .graph.place import place_model
from .graph.qdq import Activation, Writer, WrittenWeight
from .graph.targets import lowering
from .judge import Judge
from .plan import Plan
from .recipe import Recipe
from .report.report import Report, make_report
from .solving import EmbeddingReport, Solved, round_embedding
from .stopwatch import Stopwatch
from .verify import Check, Verdict, check_lowered, verify

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """A compressed model, in the form that its target takes, and the report on it. `path` is where it was written, None
    if it was kept in memory."""

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
    rival: tuple[Plan, dict[str, Solved]] | None = None,
) -> Result:
    """Write the solutions into the plan's graph, correct it, check the file, and put it at `target`.

    checks: what was checked before. search: what the report says of the budget, if there was one. rival: where layers
    were solved in order, the same ones solved each on dense inputs: the better of the two goes on. Raises
    VerificationError if the file fails a check: it is then left under a `.rejected` name.
    """
    draft = _draft(material, plan, solved, ranges, recipe, watch, progress)
    if rival is not None and plan.layers:
        other = _draft(material, *rival, ranges, recipe, watch, progress)
        with watch("correct"):
            draft = _better(draft, other, material, recipe)
    plan, solved, written = draft.plan, draft.solved, draft.written
    with tempfile.TemporaryDirectory(prefix=".onnx-obc-", dir=target.parent if target is not None else None) as scratch:
        path = Path(scratch) / (target.name if target is not None else "model.onnx")
        save_model(plan.model, path)
        verdict, examination = Verdict(), None
        if recipe.verify:
            with watch("verify"):
                verdict = verify(path, material.dense, solved, written, material.held_out, recipe, progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        first, model = next(iter(material.held_out.read(0, material.held_out.step))).feed, plan.model
        lower = lowering(recipe.target, recipe.weight_form)
        if lower is not None and not verdict.faults:
            model, path = lower(plan.model), Path(scratch) / "lowered" / path.name
            path.parent.mkdir()
            save_model(model, path)
            if recipe.verify:
                verdict = replace(verdict, checks=(*verdict.checks, check_lowered(plan.model, path, first, recipe)))
        if recipe.verify and not verdict.faults:
            with watch("verify"):
                examination = examine(path, recipe.target, first, recipe.threads, str(target or path.name))
        report = make_report(
            model=material.source,
            target=target,
            written=path,
            recipe=recipe,
            plan=plan,
            calibration=material.calibration,
            notes=material.notes,
            solved=solved,
            embeddings=draft.embeddings,
            ranges=draft.intervals,
            corrections=draft.corrections,
            search=search,
            verdict=verdict,
            examination=examination,
            seconds=watch.seconds,
        )
        if verdict.faults:
            raise VerificationError(f"{verdict.faults}{leave_rejected(path, target)}")
        if target is not None:
            place_model(path, target)
    return Result(model, report, target)


@dataclass(frozen=True)
class _Draft:
    """A model that was written and corrected, but not checked yet."""

    plan: Plan
    solved: dict[str, Solved]
    written: Sequence[WrittenWeight]
    embeddings: Sequence[EmbeddingReport]
    intervals: Mapping[str, tuple[float, float]]
    corrections: tuple[CorrectionReport, ...]


def _draft(
    material: Material,
    plan: Plan,
    solved: dict[str, Solved],
    ranges: Mapping[str, RangeObserver],
    recipe: Recipe,
    watch: Stopwatch,
    progress: Progress,
) -> _Draft:
    """Train all layers, if the recipe says so, write them, and correct the model's statistics."""
    corrections: tuple[CorrectionReport, ...] = ()
    correcting = recipe.correct and bool(plan.layers)
    reference = plan.model.clone() if correcting else plan.model
    sites = sites_of(plan, material.dense, recipe) if correcting else []
    if recipe.global_adaprune and plan.layers:
        with watch("correct"):
            solved, corrections = train_all(material, plan, solved, recipe, progress)
    with watch("write"):
        written, embeddings, intervals = write(plan, solved, ranges, recipe)
    if correcting:
        with watch("correct"):
            found = correct_statistics(material, plan, reference, sites, solved, written, recipe, progress)
            solved, corrections = found[0], (*corrections, *found[1])
    return _Draft(plan, solved, written, embeddings, intervals, corrections)


def _better(ordered: _Draft, rival: _Draft, material: Material, recipe: Recipe) -> _Draft:
    """Of layers solved in order and each for itself, what has the lower output loss on samples that neither saw."""
    judge = Judge(material.dense, (material.held_out,), recipe.device, recipe.threads)
    before, after = (judge.loss(draft.plan.model) for draft in (rival, ordered))
    attempt = CorrectionReport(("sequential",), len(ordered.solved), before, after, after < before)
    best = ordered if attempt.kept else rival
    return replace(best, corrections=(*best.corrections, attempt))


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
