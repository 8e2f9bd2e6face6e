"""Mixed precision by itself: the fewest layers in float with which a model reaches the quality that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ..calibration.capture import run_costs
from ..core.arrays import Float64
from ..core.errors import CalibrationError, ModelError
from ..core.level import FLOAT, Choice
from ..core.plural import counted
from ..core.progress import Feedback
from ..graph.cost import weight_bytes
from ..graph.half import BFLOAT16, widen
from ..graph.layers import LeftOut, find_layers
from ..runtime.sqnr import decibels
from .attempts import must_be_clear
from .draft import Draft
from .floor import parse_quality
from .gates import Gate, quality_gate
from .material import Material
from .plan import Plan
from .recipe import Recipe
from .solve import Solutions, in_profile
from .speed import Speed
from .switches import LOSS, Noise, Switchboard, make_switchboard, without_input
from .verify import compare_outputs

PUT_BACK = 8  # of the layers in float, those that cost most, that are tried without
NAMED = 12  # layers that a note names
# Of what a float input of a MatMul would gain, the share counted beside integer weights: onnxruntime and OpenVINO round
# it to 8 bits, 32 values at a time. (MiniLM at 8 bits: relative error 1.1e-2 on ranges, 1.3e-3 so, weights included.)
ROUNDED = 0.9
NEXT_TO_NOTHING = 0.1  # of the noise that is allowed: weights that make less are not what is at fault

Trial: TypeAlias = Callable[[Solutions, bool], tuple[Draft, ir.Model]]


@dataclass(frozen=True, eq=False)
class Option:
    """A layer with less of it quantized. choice: what becomes of it, None: float altogether. gain: by how much that
    alone lowers the noise of each output, (outputs,). cost: of 2, its share in layers and in their work."""

    layer: str
    choice: Choice | None
    gain: Float64
    cost: float

    @property
    def words(self) -> str:
        """What stays in float."""
        return "all of it" if self.choice is None else "its input"


@dataclass(frozen=True)
class Mixed:
    """A draft that reaches a gate, None if none does, and what the user should know of it."""

    draft: Draft | None
    note: str


def mix_precisions(
    draft: Draft,
    failed: Gate,
    material: Material,
    recipe: Recipe,
    speed: Speed | None,
    trial: Trial,
    feedback: Feedback,
) -> Mixed:
    """Return layers of a draft to float, their inputs or altogether, until it reaches the recipe's quality.

    failed: the gate that the draft does not pass. speed: of its file, where time is what matters. trial: drafts
    solutions again, corrected or not, and gives the model to judge. Layers are measured alone, with all others in
    float, and taken by what they gain for what they cost. How many of them reach the gate is found by bisection on
    drafts, and those that cost most are put back if it is reached without them.
    """
    plan, source = draft.plan, draft.source
    kind, wanted = parse_quality(str(recipe.min_quality))
    feedback.say(f"{failed.reached}, not {failed.wanted}: looking for the layers to leave in float")
    with feedback.watch("mix"):
        board = make_switchboard(source, material, recipe, kind == "dB")
        goal = 10 ** (-wanted / 10) if kind == "dB" else None
        noise, options = _options(board, plan, material, recipe, speed, goal, feedback)
        order, guess = in_order(options, noise, goal)
        most = _still_compressed(order, plan)
    corrected = recipe.correct and not must_be_clear(plan.choices)  # else that takes long and changes next to nothing
    best: tuple[Gate, Draft] | None = None  # the last that reached the gate
    last: Gate | None = None

    def attempt(chosen: Sequence[Option], correct: bool) -> bool:
        nonlocal best, last
        fresh, model = trial(_with(source, chosen, material, recipe), correct)
        with feedback.watch("mix"):
            last = judged(model, material, recipe)
        feedback.progress("mix", 1, 2 * len(order).bit_length() + PUT_BACK)
        best = (last, fresh) if last.passed else best
        return last.passed

    count = smallest(lambda size: attempt(order[:size], corrected), min(guess, most), most) if most else None
    if count is not None:
        chosen, needed = list({option.layer: option for option in order[:count]}.values()), order[count - 1].layer
    else:
        chosen, needed = _all_but_the_least(options), None
        if not chosen or not attempt(chosen, corrected):
            reached = "no layer can be left in float" if last is None else last.reached
            single = "with a single layer compressed, the one that alone does least"
            return Mixed(None, f"{failed.wanted} is out of reach: {single}, {reached}")
    others = [option for option in chosen if option.layer != needed]  # bisection has shown that one to be needed
    for option in sorted(others, key=lambda option: -option.cost)[:PUT_BACK]:
        without = [other for other in chosen if other is not option]
        if attempt(without, corrected):
            chosen = without
    if recipe.correct and not corrected:
        attempt(chosen, True)
    assert best is not None
    with feedback.watch("mix"):
        note = _note(chosen, board, plan, failed, best[0])
    return Mixed(best[1], note)


def judged(model: ir.Model, material: Material, recipe: Recipe) -> Gate:
    """The gate of quality of a model that is not in a file yet."""
    outputs, _, found = compare_outputs(material.dense, _runs(model, material), material.held_out, recipe.execution())
    metric = None
    if material.examiner is not None and parse_quality(str(recipe.min_quality))[0] in ("metric", "drop"):
        try:
            metric = material.examiner.examine(model)
        except (CalibrationError, ModelError):  # of a ruined model
            found = replace(found, passed=False)
    gate = quality_gate(str(recipe.min_quality), outputs, metric)
    return gate if found.passed else replace(gate, passed=False)


def _runs(model: ir.Model, material: Material) -> ir.Model:
    types = material.folded.types
    return widen(model) if types is not None and types.half == BFLOAT16 else model


def smallest(reaches: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The smallest of 1 … most that reaches, None if none does; from a guess on, in steps that double, then halve.

    `reaches` is taken for monotone.
    """
    low, high, step = 0, most + 1, 1  # low does not reach; high does, or is beyond
    at = min(max(guess, 1), most)
    while high - low > 1:
        if reaches(at):
            high = at
            at = max(high - step, low + 1)
        else:
            low = at
            at = min(low + step, most)
        step *= 2
        if low and high <= most:  # between both: halve
            at = (low + high) // 2
    return high if high <= most else None


