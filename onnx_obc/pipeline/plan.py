"""From a model and a recipe to a plan: the graph to work on, its layers, and what each is to become."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import onnx_ir as ir

from ..core.errors import ModelError, RecipeError
from ..core.level import FLOAT, Choice, parse_bits
from ..graph.cost import weight_bytes
from ..graph.fold import fold
from ..graph.half import DOUBLE, FloatTypes, float_types, widen
from ..graph.layers import Embedding, Layer, LeftOut, find_embeddings, find_layers
from ..graph.opset import raise_opset
from ..graph.scales import BLOCKED_OPSET, PER_AXIS_OPSET, opset_needed, storage_type, unwritable, unwritable_table
from ..graph.tied import Tie, cannot_share, find_ties
from ..graph.write import Activation
from ..targets.registry import TARGETS
from .options import Cast
from .recipe import Recipe

NOTED = 0.1  # of the weights: embeddings of less leave the file about as small as its layers say
NO_LEVEL = "float, as it can take none of the levels"


@dataclass(frozen=True)
class Plan:
    """What is to be done, before any of it is.

    model: the folded graph, ready to be written into. layers: those with a choice, in the order of the graph.
    embeddings: the tables to store as integers. ties: those that read the integers of the layer whose weight they are
    too. activations: the values to quantize. left_out: the weights that stay as they are, and why. notes: what else the
    user should know; remarks: the same about single layers, by name.
    """

    model: ir.Model
    layers: tuple[Layer, ...]
    choices: Mapping[str, Choice]
    embeddings: tuple[Embedding, ...]
    activations: tuple[Activation, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[Tie, ...] = ()

    @property
    def ranged(self) -> tuple[Activation, ...]:
        """The activations whose range is that of calibration data."""
        return tuple(activation for activation in self.activations if not activation.dynamic)


@dataclass(frozen=True, eq=False)
class Folded:
    """A model as it is worked with, and folded: what every plan starts from. notes: what folding has to tell.

    dense: the model, in float32 where the user's has half precision. given: as the user gave it. types: the float types
    to write results in; None: they stay as they are.
    """

    dense: ir.Model
    model: ir.Model
    notes: tuple[str, ...]
    given: ir.Model
    types: FloatTypes | None = None


def prepare(given: ir.Model, cast: Cast = "none") -> Folded:
    """Fold a model once; plans clone it. cast: whether float64 becomes float32 for good. Raises ModelError."""
    if cast == "float32":
        given = widen(given, (DOUBLE,))
    types = float_types(given)
    dense = given if types is None else widen(given)
    model, notes = fold(dense)
    return Folded(dense, model, tuple(notes), given, types)


def make_plan(folded: Folded, recipe: Recipe, profile: Mapping[str, Choice] | None = None) -> Plan:
    """Find the layers of a folded graph, and give each the level that the recipe and the target allow.

    profile: the choices of the layers by name, instead of the recipe's own; layers that it lacks stay float. Raises
    RecipeError if there is nothing that can be compressed, ModelError if a weight is NaN or infinite.
    """
    model, notes = folded.model.clone(), list(folded.notes)
    layers, left_out = find_layers(model)
    embeddings, floats = _tables(model, recipe)
    left_out += floats
    check_rules(model, layers, left_out, recipe)

    choices: dict[str, Choice] = {}
    remarks: dict[str, str] = {}
    dropped: list[str] = []  # why layers cannot have the pattern of their level
    for layer in layers:
        choice, reason, unfit = _choose(layer, recipe, profile)
        if reason is not None:
            left_out.append(LeftOut(layer.name, layer.op, reason))
            continue
        if not np.isfinite(layer.weight).all():
            raise ModelError(f"layer {layer.name!r}: NaN or infinity among its weights; export it again, or skip it")
        choices[layer.name], input_remark = fitted(layer, choice, recipe.target)
        plain = None if unfit is None else f"{unfit}: quantized without zeros"
        if unfit is not None:
            dropped.append(unfit)
        if said := [text for text in (plain, input_remark) if text is not None]:
            remarks[layer.name] = "; ".join(said)
    if not choices and not embeddings:
        raise RecipeError(_nothing_to_do(left_out))
    if dropped and not any(choice.level.sparsity is not None for choice in choices.values()):
        shown = "; ".join(dict.fromkeys(dropped))
        raise RecipeError(f"no layer can take the sparsity ({shown}); choose another pattern, or leave it out")

    opset = max((opset_needed(layer, choices[layer.name]) for layer in layers if layer.name in choices), default=0)
    if embeddings:
        opset = max(opset, BLOCKED_OPSET if recipe.embeddings == "int4" else PER_AXIS_OPSET)
    if opset > (present := model.opset_imports[""]):
        model = raise_opset(model, opset)
        layers, _ = find_layers(model)
        assert choices.keys() <= {layer.name for layer in layers}, "raising the opset changes no layer"
        notes.append(f"opset raised from {present} to {model.opset_imports['']}, which the integer types need")
    ties, said = _ties(model, layers, choices, recipe)
    notes += said
    shared = {tie.table.name for tie in ties}
    embeddings = [table for table in _tables(model, recipe)[0] if table.name not in shared]
    notes += _float_tables(model, layers, choices, shared, recipe)
    target = TARGETS[recipe.target]
    target.prepare(model, layers, choices)
    activations = tuple(target.place_qdq(model, layers, choices))
    return Plan(
        model=model,
        layers=tuple(layer for layer in layers if layer.name in choices),
        choices=choices,
        embeddings=tuple(embeddings),
        activations=activations,
        left_out=tuple(left_out),
        notes=tuple(notes),
        remarks=remarks,
        ties=tuple(ties),
    )


def check_rules(model: ir.Model, layers: Sequence[Layer], left_out: Sequence[LeftOut], recipe: Recipe) -> None:
    """Raise RecipeError if a rule of the recipe is about nothing: no layer, no weight left out, no table."""
    others = [*(entry.name for entry in left_out), *(table.name for table in find_embeddings(model))]
    recipe.check_rules([layer.name for layer in layers], others)


def quantizable(folded: Folded, recipe: Recipe, profile: Mapping[str, Choice]) -> list[str]:
    """The values that a model with this profile, or with a part of it, quantizes.

    Of a sum a target may take one branch or the other, as the layers before it are: so each layer on its own, too.
    """
    plan, target = make_plan(folded, recipe, profile), TARGETS[recipe.target]
    alone = [target.place_qdq(plan.model, plan.layers, {name: choice}) for name, choice in plan.choices.items()]
    placed = [found for each in (plan.activations, *alone) for found in each if not found.dynamic]
    return list(dict.fromkeys(found.value for found in placed))


def _tables(model: ir.Model, recipe: Recipe) -> tuple[list[Embedding], list[LeftOut]]:
    """The tables to store as integers, and those that cannot be."""
    bits = parse_bits(recipe.embeddings)
    found = [x for x in find_embeddings(model) if not _skipped(x.name, recipe)] if bits is not None else []
    if bits is None or not found:
        return [], []
    if not (target := TARGETS[recipe.target]).embeddings:
        raise RecipeError(f"embeddings: {target.title} cannot look up integers; use --embeddings float")
    reasons = {table.name: unwritable_table(table, bits) for table in found}
    left = [LeftOut(name, "Gather", reason) for name, reason in reasons.items() if reason is not None]
    return [table for table in found if reasons[table.name] is None], left


def _float_tables(
    model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice], tied: Container[str], recipe: Recipe
) -> list[str]:
    """A note where weights become integers beside tables that stay float, and are a good part of the file."""
    if recipe.embeddings != "float" or all(choice.level.bits is None for choice in choices.values()):
        return []
    tables = [x for x in find_embeddings(model) if x.name not in tied and not _skipped(x.name, recipe)]
    share = share_beside(sum(table.float_bytes * prod(table.shape) for table in tables), layers)
    remedy = "; --embeddings int8 makes them smaller" if TARGETS[recipe.target].embeddings else ""
    return [] if share is None else [f"embeddings stay float, {share} that weights had{remedy}"]


def share_beside(float_bytes: int, layers: Sequence[Layer]) -> str | None:
    """`47 of the 90 MB`: of so many bytes in float, among them and the layers' weights; None if that is little."""
    both = float_bytes + sum(weight_bytes(layer, FLOAT) for layer in layers)
    return f"{float_bytes / 1e6:.3g} of the {both / 1e6:.3g} MB" if float_bytes >= NOTED * both else None


