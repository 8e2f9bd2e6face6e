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
from ..core.errors import CalibrationError, GateError, ModelError, VerificationError
from ..core.files import scratch_prefix
from ..core.plural import counted
from ..core.progress import Feedback
from ..graph.save import leave_rejected, place_model, save_model
from ..runtime.session import open_session
from ..targets.agreement import Outputs
from ..targets.check import check_file
from ..targets.registry import TARGETS
from .agree import NAMED, find_fault, in_another_form
from .attempts import of_whole_models, without_order
from .draft import Draft, better, make_draft, not_below_rounding
from .examine import Examiner
from .gates import quality_gate
from .half import Precision, choose_precision
from .material import Material
from .mixed import mix_precisions
from .recipe import Recipe
from .reconstruct import reconstructed
from .report import Report, make_report
from .solve import Solutions, in_profile, left_in_float
from .speed import measure_speed, timing_feed
from .verify import Check, Verdict, check_lowered, verify

METRIC = "metric"  # the check that the user's metric can be taken of the file
FIXES = 3  # times that slow layers are looked for and returned to float


@dataclass(frozen=True)
class Result:
    """A compressed model, in the form that its target takes, and the report on it. `path` is where it was written, None
    if it was kept in memory; of a model that the user's gates refuse, its `.rejected` name."""

    model: ir.Model
    report: Report
    path: Path | None

    @property
    def refused(self) -> str:
        """The gates that it did not pass, on one line; empty if there are none."""
        return "; ".join(str(gate) for gate in self.report.gates if not gate.passed)

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
    `.rejected` name, as one is that fails a gate of the user's, which only its report says; see `hand_over`.
    """
    draft = alone = ordered = make_draft(material, solutions, recipe, feedback)
    if rival is not None and solutions.plan.layers:
        alone = make_draft(material, rival, recipe, feedback)
        with feedback.watch("correct"):
            draft = better(draft, alone, material, recipe)
    draft = reconstructed(draft, alone.source, material, recipe, feedback)
    draft = not_below_rounding(draft, material, recipe, feedback)
    in_order = draft.source.solved is ordered.source.solved and alone is not ordered
    output = destination.path
    with tempfile.TemporaryDirectory(prefix=scratch_prefix(), dir=None if output is None else output.parent) as scratch:
        work = _Work(material, recipe, feedback, checks, Path(scratch), output, alone.source if in_order else None)
        made = work.write(draft)
        if recipe.fix_slow:
            made = _without_slow(made, work)
        if recipe.min_quality is not None and destination.search is None:
            made = _good_enough(made, work)
        seconds = feedback.watch.seconds
        report = make_report(material, made.draft, recipe, made.verdict, destination.search, made.path, seconds)
        notes = (*report.notes, *made.notes, *destination.notes)
        report = replace(report, output="" if output is None else str(output), notes=notes)
        if faults := made.verdict.faults:
            rejected = leave_rejected(made.path, output)
            ours = any(check.name != METRIC for check in made.verdict.checks if not check.passed)
            asked = ": please report it" if ours else ""
            left = f"; the file was left as {rejected} for you to look at{asked}" if rejected else ""
            raise VerificationError(f"{faults}{left}")
        if any(not gate.passed for gate in report.gates):
            rejected = leave_rejected(made.path, output)
            return Result(made.model, replace(report, output=str(rejected or "")), rejected)
        if output is not None:
            place_model(made.path, output)
    return Result(made.model, report, output)


def hand_over(results: Sequence[Result]) -> None:
    """Raise GateError if a gate refused one of the results."""
    refused = [result for result in results if result.refused]
    if refused:
        said = "; ".join(f"{result.refused}{f' ({result.path})' if result.path else ''}" for result in refused)
        raise GateError(said, results)


@dataclass(frozen=True)
class _Made:
    """A draft in its file, checked and measured. model: as it is in the file, in its target's form."""

    draft: Draft
    model: ir.Model
    path: Path
    verdict: Verdict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Work:
    """What writing a draft takes. checks: what was checked before. folder: for files, until one is put in place. alone:
    where layers were solved in order, the same ones solved each for itself; else None."""

    material: Material
    recipe: Recipe
    feedback: Feedback
    checks: Sequence[Check]
    folder: Path
    output: Path | None
    alone: Solutions | None

    def write(self, draft: Draft) -> _Made:
        """Make engines agree on a draft, write it, check the file, and measure it."""
        material, recipe, watch, checks = self.material, self.recipe, self.feedback.watch, self.checks
        first, dense = next(material.held_out.feeds()), None
        with watch("correct"):
            precision = choose_precision(material, draft, recipe)
            draft = precision.fit(draft)
        if recipe.verify:
            with watch("verify"):
                dense = open_session(material.dense, device="cpu", threads=recipe.threads).run(first)
            draft, agreement = _agreeing(draft, precision, first, dense, material, recipe, self.feedback)
            checks = [*checks, *agreement]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        path, verdict = folder / (self.output.name if self.output is not None else "model.onnx"), Verdict()
        model = precision.form(draft.plan.model)
        save_model(model, path)
        if recipe.verify:
            with watch("verify"):
                verdict = verify(path, material, draft, recipe, self.feedback.progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        if material.examiner is not None and not verdict.faults:
            with watch("metric"):
                verdict = _examined(verdict, material.examiner, path)
        model, path, verdict = _lower(model, first, recipe, path, verdict)
        if recipe.verify and not verdict.faults:
            with watch("verify"):
                name = str(self.output or path.name)
                found = check_file(path, recipe.target, first, recipe.threads, name, dense)
                verdict = replace(verdict, file_check=found)
            if recipe.measure_speed:
                with watch("time"):
                    feed = timing_feed(material.folded, material.held_out, recipe.timing_batch)
                    plain = material.untransformed or material.folded
                    verdict = replace(verdict, speed=measure_speed(plain, path, feed, recipe))
        return _Made(draft, model, path, verdict, precision.notes)


def _examined(verdict: Verdict, examiner: Examiner, path: Path) -> Verdict:
    """The verdict with the user's metric, or with what hinders it: hours of work are not lost to a function's fault."""
    try:
        return replace(verdict, metric=examiner.examine(path))
    except (CalibrationError, ModelError) as error:
        return replace(verdict, checks=(*verdict.checks, Check(METRIC, False, str(error))))


def _without_slow(made: _Made, work: _Work) -> _Made:
    """The same file without the layers that are slower than in the dense model, as long as that makes it faster."""
    for _ in range(FIXES):
        speed = made.verdict.speed
        choices = made.draft.plan.choices  # a layer that is float already only seems slower
        if made.verdict.faults or speed is None or not (slow := [x for x in speed.slow_layers if x in choices]):
            break
        why = f"{speed.runtime} runs it slower than in float: it stays float"
        solutions = left_in_float(made.draft.source, slow, work.material.folded, work.recipe, why)
        if solutions is None:
            note = f"every layer is slower than in float in {speed.runtime}: the dense model is the fastest"
            return replace(made, notes=(*made.notes, note))
        other = work.write(_again(made.draft, solutions, work.material, work.recipe, work.feedback))
        faster = other.verdict.speed
        if other.verdict.faults or faster is None or faster.low <= speed.ratio:
            break
        note = f"{counted(len(slow), 'layer')} returned to float: {speed.ratio:.2f} → {faster.ratio:.2f} times faster"
        made = replace(other, notes=(*made.notes, note))
    return made


def _good_enough(made: _Made, work: _Work) -> _Made:
    """The same file with the fewest layers in float with which it reaches the quality that the recipe asks for; itself
    where it does, or where nothing helps."""
    material, recipe, verdict = work.material, work.recipe, made.verdict
    assert recipe.min_quality is not None
    if verdict.faults or not made.draft.plan.layers:
        return made
    gate = quality_gate(recipe.min_quality, verdict.outputs, verdict.metric)
    if gate.passed:
        return made

    start = made.draft
    if work.alone is not None:  # in order they make up for what layers before them lose, which may be float then
        plan, alone = start.plan, in_profile(work.alone, start.plan.choices, material.folded, recipe)
        alone = replace(alone, plan=replace(alone.plan, left_out=plan.left_out, notes=plan.notes))
        start = replace(start, source=alone, corrections=without_order(start.corrections))

    def trial(solutions: Solutions, correct: bool) -> tuple[Draft, ir.Model]:
        as_told = recipe if correct else recipe.model_copy(update={"effort": "fast"})
        fresh = _again(start, solutions, material, as_told, work.feedback)
        precision = choose_precision(material, fresh, recipe)
        fresh = precision.fit(fresh)
        return fresh, precision.form(fresh.plan.model)

    speed = verdict.speed if recipe.fix_slow or recipe.min_speedup is not None else None
    found = mix_precisions(start, gate, material, recipe, speed, trial, work.feedback)
    if found.draft is None:
        return replace(made, notes=(*made.notes, found.note))
    other = work.write(found.draft)
    if other.verdict.faults:
        return replace(made, notes=(*made.notes, f"{found.note}; but its file fails: {other.verdict.faults}"))
    return replace(other, notes=(*made.notes, found.note))


def _lower(model: ir.Model, feed: Feed, recipe: Recipe, path: Path, verdict: Verdict) -> tuple[ir.Model, Path, Verdict]:
    """The model and its file in the form that the target takes, if that is another one, and whether it computes the
    same."""
    lower = TARGETS[recipe.target].weight_forms[recipe.form]
    if lower is None or verdict.faults:
        return model, path, verdict
    plain, model, lowered = model, lower(model), path.parent / "lowered" / path.name
    if model is plain:
        return model, path, verdict
    lowered.parent.mkdir()
    save_model(model, lowered)
    if recipe.verify:
        verdict = replace(verdict, checks=(*verdict.checks, check_lowered(plain, lowered, feed, recipe)))
    return model, lowered, verdict


def _agreeing(
    draft: Draft,
    precision: Precision,
    feed: Feed,
    dense: Outputs,
    material: Material,
    recipe: Recipe,
    feedback: Feedback,
) -> tuple[Draft, list[Check]]:
    """A draft that engines compute as ONNX says, with layers in another form where they would not; and the check."""
    for attempt in range(NAMED + 2):
        with feedback.watch("verify"):
            fault, tried = find_fault(precision.form(draft.plan.model), dense, feed, recipe)
        if fault is None:
            agree = f"what the file says is what {' and '.join(tried)} computes with all that it fuses"
            return draft, [Check("engines", True, agree)] if tried else []
        other = in_another_form(draft.source, fault, material.folded, recipe, attempt >= NAMED)
        if other is None or attempt > NAMED:
            return draft, [fault.check]
        draft = precision.fit(_again(draft, other, material, recipe, feedback))
    raise AssertionError("the last attempt returns")


def _again(draft: Draft, solutions: Solutions, material: Material, recipe: Recipe, feedback: Feedback) -> Draft:
    """A draft of other forms of the same solutions, which knows what these were chosen from."""
    judged = of_whole_models(draft.corrections)
    fresh = make_draft(material, solutions, recipe, feedback)
    return replace(fresh, corrections=(*judged, *fresh.corrections))
