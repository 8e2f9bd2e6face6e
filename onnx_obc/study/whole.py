"""What to do: each layer as its verdict says, as a recipe and as a model, against all quantized and all pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ..calibration.samples import Samples
from ..core.files import write_file
from ..core.level import Choice, parse_level
from ..core.progress import Feedback
from ..graph.layers import find_layers
from ..pipeline.plan import Folded, make_plan, possible
from ..pipeline.recipe import Recipe
from ..pipeline.solve import solve_choices
from ..pipeline.write import write
from ..runtime.judge import Judge
from ..targets.registry import TARGETS
from .record import BudgetRow, LayerRow, Way, WholeModel

VERDICTS, QUANTIZED, PRUNED = "as the verdicts say", "all quantized", "all pruned"


def choose_ways(layers: Sequence[LayerRow], bits: int, feasible: Mapping[str, set[str]]) -> dict[str, Way]:
    """The way that loses least for each layer, of those whose level the target can execute.

    feasible: the levels of each layer that it can. Layers without a row at this budget are left out, and stay float.
    """
    chosen = {}
    for layer in layers:
        for row in (row for row in layer.budgets if row.bits == bits):
            ways = [way for way in row.ways if way.level in feasible.get(layer.name, ())]
            if ways:
                chosen[layer.name] = max(ways, key=lambda way: way.snr)
    return chosen


def recipe_text(ways: Mapping[str, Way], bits: int, recipe: Recipe, about: str) -> str:
    """A recipe file that makes every layer what `ways` says, with what zeros gain on the target as a comment."""
    target = TARGETS[recipe.target]
    rules = [{"match": name, **_rule(way)} for name, way in ways.items()]
    plain = {"target": recipe.target, "weights": f"int{bits}", "activations": "none", "layers": rules}
    zeros = sum(way.kind != "quantize" for way in ways.values())
    lines = [f"# {about}", f"# {zeros} of {len(ways)} layers have zeros; in {target.title} {target.zeros}."]
    return "\n".join(lines) + "\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def compare_models(
    folded: Folded,
    layers: Sequence[LayerRow],
    bits: int,
    data: tuple[Samples, Samples],
    recipe: Recipe,
    output: tuple[Path, str],
    feedback: Feedback,
) -> list[WholeModel]:
    """Write the recipe of a budget, and judge the three models by their outputs on held-out samples.

    Statistics are not corrected. data: what calibrates, and what is held out. output: where the recipe goes, and a line
    for its head.
    """
    path, about = output
    by_name = {layer.name: layer for layer in find_layers(folded.model)[0]}
    rows = {layer.name: row for layer in layers for row in layer.budgets if row.bits == bits and row.ways}
    feasible = {
        name: {
            way.level
            for way in row.ways
            if possible(by_name[name], Choice(parse_level(way.level)), recipe.target) is None
        }
        for name, row in rows.items()
    }
    verdicts = choose_ways(layers, bits, feasible)
    write_file(path, recipe_text(verdicts, bits, recipe, about).encode())
    profiles = {
        QUANTIZED: _uniform(rows, feasible, "quantize"),
        PRUNED: _uniform(rows, feasible, "prune"),
        VERDICTS: verdicts,
    }
    plans = {
        name: make_plan(folded, recipe, {x: Choice(parse_level(way.level)) for x, way in ways.items()})
        for name, ways in profiles.items()
        if ways
    }
    choices = {
        name: tuple(dict.fromkeys(plan.choices[name] for plan in plans.values() if name in plan.choices))
        for name in verdicts
    }
    calibrating, held_out = data
    first = plans[VERDICTS]
    solved = solve_choices(first, choices, calibrating, recipe, feedback)
    judge = Judge(folded.dense, list(held_out.feeds()), recipe.execution())
    made = []
    for name, plan in plans.items():
        write(solved.of(plan), recipe)
        file = str(path) if name == VERDICTS else None
        made.append(WholeModel(bits, name, _size(layers, profiles[name]), judge.loss(plan.model), file))
        feedback.progress("compare", 1, len(plans))
    return made


def _uniform(rows: Mapping[str, BudgetRow], feasible: Mapping[str, set[str]], kind: str) -> dict[str, Way]:
    """Every layer by one kind, the best of its ways."""
    found = {}
    for name, levels in feasible.items():
        ways = [way for way in rows[name].ways if way.kind == kind and way.level in levels]
        if ways:
            found[name] = max(ways, key=lambda way: way.snr)
    return found


def _size(layers: Sequence[LayerRow], ways: Mapping[str, Way]) -> float:
    """Bits for each weight of the layers that have a way."""
    sizes = {layer.name: layer.groups * layer.rows * layer.columns for layer in layers if layer.name in ways}
    return sum(ways[name].bits * size for name, size in sizes.items()) / max(sum(sizes.values()), 1)


def _rule(way: Way) -> dict[str, str]:
    level = parse_level(way.level)
    rule = {"weights": "float" if level.bits is None else f"int{level.bits}"}
    if level.sparsity is not None:
        rule["sparsity"] = str(level.sparsity)  # a recipe reads these as it reads 0.6 and block4:0.7
    return rule
