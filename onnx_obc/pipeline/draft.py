"""A model that was written and corrected, but not checked yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.progress import Feedback
from ..graph.write import WrittenWeight
from ..runtime.judge import Judge
from .correct import CorrectionReport, correct_statistics, sites_of, train_all
from .layer import EmbeddingReport, Solved
from .material import Material
from .plan import Plan
from .recipe import Recipe
from .solve import Solutions
from .unseen import without_unseen
from .write import fit_to_biases, with_copies, write


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


def better(ordered: Draft, rival: Draft, material: Material, recipe: Recipe) -> Draft:
    """The draft with the lower output loss on held-out samples: of layers solved in order, or each for itself."""
    judge = Judge(material.dense, list(material.held_out.feeds()), recipe.execution())
    before, after = (judge.loss(draft.plan.model) for draft in (rival, ordered))
    attempt = CorrectionReport(("sequential",), len(ordered.solved), before, after, after < before)
    best = ordered if attempt.kept else rival
    return replace(best, corrections=(*best.corrections, attempt))
