"""From solved layers to a checked file: write, correct statistics, verify, report, and move it into place."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..core.arrays import Feed
from ..core.display import shown
from ..core.errors import VerificationError
from ..core.files import scratch_prefix
from ..core.progress import Feedback
from ..graph.save import leave_rejected, place_model, save_model
from ..runtime.session import open_session
from ..targets.agreement import Outputs
from ..targets.check import check_file
from ..targets.registry import TARGETS
from .agree import NAMED, find_fault, in_another_form
from .draft import Draft, better, make_draft, not_below_rounding
from .material import Material
from .recipe import Recipe
from .report import Report, make_report
from .solve import Solutions
from .verify import Check, Verdict, check_lowered, verify


@dataclass(frozen=True)
class Result:
    """A compressed model, in the form that its target takes, and the report on it. `path` is where it was written, None
    if it was kept in memory."""

    model: ir.Model
    report: Report
    path: Path | None

    def _repr_html_(self) -> str | None:
        """The page of the report, for notebooks."""
        return shown(self)


@dataclass(frozen=True)
class Destination:
    """Where a model goes, None to keep it in memory; and what the report says of how it was chosen, if a budget did.
    notes: what the user should know of that."""

    path: Path | None
    search: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def finish(
    material: Material,
    solutions: Solutions,
    recipe: Recipe,
    destination: Destination,
    feedback: Feedback,
    checks: Sequence[Check] = (),
    rival: Solutions | None = None,
) -> Result:
    """Write the solutions into the plan's graph, correct it, check the file, and put it at its destination.

    checks: what was checked before. rival: where layers were solved in order, the same ones solved each on dense
    inputs: the better of the two goes on. Raises VerificationError if the file fails a check: it is then left under a
    `.rejected` name.
    """
    draft = make_draft(material, solutions, recipe, feedback)
    if rival is not None and solutions.plan.layers:
        other = make_draft(material, rival, recipe, feedback)
        with feedback.watch("correct"):
            draft = better(draft, other, material, recipe)
    draft = not_below_rounding(draft, solutions, material, recipe, feedback)
    first, dense = next(material.held_out.feeds()), None
    if recipe.verify:
        with feedback.watch("verify"):
            dense = open_session(material.dense, device="cpu", threads=recipe.threads).run(first)
        draft, agreement = _agreeing(draft, first, dense, material, recipe, feedback)
        checks = [*checks, *agreement]
    output = destination.path
    folder = output.parent if output is not None else None
    with tempfile.TemporaryDirectory(prefix=scratch_prefix(), dir=folder) as scratch:
        path = Path(scratch) / (output.name if output is not None else "model.onnx")
        save_model(draft.plan.model, path)
        verdict = Verdict()
        if recipe.verify:
            with feedback.watch("verify"):
                verdict = verify(path, material, draft, recipe, feedback.progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        model, path, verdict = _lower(draft, first, recipe, path, verdict)
        if recipe.verify and not verdict.faults:
            with feedback.watch("verify"):
                found = check_file(path, recipe.target, first, recipe.threads, str(output or path.name), dense)
                verdict = replace(verdict, file_check=found)
        report = make_report(material, draft, recipe, verdict, destination.search, path, feedback.watch.seconds)
        said = (*report.notes, *destination.notes)
        report = replace(report, output="" if output is None else str(output), notes=said)
        if verdict.faults:
            raise VerificationError(f"{verdict.faults}{leave_rejected(path, output)}")
        if output is not None:
            place_model(path, output)
    return Result(model, report, output)


def _lower(draft: Draft, feed: Feed, recipe: Recipe, path: Path, verdict: Verdict) -> tuple[ir.Model, Path, Verdict]:
    """The model and its file in the form that the target takes, if that is another one, and whether it computes the
    same."""
    lower = TARGETS[recipe.target].weight_forms[recipe.weight_form]
    if lower is None or verdict.faults:
        return draft.plan.model, path, verdict
    model, lowered = lower(draft.plan.model), path.parent / "lowered" / path.name
    lowered.parent.mkdir()
    save_model(model, lowered)
    if recipe.verify:
        verdict = replace(verdict, checks=(*verdict.checks, check_lowered(draft.plan.model, lowered, feed, recipe)))
    return model, lowered, verdict


def _agreeing(
    draft: Draft, feed: Feed, dense: Outputs, material: Material, recipe: Recipe, feedback: Feedback
) -> tuple[Draft, list[Check]]:
    """A draft that engines compute as ONNX says, with layers in another form where they would not; and the check."""
    judged = tuple(attempt for attempt in draft.corrections if attempt.kinds in (("sequential",), ("rounding",)))
    for attempt in range(NAMED + 2):
        with feedback.watch("verify"):
            fault, tried = find_fault(draft.plan.model, dense, feed, recipe)
        if fault is None:
            agree = f"what the file says is what {' and '.join(tried)} computes with all that it fuses"
            return draft, [Check("engines", True, agree)] if tried else []
        other = in_another_form(draft.source, fault, material.folded, recipe, attempt >= NAMED)
        if other is None or attempt > NAMED:
            return draft, [fault.check]
        fresh = make_draft(material, other, recipe, feedback)
        draft = replace(fresh, corrections=(*fresh.corrections, *judged))
    raise AssertionError("the last attempt returns")
