"""A model that was written and corrected, but not checked yet; and which of several is the better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.progress import Feedback
from ..graph.write import WrittenWeight
from ..solver.baselines import uncompensated
from ..targets.registry import TARGETS
from .attempts import (
    CorrectionReport,
    compared,
    is_plain,
    must_be_clear,
    of_few_bits,
    of_whole_models,
    unless_clearly_worse,
)
from .correct import correct_statistics, sites_of, train_all
from .layer import EmbeddingReport, Solved
from .material import Material
from .options import OWN
from .plan import Folded, Plan
from .recipe import Recipe
from .solve import Solutions, in_profile
from .unseen import without_unseen
from .write import fit_to_biases, with_copies, write

TRAINED = "trained with what surrounds it afterwards: the layer losses here are those before"
ROUNDED = "rounded to nearest, which brings the outputs nearer to the dense model's"


@dataclass(frozen=True)
class Draft:
    """A plan's model with everything written into it.

    source: the solutions as they were before that. solved, written: by layer, as they are after corrections, and where
    they were written. intervals: what the integers of each activation span. corrections: all that were tried.
    """

    source: Solutions
    solved: Mapping[str, Solved]
    written: Sequence[WrittenWeight]
    embeddings: Sequence[EmbeddingReport]
    intervals: Mapping[str, tuple[float, float]]
    corrections: tuple[CorrectionReport, ...]

    @property
    def plan(self) -> Plan:
        """The plan that was written."""
        return self.source.plan


def make_draft(material: Material, solutions: Solutions, recipe: Recipe, feedback: Feedback) -> Draft:
    """Train all layers, if the recipe says so, write them, and correct the model's statistics."""
    solutions = without_unseen(solutions, recipe.target)
    plan, solved = solutions.plan, solutions.solved
    corrections: tuple[CorrectionReport, ...] = ()
    correcting = recipe.correct and bool(plan.layers)
    reference = plan.model.clone() if correcting else plan.model
    sites = sites_of(plan, material.dense, recipe) if correcting else []
    if recipe.global_adaprune and plan.layers:
        with feedback.watch("correct"):
            solved, corrections = train_all(material, plan, solved, recipe, feedback.progress)
    with feedback.watch("write"):
        written, embeddings, intervals = write(replace(solutions, solved=solved), recipe)
        solved = fit_to_biases(plan.model, with_copies(solved, written), written, recipe.target)
    if correcting:
        with feedback.watch("correct"):
            solved, tried = correct_statistics(
                material, plan, reference, sites, solved, written, recipe, feedback.progress
            )
            corrections = (*corrections, *tried)
            solved = fit_to_biases(plan.model, solved, written, recipe.target)
    return Draft(solutions, solved, written, embeddings, intervals, corrections)


def rounded(solutions: Solutions, folded: Folded, recipe: Recipe) -> Solutions | None:
    """The same solutions in a fresh plan, those of PLAIN_BITS without zeros by rounding to nearest; None if none is.

    At so many bits rounding loses next to nothing, so that a solver's gain on the layers can be a loss on the outputs.
    """
    plan, choices = solutions.plan, solutions.plan.choices
    plain = {layer.name for layer in plan.layers if is_plain(choices[layer.name])}
    if not plain or recipe.solver not in OWN or recipe.global_adaprune:
        return None
    found = in_profile(solutions, choices, folded, recipe)
    if len(found.solved) < len(plan.layers):  # what is left of a level, its input in float, may not be one by itself
        return None
    shared, solved = TARGETS[recipe.target].shared_scale, dict(found.solved)
    for name in plain:
        entry = solved[name]
        loss = entry.report.loss_baseline
        report = replace(
            entry.report,
            solver="baseline",
            loss=loss,
            loss_predicted=loss,
            loss_greedy=loss,
            loss_measured=loss,
            loss_relative=entry.report.baseline_relative,
            loss_bound=None,
            ordered_over_exact=None,
            notes=(*(note for note in entry.report.notes if note != TRAINED), ROUNDED),
        )
        solution = uncompensated(entry.layer.matrix(), choices[name].level, recipe.grid, shared)
        solved[name] = replace(entry, solution=replace(solution, loss=loss), report=report)
    return replace(found, solved=solved)


def not_below_rounding(draft: Draft, material: Material, recipe: Recipe, feedback: Feedback) -> Draft:
    """The draft, or the one that rounds to nearest where that alone is clearly nearer to the dense model on held-out
    samples.

    The one that rounds is made of the draft's own solutions, and corrected too where it goes on.
    """
    other = rounded(draft.source, material.folded, recipe)
    if other is None:
        return draft
    plain = make_draft(material, other, recipe.model_copy(update={"effort": "fast"}), feedback)
    count = sum(is_plain(choice) for choice in other.plan.choices.values())
    with feedback.watch("correct"):
        models = (draft.plan.model, plain.plan.model)
        attempt = compared("rounding", count, models, material.dense, material.held_out, recipe.execution(), True)
    if not attempt.kept:
        return replace(draft, corrections=(*draft.corrections, attempt))
    again = rounded(draft.source, material.folded, recipe)
    assert again is not None
    chosen = make_draft(material, again, recipe, feedback) if recipe.correct else plain
    return replace(chosen, corrections=(*of_whole_models(draft.corrections), attempt, *chosen.corrections))


def better(ordered: Draft, rival: Draft, material: Material, recipe: Recipe) -> Draft:
    """The draft with the lower output loss on held-out samples: of layers solved in order, or each for itself; with few
    bits the former unless it is clearly worse."""
    models, count = (rival.plan.model, ordered.plan.model), len(ordered.solved)
    clearly = must_be_clear(ordered.plan.choices)
    attempt = compared("sequential", count, models, material.dense, material.held_out, recipe.execution(), clearly)
    if of_few_bits(ordered.plan.choices):
        attempt = unless_clearly_worse(attempt)
    best = ordered if attempt.kept else rival
    return replace(best, corrections=(*best.corrections, attempt))