def _ties(
    model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice], recipe: Recipe
) -> tuple[list[Tie], list[str]]:
    """The tables that are to read a layer's integers, and sentences on all tables that are the weight of a layer.

    Without that the weight would be in the file twice, so that it grows. A user who wants a table otherwise says so:
    --embeddings of other bits than the layer's, or --skip with the table's name.
    """
    target, bits = TARGETS[recipe.target], parse_bits(recipe.embeddings)
    by_name = {layer.name: layer for layer in layers if layer.name in choices}
    ties, notes = [], []
    for tie in find_ties([x for x in find_embeddings(model) if not _skipped(x.name, recipe)], list(by_name.values())):
        layer, choice = by_name[tie.layer], choices[tie.layer]
        level, what = choice.level, f"table {tie.table.name!r} is the weight of layer {tie.layer!r} too"
        reason = cannot_share(tie, layer, choice, target.embeddings, target.tables_in_blocks)
        if reason is None and target.one_reader(layer, choice) and len(layer.uses) > 1:
            reason = "each node that reads the layer's has a copy"
        if reason is None and bits not in (None, int(storage_type(level.bits or 0, level.symmetric).bitwidth)):
            reason = f"--embeddings {recipe.embeddings} is not what the layer has"
        if reason is None:
            ties.append(tie)
            notes.append(f"{what}: it reads the layer's integers, and the weight is in the file once")
        else:
            notes.append(f"{what}, and the weight is in the file twice: {reason}")
    return ties, notes


