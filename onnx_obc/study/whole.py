"""What to do: each layer as its verdict says, as a recipe and as a model, against all quantized and all pruned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from ..calibration.samples import Samples
from ..core.errors import plain
from ..core.files import write_file
from ..core.level import Choice, parse_level
from ..core.progress import Feedback
from ..graph.layers import Layer, find_layers
from ..pipeline.options import MethodOptions
from ..pipeline.plan import Folded, make_plan, possible
from ..pipeline.recipe import Recipe
from ..pipeline.solve import solve_choices
from ..pipeline.write import write
from ..runtime.judge import Judge
from ..targets.registry import TARGETS
from .record import BudgetRow, LayerRow, Way, WholeModel

BEST, QUANTIZED, PRUNED = "the best way for each", "all quantized", "all pruned"


def recipe_paths(path: Path | None, budgets: Sequence[int]) -> dict[int, Path]:
    """Where the recipe of each budget goes: with several, their bits stand in the names."""
    if path is None:
        return {}
    several = len(budgets) > 1
    return {bits: path.with_name(f"{path.stem}-{bits}bit{path.suffix}") if several else path for bits in budgets}


def compare_models(
    folded: Folded,
    layers: Sequence[LayerRow],
    recipes: Mapping[int, Path],
    data: tuple[Samples, Samples],
    recipe: Recipe,
    about: str,
    feedback: Feedback,
) -> Iterator[WholeModel]:
    """Write a recipe for each budget, and judge its model, and those all quantized and all pruned, by their outputs.

    Each layer has the best of the ways that the target can execute; layers without one stay float. Statistics are not
    corrected. recipes: files by the bits of the budget. data: what calibrates, and what is held out. about: a line for
    the head of a recipe. Raises what solving raises.
    """
    found = {layer.name: layer for layer in find_layers(folded.model)[0]}
    profiles: dict[tuple[int, str], dict[str, Way]] = {}
    for bits, path in recipes.items():
        rows = {layer.name: row for layer in layers for row in layer.budgets if row.bits == bits and row.ways}
        ways = {name: _executable(found[name], row, recipe) for name, row in rows.items()}
        profiles[bits, QUANTIZED] = _best({n: [w for w in of if w.kind == "quantize"] for n, of in ways.items()})
        profiles[bits, PRUNED] = _best({n: [w for w in of if w.kind == "prune"] for n, of in ways.items()})
        profiles[bits, BEST] = _best(ways)
        differ = [n for n, way in profiles[bits, BEST].items() if way != max(rows[n].ways, key=lambda w: w.snr)]
        text = recipe_text(profiles[bits, BEST], recipe, f"{about}, at {bits} bits a weight", differ)
        write_file(path, text.encode())
    plans = {
        key: make_plan(folded, recipe, {name: Choice(parse_level(way.level)) for name, way in ways.items()})
        for key, ways in profiles.items()
        if ways
    }
    if not plans:
        return
    calibrating, held_out = data
    choices: defaultdict[str, dict[Choice, None]] = defaultdict(dict)
    for plan in plans.values():
        for layer, choice in plan.choices.items():
            choices[layer][choice] = None
    together = make_plan(folded, recipe, {layer: next(iter(each)) for layer, each in choices.items()})
    solved = solve_choices(together, {x: tuple(each) for x, each in choices.items()}, calibrating, recipe, feedback)
    judge = Judge(folded.dense, list(held_out.feeds()), recipe.execution())
    for (bits, name), plan in plans.items():
        write(solved.of(plan), recipe)
        size, file = _size(layers, profiles[bits, name]), str(recipes[bits]) if name == BEST else None
        floats = len(layers) - len(profiles[bits, name])
        yield WholeModel(bits, name, size, judge.loss(plan.model), floats, file)
        feedback.progress("compare", 1, len(plans))


def recipe_text(ways: Mapping[str, Way], recipe: Recipe, about: str, differ: Sequence[str] = ()) -> str:
    """A recipe file that makes every layer what `ways` says, and leaves the others in float.

    differ: layers that would lose less in a way that the target cannot execute.
    """
    target = TARGETS[recipe.target]
    zeros = sum(way.kind != "quantize" for way in ways.values())
    lines = [f"# {about}.", f"# {zeros} of {len(ways)} layers have zeros; in {target.title} {target.zeros}."]
    lines += [f"# {plain(name)}: the way that loses least is not for {target.title}." for name in differ]
    rules = [{"match": name, **_rule(way)} for name, way in ways.items()]
    content = {**recipe.changed(MethodOptions), "weights": "float", "activations": "none", "layers": rules}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _executable(layer: Layer, row: BudgetRow, recipe: Recipe) -> list[Way]:
    return [way for way in row.ways if possible(layer, Choice(parse_level(way.level)), recipe.target) is None]


def _best(ways: Mapping[str, Sequence[Way]]) -> dict[str, Way]:
    """Of every layer that has ways the one that loses least."""
    return {name: max(of, key=lambda way: way.snr) for name, of in ways.items() if of}


def _size(layers: Sequence[LayerRow], ways: Mapping[str, Way]) -> float:
    """Bits for each weight of all layers, float32 where they have no way."""
    sizes = {layer.name: layer.groups * layer.rows * layer.columns for layer in layers}
    total = sum((ways[name].bits if name in ways else 32) * size for name, size in sizes.items())
    return total / max(sum(sizes.values()), 1)


def _rule(way: Way) -> dict[str, str | bool]:
    level = parse_level(way.level)
    rule: dict[str, str | bool] = {"weights": "float" if level.bits is None else f"int{level.bits}"}
    if level.sparsity is not None:
        rule["sparsity"] = str(level.sparsity)
    if level.bits is not None:
        rule["asymmetric"] = not level.symmetric
    return rule