def in_order(options: Sequence[Option], noise: Float64, goal: float | None) -> tuple[list[Option], int]:
    """Options in the order in which they gain most for their cost, and how many of them are predicted to reach a goal.

    noise: (outputs,), with all layers quantized; noises of single layers add up. Once outputs are at the goal only
    the others count; without a goal, or with all of them there, all do. Of a layer that is taken a second time only
    what is new counts.
    """
    left = list(options)
    order: list[Option] = []
    taken: dict[str, Option] = {}
    enough = None
    remaining = noise.copy()
    while left:
        excess = np.maximum(remaining - (goal or 0), 0)
        if goal is not None and not excess.any():
            enough = len(order) if enough is None else enough
            excess = np.maximum(remaining, 0)
        before = [taken.get(option.layer) for option in left]
        gains = [x.gain - (0 if old is None else old.gain) for x, old in zip(left, before, strict=True)]
        paid = [0.0 if old is None else old.cost for old in before]
        worth = [
            np.minimum(np.maximum(gain, 0), excess).sum() / max(option.cost - spent, 1e-9)
            for option, gain, spent in zip(left, gains, paid, strict=True)
        ]
        best = int(np.argmax(worth))
        option = left[best]
        remaining = remaining - gains[best]
        order.append(option)
        taken[option.layer] = option
        left = [x for x in left if x is not option and (x.layer != option.layer or option.choice is not None)]
    if enough is None:
        return order, 1 if goal is None else len(order)
    return order, max(enough, 1)


def _options(
    board: Switchboard,
    plan: Plan,
    material: Material,
    recipe: Recipe,
    speed: Speed | None,
    goal: float | None,
    feedback: Feedback,
) -> tuple[Float64, list[Option]]:
    """The noise of each output with everything quantized, as that of single layers adds up, and all that can be in
    float. Where the weights of all layers together are far below the goal, they are not measured one by one."""
    none = board.noise(())
    costs = _costs(board, plan, material, recipe, speed)
    runs = 2 * len(plan.layers) + 2

    def alone(switches: frozenset[str]) -> Float64:
        found = board.noise(switches) if switches else none
        feedback.progress("alone", 1, runs)
        return np.array([found[name] - none[name] for name in none])

    at_rest = np.array(list(none.values()))
    inputs = {layer.name: alone(board.inputs[layer.name]) for layer in plan.layers}
    together = alone(frozenset[str]().union(*board.weights.values()))
    if goal is not None and (together < NEXT_TO_NOTHING * goal).all():
        feedback.progress("alone", len(plan.layers), runs)
        weights = {layer.name: together / len(plan.layers) for layer in plan.layers}
    else:
        weights = {layer.name: alone(board.weights[layer.name]) for layer in plan.layers}
    options = []
    for layer in plan.layers:
        plain = without_input(layer, plan.choices[layer.name], recipe.target)
        slower, larger = costs[layer.name]
        if plain is not None:
            kept = ROUNDED if layer.op == "MatMul" and plain.level.bits is not None else 1.0
            options.append(Option(layer.name, plain, kept * inputs[layer.name], slower))
        options.append(Option(layer.name, None, inputs[layer.name] + weights[layer.name], slower + larger))
    total = at_rest + alone(board.shared) + sum(inputs.values()) + sum(weights.values())
    return np.asarray(total), options