def _skipped(table: str, recipe: Recipe) -> bool:
    """Whether a rule names a table that is to stay float; patterns are about layers."""
    return any(rule.skip and rule.match == table for rule in recipe.layers)


def possible(layer: Layer, choice: Choice, target: str) -> str | None:
    """Why a layer cannot become this for a target, or None if it can."""
    return layer.impossible(choice.level) or unwritable(layer, choice) or TARGETS[target].unsupported(layer, choice)


def fitted(layer: Layer, choice: Choice, target: str) -> tuple[Choice, str | None]:
    """A choice with the input that the target has a kernel for, and why that is another one than was asked for."""
    bits, remark = TARGETS[target].activation_bits(layer, choice)
    static = TARGETS[target].not_dynamic(layer) if choice.dynamic and bits is not None else None
    return Choice(choice.level, bits, choice.dynamic and bits is not None and static is None), remark or static


def _choose(
    layer: Layer, recipe: Recipe, profile: Mapping[str, Choice] | None
) -> tuple[Choice, str | None, str | None]:
    """The choice for a layer, why it cannot be had, or None, and why it goes without its sparsity pattern, or None."""
    rule = recipe.rule_for(layer.name)
    skipped = f"skipped, as {rule.source} says" if rule is not None and rule.skip else None
    if profile is not None:
        choice = profile.get(layer.name)
        if skipped is not None and choice in (None, Choice(FLOAT)):
            return Choice(FLOAT), skipped, None
        if choice is None or choice.level == FLOAT:
            return Choice(FLOAT), "float, as the budget allows" if choice is not None else NO_LEVEL, None
        return choice, possible(layer, choice, recipe.target), None
    choice = recipe.choose(layer.name)
    if choice is None:
        return Choice(FLOAT), skipped, None
    if choice.level == FLOAT:
        return choice, "float, as the recipe says", None
    reason, unfit = possible(layer, choice, recipe.target), None
    if reason is not None and choice.level.sparsity is not None and not recipe.strict_pattern:
        plain = replace(choice, level=replace(choice.level, sparsity=None))
        if plain.level != FLOAT and possible(layer, plain, recipe.target) is None:
            choice, reason, unfit = plain, None, reason
    if reason is None and rule is None:  # a budget, or a user who names the layer, knows better
        reason = TARGETS[recipe.target].unprofitable(layer, choice)
    return choice, reason, unfit


def _nothing_to_do(left_out: list[LeftOut]) -> str:
    if not left_out:
        return "the model has no Conv, ConvTranspose, MatMul or Gemm with a constant weight: nothing to compress"
    reasons = list(dict.fromkeys(entry.reason for entry in left_out))
    shown = "; ".join(reasons[:3]) + ("; …" if len(reasons) > 3 else "")
    return f"no layer can be compressed ({shown}); choose another level, or see `onnx-obc inspect`"


def possible_choices(
    layers: Sequence[Layer], wanted: Sequence[Choice], recipe: Recipe
) -> dict[str, tuple[Choice, ...]]:
    """What each layer can become for the recipe's target, dense first; skipped layers stay dense.

    Raises ModelError if a weight of a layer is NaN or infinite.
    """
    found = {}
    for layer in layers:
        options: dict[Choice, None] = {Choice(FLOAT): None}
        if recipe.choose(layer.name) is not None:
            if not np.isfinite(layer.weight).all():
                raise ModelError(
                    f"layer {layer.name!r}: NaN or infinity among its weights; export it again, or skip it"
                )
            for choice in wanted:
                if possible(layer, choice, recipe.target) is None:
                    options[fitted(layer, choice, recipe.target)[0]] = None
        found[layer.name] = tuple(options)
    return found


def check_any(choices: Mapping[str, Sequence[Choice]], levels: str) -> None:
    """Raise RecipeError if no layer has a choice besides staying dense. levels: as the user wrote them."""
    if all(len(found) < 2 for found in choices.values()):
        raise RecipeError(f"no layer can take any of {levels}; choose other levels, or see onnx-obc inspect")
