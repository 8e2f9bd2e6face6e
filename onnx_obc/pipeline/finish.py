"""From solved layers to a checked file: write, correct statistics, verify, report, and move it into place."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..calibration.ranges import RangeObserver
from ..core.arrays import Feed
from ..core.errors import VerificationError
from ..core.progress import Progress, Stopwatch
from ..graph.save import leave_rejected, place_model, save_model
from ..graph.write import WrittenWeight
from ..runtime.judge import Judge
from ..targets.check import check_file
from ..targets.registry import TARGETS
from .agree import NAMED, find_fault, in_another_form
from .correct import CorrectionReport, correct_statistics, sites_of, train_all
from .layer import EmbeddingReport, Solved
from .material import Material
from .plan import Plan
from .recipe import Recipe
from .report import Report, make_report
from .unseen import without_unseen
from .verify import Check, Verdict, check_lowered, verify
from .write import fit_to_biases, write


@dataclass(frozen=True)
class Result:
    """A compressed model, in the form that its target takes, and the report on it. `path` is where it was written, None
    if it was kept in memory."""

    model: ir.Model
    report: Report
    path: Path | None


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
    first = next(iter(material.held_out.read(0, material.held_out.step))).feed
    if recipe.verify:
        draft, agreement = _agreeing(draft, first, material, ranges, recipe, watch, progress)
        checks = [*checks, *agreement]
    plan, solved, written = draft.plan, draft.solved, draft.written
    with tempfile.TemporaryDirectory(prefix=".onnx-obc-", dir=target.parent if target is not None else None) as scratch:
        path = Path(scratch) / (target.name if target is not None else "model.onnx")
        save_model(plan.model, path)
        verdict, examination = Verdict(), None
        if recipe.verify:
            with watch("verify"):
                verdict = verify(path, material.dense, solved, written, material.held_out, recipe, progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        model = plan.model
        lower = TARGETS[recipe.target].weight_forms[recipe.weight_form]
        if lower is not None and not verdict.faults:
            model, path = lower(plan.model), Path(scratch) / "lowered" / path.name
            path.parent.mkdir()
            save_model(model, path)
            if recipe.verify:
                verdict = replace(verdict, checks=(*verdict.checks, check_lowered(plan.model, path, first, recipe)))
        if recipe.verify and not verdict.faults:
            with watch("verify"):
                examination = check_file(path, recipe.target, first, recipe.threads, str(target or path.name))
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
    """A model that was written and corrected, but not checked yet. source: the layers as they were before that."""

    plan: Plan
    source: dict[str, Solved]
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
    plan, solved = without_unseen(plan, solved, ranges, recipe.target)
    source = solved
    corrections: tuple[CorrectionReport, ...] = ()
    correcting = recipe.correct and bool(plan.layers)
    reference = plan.model.clone() if correcting else plan.model
    sites = sites_of(plan, material.dense, recipe) if correcting else []
    if recipe.global_adaprune and plan.layers:
        with watch("correct"):
            solved, corrections = train_all(material, plan, solved, recipe, progress)
    with watch("write"):
        written, embeddings, intervals = write(plan, solved, ranges, recipe)
        solved = fit_to_biases(plan.model, solved, written, recipe.target)
    if correcting:
        with watch("correct"):
            found = correct_statistics(material, plan, reference, sites, solved, written, recipe, progress)
            solved, corrections = found[0], (*corrections, *found[1])
            solved = fit_to_biases(plan.model, solved, written, recipe.target)
    return _Draft(plan, source, solved, written, embeddings, intervals, corrections)


def _agreeing(
    draft: _Draft,
    feed: Feed,
    material: Material,
    ranges: Mapping[str, RangeObserver],
    recipe: Recipe,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[_Draft, list[Check]]:
    """A draft that engines compute as ONNX says, with layers in another form where they would not; and the check."""
    for attempt in range(NAMED + 2):
        with watch("verify"):
            fault, tried = find_fault(draft.plan.model, feed, recipe)
        if fault is None:
            agree = f"what the file says is what {' and '.join(tried)} computes with all that it fuses"
            return draft, [Check("engines", True, agree)] if tried else []
        other = in_another_form(draft.plan, draft.source, fault, material.dense, recipe, attempt >= NAMED)
        if other is None or attempt > NAMED:
            return draft, [fault.check]
        draft = _draft(material, *other, ranges, recipe, watch, progress)
    raise AssertionError("the last attempt returns")


def _better(ordered: _Draft, rival: _Draft, material: Material, recipe: Recipe) -> _Draft:
    """Of layers solved in order and each for itself, what has the lower output loss on samples that neither saw."""
    judge = Judge(material.dense, list(material.held_out.feeds()), recipe.device, recipe.threads)
    before, after = (judge.loss(draft.plan.model) for draft in (rival, ordered))
    attempt = CorrectionReport(("sequential",), len(ordered.solved), before, after, after < before)
    best = ordered if attempt.kept else rival
    return replace(best, corrections=(*best.corrections, attempt))
