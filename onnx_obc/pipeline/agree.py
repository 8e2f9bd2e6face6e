"""Makes a file mean the same to the engines as to ONNX: what they compute otherwise is written in another form."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ..core.arrays import Feed
from ..core.errors import EngineError, ModelError
from ..core.level import Choice
from ..graph.layers import LeftOut
from ..graph.save import save_model
from ..targets.agreement import Disagreement, Outputs, disagreement
from ..targets.attribution import node_name
from ..targets.registry import engines_of
from .plan import Folded
from .recipe import Recipe
from .solve import Solutions, in_profile
from .verify import Check

NAMED = 4  # layers that are written in another form one by one, before all are


@dataclass(frozen=True)
class Fault:
    """An engine that computes something else than a model says."""

    engine: str
    found: Disagreement

    @property
    def check(self) -> Check:
        """It as a check that failed."""
        where = f", from layer {self.found.node} on" if self.found.node else ""
        what = f"{self.engine} computes another {self.found.output} than the file says{where}: {self.found.db:.1f} dB"
        return Check("engines", False, what)


def find_fault(model: ir.Model, dense: Outputs, feed: Feed, recipe: Recipe) -> tuple[Fault | None, list[str]]:
    """The first engine that computes something else than a written model says, if any; and those that were tried.

    dense: the outputs of the model that it was made from, on the feed.
    """
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        path = Path(folder) / "model.onnx"
        engines = engines_of(recipe.target, recipe.form)
        if engines:
            save_model(model, path)
        for name, engine in engines.items():
            try:
                found = disagreement(path, engine, feed, recipe.threads, dense=dense)
            except (EngineError, ModelError):
                continue  # not installed, or the checks of the file say why it does not run
            tried.append(name)
            if found is not None:
                return Fault(name, found), tried
    return None, tried


def in_another_form(
    solutions: Solutions, fault: Fault, folded: Folded, recipe: Recipe, everywhere: bool
) -> Solutions | None:
    """The same solutions in a fresh plan: the layer at fault has a float input, or stays float if it has one already.

    everywhere: all layers at once, as where no layer is known to be at fault. None where there is nothing left to
    change. solutions: what was written; folded: what their plan was made from.
    """
    plan = solutions.plan
    at_fault = {layer.name for layer in plan.layers if any(node_name(u.node) == fault.found.node for u in layer.uses)}
    if everywhere or not at_fault:
        at_fault = {name for name, choice in plan.choices.items() if choice.activation_bits is not None}
    profile: dict[str, Choice] = {}
    for name, choice in plan.choices.items():
        if name not in at_fault:
            profile[name] = choice
        elif choice.activation_bits is not None:
            profile[name] = Choice(choice.level)
    if not at_fault or not profile:
        return None
    why = f"{fault.engine} computes something else with it than the file would say"
    found = in_profile(solutions, profile, folded, recipe)
    solved = dict(found.solved)
    for name in at_fault & solved.keys():
        report = solved[name].report
        report = replace(report, activations="float", notes=(*report.notes, f"{why}: its input stays float"))
        solved[name] = replace(solved[name], report=report)
    gone = [LeftOut(x.name, x.op, f"{why}: it stays float") for x in plan.layers if x.name not in solved]
    return replace(found, plan=replace(found.plan, left_out=(*plan.left_out, *gone)), solved=solved)