def _costs(
    board: Switchboard, plan: Plan, material: Material, recipe: Recipe, speed: Speed | None
) -> Mapping[str, tuple[float, float]]:
    """What a float input, and then float weights, of each layer cost: its share in layers, and in the work that
    integers save, by the clock where that was taken; then half its share in layers, and that in the bytes saved."""
    graph = material.folded.model
    measured = run_costs(graph, find_layers(graph)[0], material.held_out, recipe.execution())
    work = {x.name: float(measured[x.name].flops or measured[x.name].parameters) for x in plan.layers}
    if speed is not None and speed.layers:
        work = {name: max(a - b, 0.0) for name in work for a, b in [speed.layers.get(name, (0.0, 0.0))]}
    saved = {x.name: weight_bytes(x, FLOAT) - weight_bytes(x, plan.choices[x.name].level) for x in plan.layers}
    all_work, all_saved = max(sum(work.values()), 1e-12), max(sum(saved.values()), 1)
    one = 1 / len(plan.layers)
    found = {}
    for layer in plan.layers:
        integer = plan.choices[layer.name].activation_bits is not None
        slowed = (layer.name, *board.alongside[layer.name]) if integer else ()
        slower = one + sum(work[name] for name in slowed) / all_work
        found[layer.name] = slower, one / 2 + saved[layer.name] / all_saved
    return found


def _still_compressed(order: Sequence[Option], plan: Plan) -> int:
    """How many of these can be taken with a layer left that is compressed."""
    gone: set[str] = set()
    for count, option in enumerate(order):
        gone |= {option.layer} if option.choice is None else set()
        if len(gone) == len(plan.choices):
            return count
    return len(order)


def _all_but_the_least(options: Sequence[Option]) -> list[Option]:
    """All layers in float but the one that does least to the outputs, whose input is in float if it can be."""
    whole = [option for option in options if option.choice is None]
    least = min(whole, key=lambda option: float(option.gain.sum())).layer
    inputs = [option for option in options if option.layer == least and option.choice is not None]
    return [*(option for option in whole if option.layer != least), *inputs]


def _with(source: Solutions, chosen: Sequence[Option], material: Material, recipe: Recipe) -> Solutions:
    """The same solutions in a fresh plan, with these layers in float, and remarks on them."""
    plan, last = source.plan, {option.layer: option for option in chosen}
    profile = {name: last[name].choice if name in last else choice for name, choice in plan.choices.items()}
    kept = {name: choice for name, choice in profile.items() if choice is not None}
    found = in_profile(source, kept, material.folded, recipe)
    solved, why = dict(found.solved), f"to reach {recipe.min_quality}"
    for name in last.keys() & solved.keys():
        report = solved[name].report
        report = replace(report, activations="float", notes=(*report.notes, f"its input stays float {why}"))
        solved[name] = replace(solved[name], report=report)
    gone = [LeftOut(x.name, x.op, f"float {why}") for x in plan.layers if x.name not in solved]
    return replace(found, plan=replace(found.plan, left_out=(*plan.left_out, *gone)), solved=solved)


def _note(chosen: Sequence[Option], board: Switchboard, plan: Plan, before: Gate, after: Gate) -> str:
    """Which layers are in float, and what each brought when the ones before it were there already."""
    on = set(board.every)
    figures, parts = [_figure(board.noise(on))], []
    for option in chosen:
        on -= board.inputs[option.layer]
        on -= board.weights[option.layer] if option.choice is None else frozenset()
        figures.append(_figure(board.noise(on)))
        parts.append(f"{option.layer} ({option.words}) {figures[-2]} → {figures[-1]}")
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    whole = {option.layer for option in chosen if option.choice is None}
    inputs = len({option.layer for option in chosen} - whole)
    besides = f", and the inputs of {inputs} more" if inputs else ""
    return (
        f"mixed precision for {after.wanted}: {before.reached} as planned, and {after.reached} with {len(whole)} of "
        f"{counted(len(plan.choices), 'layer')} in float{besides}; in turn, "
        f"on {counted(board.samples, 'sample')}, uncorrected: {', '.join(parts[:NAMED])}{more}"
    )


def _figure(noise: Noise) -> str:
    if LOSS in noise:
        return f"loss {noise[LOSS]:.3g}"
    worst = max(noise.values(), default=math.nan)
    return f"{decibels(1, worst):.1f} dB"
