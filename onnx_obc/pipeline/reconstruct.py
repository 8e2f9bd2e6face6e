"""Whether the parts of a compressed model are trained, for how long, and whether what comes of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..calibration.capture import run_costs
from ..core.errors import ModelError, one_line
from ..core.plural import counted
from ..core.progress import Feedback, Progress, hundredths
from ..correction.reconstruction import MOST, shared_length
from ..correction.units import Unit
from ..graph.layers import find_layers
from .attempts import (
    CorrectionReport,
    compared,
    must_be_clear,
    of_whole_models,
    rounds_inputs_coarsely,
    unless_clearly_worse,
    without_order,
)
from .correct import missing_for_training
from .draft import TRAINED, Draft, make_draft
from .material import Material
from .options import OWN
from .plan import Plan
from .recipe import Recipe
from .solve import Solutions, in_profile
from .training_walk import TrainingWalk

STEPS = 400  # for each part, with --effort best
BRIEF = 100  # without
FEWEST = 32  # samples below which nothing is trained
UNASKED_SAMPLES = 128  # below which nothing is that the user did not ask for
UNASKED_FLOPS = 1e13  # of that, at most: two minutes or so on two cores
BACK_AND_FORTH = 3  # gradients take twice as long as outputs


def reconstructed(draft: Draft, start: Solutions, material: Material, recipe: Recipe, feedback: Feedback) -> Draft:
    """A model whose parts are trained; the draft where that is clearly worse on held-out samples, or where all layers
    are of 8 bits without zeros and it is not clearly better. `best` trains them briefly too, as more steps are not
    always better, and goes on with what has the lower loss there.

    start: what training begins with, where both were made layers solved each for itself: from layers solved in order it
    comes no further.
    """
    reason = _untrained(draft.plan, material, recipe)
    if reason is not None:
        return noted(draft, [reason]) if reason else draft
    clearly = must_be_clear(draft.plan.choices)
    tried: list[tuple[CorrectionReport, Draft, int]] = []
    notes: list[str] = []
    for steps in _steps(recipe):
        with feedback.watch("reconstruct"):
            try:
                trained, notes = _trained(start, material, recipe, steps, feedback.progress)
            except Exception as error:  # nobody loses what is solved by what he did not ask for
                if _asked(recipe):
                    raise
                why = f"{type(error).__name__}: {one_line(error)}"
                return noted(draft, [f"parts were not trained, as that failed ({why}); please report it"])
        if trained is None:
            continue
        other = make_draft(material, trained, recipe, feedback)
        count = sum(entry.report.notes[-1:] == (TRAINED,) for entry in trained.solved.values())
        with feedback.watch("correct"):
            models = (draft.plan.model, other.plan.model)
            attempt = compared(
                "reconstruction", count, models, material.dense, material.held_out, recipe.execution(), clearly
            )
        tried.append((attempt if clearly else unless_clearly_worse(attempt), other, steps))
    if not tried:
        return noted(
            draft, [*notes, f"{_option(recipe)}: no part of the model came nearer to the dense one by training"]
        )
    attempt, other, steps = min(tried, key=lambda made: (not made[0].kept, made[0].loss_after))
    if attempt.kept:
        chosen, before = other, (*without_order(of_whole_models(draft.corrections)), *other.corrections)
        if steps != _steps(recipe)[-1]:
            notes = [*notes, f"parts were trained in {steps} steps each: more bring held-out samples no nearer"]
    else:
        chosen, before = draft, draft.corrections
    return noted(replace(chosen, corrections=(*before, attempt)), notes)


def _untrained(plan: Plan, material: Material, recipe: Recipe) -> str | None:
    """Why nothing is trained, in words for the user, empty where he need not know; None if parts are.

    Unless the recipe says so: `best` trains at every level, and `normal` where most is gained (see `_by_default`), if
    torch is there and it takes minutes at most.
    """
    asked = _asked(recipe)
    if not plan.layers or not (asked or _by_default(plan, material, recipe)):
        return ""
    first = next(material.feeds.read(0, material.feeds.count))
    held = max(shared_length(first.feed.values()) // first.count, 1)  # samples in one: Python's feeds may be batches
    count = material.feeds.count * held
    if asked:
        few = f"{_option(recipe)} trains on {FEWEST} samples or more, and {count} are there"
        return few if count < FEWEST else None
    if count < UNASKED_SAMPLES:
        return ""
    layers = find_layers(material.folded.model)[0]
    costs = run_costs(material.folded.model, layers, material.feeds, recipe.execution()).values()
    flops = sum(2 * cost.parameters if cost.flops is None else cost.flops for cost in costs) / held
    if flops * BACK_AND_FORTH * MOST * BRIEF > UNASKED_FLOPS:
        return "parts were not trained, as a model of this size takes long; --effort best does it"
    if missing := missing_for_training():
        gain = "training parts of the model lowers the loss where weights have zeros or inputs fewer than 8 bits"
        return f"{gain}; it needs {missing}, not installed: install onnx-obc[torch]"
    return None


def _by_default(plan: Plan, material: Material, recipe: Recipe) -> bool:
    """Whether parts are trained though nobody asked for it, if there are samples and time: where weights have zeros or
    inputs fewer than 8 bits, which gain most.

    Not from a database, from which many models are written in seconds, nor in a time limit, nor after other solvers
    than the tool's own, which are there to be compared.
    """
    if recipe.reconstruction is False or recipe.effort == "fast" or recipe.solver not in OWN:
        return False
    if material.trained is not None or recipe.time_limit is not None or recipe.global_adaprune:
        return False
    return any(x.level.sparsity is not None or rounds_inputs_coarsely(x) for x in plan.choices.values())


def _asked(recipe: Recipe) -> bool:
    """Whether the user asked for training, and not for none."""
    return recipe.effort == "best" if recipe.reconstruction is None else recipe.reconstruction


def _steps(recipe: Recipe) -> Sequence[int]:
    """What is tried: the steps for each part."""
    return (BRIEF, STEPS) if recipe.effort == "best" else (BRIEF,)


def _option(recipe: Recipe) -> str:
    return "--reconstruction" if recipe.reconstruction else f"--effort {recipe.effort}"


def _within(tell: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """What tells the share that is done of one of so many equal parts of something."""
    return lambda share: tell((number + share) / count)


def noted(draft: Draft, notes: Sequence[str]) -> Draft:
    """The draft with more that the user should know."""
    plan = draft.plan
    return replace(draft, source=replace(draft.source, plan=replace(plan, notes=(*plan.notes, *notes))))


def _trained(
    solutions: Solutions, material: Material, recipe: Recipe, steps: int, progress: Progress
) -> tuple[Solutions | None, list[str]]:
    """Solutions whose weights and biases were trained in so many steps for each part, in a fresh plan, None where no
    part got better; and what the user should know."""
    own, blank = (in_profile(solutions, solutions.plan.choices, material.folded, recipe) for _ in range(2))
    option = _option(recipe)
    walk = TrainingWalk(own, material, recipe, steps, option)
    left: dict[str, list[str]] = {}  # layers by why they are left as they are

    def train(unit: Unit, tell: Callable[[float], None]) -> None:
        names = [name for name in unit.layers if name in walk.trainable]
        if not names:
            return
        try:
            return walk.train(unit, names, tell)
        except ModelError as error:
            why = str(error).removesuffix(f"; leave out {option}")
        if not unit.blocks:
            left.setdefault(why, []).extend(names)
        for number, block in enumerate(unit.blocks):  # torch may know the operators of some
            train(block, _within(tell, number, len(unit.blocks)))

    for unit in walk.units:
        tell = hundredths(progress, "reconstruct", len(walk.units) * len(_steps(recipe)))
        train(unit, tell)
        tell(1)
    notes = [f"{counted(len(names), 'layer')} not trained by {option}: {why}" for why, names in left.items()]
    if not walk.better:
        return None, notes
    solved = {}
    for name, entry in blank.solved.items():
        solution, bias = walk.solved[name].solution, walk.added_to_bias(name)
        report = entry.report
        if name in walk.better:
            report = replace(report, notes=(*report.notes, TRAINED))
        solved[name] = replace(entry, solution=replace(solution, bias=bias), report=report)
    return replace(blank, solved=solved, stretches=walk.stretches), notes
