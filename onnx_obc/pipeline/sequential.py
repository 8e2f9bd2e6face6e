"""Solves layers in order, each on the inputs that the compressed layers before it produce.

The goal of a layer stays what the dense model computes, WX for its inputs X, but what it gets is X̂. So first the
weights W* are found that are the best for those inputs, min ‖WX − W*X̂‖² + λ‖W* − W‖² with the damping λ of the
Hessian, and then W* is pruned and quantized by the exact greedy with the Hessian 2 X̂X̂ᵀ / n:

    W* = W + W D Ĥ⁻¹,  D = 2 (X − X̂) X̂ᵀ / n,  Ĥ = 2 X̂X̂ᵀ / n + λ.

What learns its rounding by gradients learns it on X̂ and WX as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..calibration.capture import LayerHessian, wanted_positions
from ..calibration.held_out import held_samples, join, pieces
from ..calibration.hessian import SAFE, HessianSum
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..calibration.unfold import finite_positions, pick_positions, positions_of, shape_of, unfold
from ..core.arrays import Feed, Float64
from ..core.progress import Feedback, Progress, hundredths
from ..core.solution import Solution
from ..correction.sites import Site, bias_sites
from ..correction.statistics import add_to_bias, affine, apply_affine
from ..graph.layers import Layer, Use
from ..graph.write import Writer
from ..runtime.session import Execution
from ..runtime.stepper import Stepper
from ..solver import Method
from ..solver.linalg.threads import one_blas_thread
from .attempts import of_few_bits
from .correct import sites_of
from .kept import Shelf
from .layer import Solved, prepare_layer, solve_layer
from .learned import Units
from .options import LEARNED
from .plan import Folded, Plan, make_plan
from .recipe import Recipe
from .schedule import Schedule
from .solve import Solutions, method_and_schedule
from .write import quantize_activations

MOST = 1024  # samples that layers are solved in order on, unless asked for
SHARED = "solved in order on the inputs of its first use; it has others"


@dataclass(frozen=True, eq=False)
class _Moments:
    """captured: Ĥ = 2 X̂X̂ᵀ / n, with n and the damping that held-out samples ask for. cross: D = 2 (X − X̂) X̂ᵀ / n,
    (groups, columns, columns) float64."""

    captured: LayerHessian
    cross: Float64


@dataclass(frozen=True, eq=False)
class _Trial:
    """The compressed copy that layers are solved on. reference: the same before it is written into. corrected: the
    sites where statistics are to be, biases: where a layer has its bias. method, schedule: how layers are solved.
    units: where they learn."""

    plan: Plan
    reference: ir.Model
    corrected: Mapping[ir.Node, Site]
    biases: Mapping[str, Site]
    method: Method
    schedule: Schedule
    units: Units | None


class _Runs:
    """The dense model and the compressed one, run on the same feeds up to one value after another."""

    def __init__(self, trial: _Trial, feeds: Sequence[Feed], execution: Execution) -> None:
        half = replace(execution, memory=execution.memory / 2)
        self._dense, self.compressed = (Stepper(model, feeds, half) for model in (trial.reference, trial.plan.model))
        self._ahead: dict[str, Sequence[Feed]] = {}  # by value, the run that has it
        self._kept: frozenset[str] = frozenset()

    def dense(self, name: str) -> Sequence[Feed]:
        """A value of the dense model, on every feed."""
        return self._ahead.pop(name) if name in self._kept else self._ahead.get(name) or self._dense.advance([name])

    def look_ahead(self, names: Sequence[str], once: Sequence[str]) -> Sequence[Feed]:
        """Values of the dense model, on every feed: `names` can be asked for again until the next call, the others of
        `once` one time, whenever that is."""
        run = self._dense.advance(list(dict.fromkeys((*names, *once))))
        waiting = {name: values for name, values in self._ahead.items() if name in self._kept}
        self._kept = frozenset((*waiting, *once)) - frozenset(names)
        self._ahead = {**dict.fromkeys(names, run), **waiting, **dict.fromkeys(once, run)}
        return run


def worth_solving_in_order(solutions: Solutions, samples: Samples, recipe: Recipe) -> bool:
    """Whether layers that were solved on dense inputs are to be solved in order too, where the recipe leaves that open.

    It pays for few bits, and takes as long again as solving did: not for layers that take too long to be solved
    exactly, nor where a time limit was set; and it holds what all samples make of a value: not for more than `MOST`.
    """
    exact = all(entry.report.solver == "exact" for entry in solutions.solved.values())
    few = of_few_bits(solutions.plan.choices) and samples.count <= MOST
    return recipe.effort != "fast" and few and exact and recipe.time_limit is None


@one_blas_thread()
def solve_sequentially(
    plan: Plan,
    folded: Folded,
    ranges: Mapping[str, RangeObserver],
    samples: Samples,
    recipe: Recipe,
    feedback: Feedback,
    exact: bool = False,
) -> Solutions:
    """Solve the layers of a plan in the order of the graph, each on what a compressed copy of its model computes.

    The plan's model stays as it is. folded: what it was made from. ranges: of the plan's activations, which are
    quantized as they will be in the file. On the way, statistics are corrected as they will be, if the recipe says so.
    A layer with several uses is solved for the first. exact: all layers are known to be solved exactly, so that none is
    scheduled again.

    The reports' losses are those of W*, which differ from the losses of the same layers solved on dense inputs.
    """
    choices = {name: (choice,) for name, choice in plan.choices.items()}
    decided = [layer.name for layer in plan.layers] if exact else ()
    method, schedule = method_and_schedule(plan.layers, choices, recipe, feedback, decided)
    own = {layer.name: layer for layer in plan.layers}
    copy = replace(make_plan(folded, recipe, plan.choices), remarks=plan.remarks)
    sites = sites_of(copy, folded.dense, recipe) if recipe.correct else []
    reference = copy.model.clone()
    trial = _Trial(
        copy,
        reference,
        {site.node: site for site in sites},
        bias_sites(copy.model, copy.layers),
        method,
        schedule,
        Units(copy.model, copy.layers, samples, recipe, feedback.progress, reference)
        if recipe.solver in LEARNED
        else None,
    )
    with feedback.watch("solve"):
        solved = _walk(trial, ranges, samples, recipe, feedback.progress)
    return Solutions(plan, {name: replace(entry, layer=own[name]) for name, entry in solved.items()}, ranges)


def _walk(
    trial: _Trial,
    ranges: Mapping[str, RangeObserver],
    samples: Samples,
    recipe: Recipe,
    progress: Progress,
) -> dict[str, Solved]:
    """Solve, and write into the trial's model, layer by layer."""
    plan = trial.plan
    batches = list(samples.read(0, samples.count))
    writer = Writer(plan.model)
    quantize_activations(writer, plan, ranges, recipe.ranges)
    runs = _Runs(trial, [batch.feed for batch in batches], recipe.execution())
    layers = {layer.uses[0].node: layer for layer in plan.layers}
    learned: dict[str, Solution] = {}
    rows = sum(layer.groups * layer.rows for layer in plan.layers)
    solved: dict[str, Solved] = {}
    shelf = Shelf(recipe.memory_bytes())
    moments: dict[tuple[str, str, object], _Moments] = {}  # of the last input: layers may share it
    for node in list(plan.model.graph):
        if node in layers:
            layer = layers[node]
            use = layer.uses[0]
            source = str(_data(use).name)
            key = (use.tap.value, source, use.tap.unfold)
            if trial.units is not None and layer.name not in learned:
                learned |= _learn(layer, trial, trial.units, runs, progress)
            if key not in moments:
                pair = (runs.dense(use.tap.value), runs.compressed.advance([source]))
                moments = {key: _moments(use, source, *pair, [(b.first, b.count) for b in batches], samples, recipe)}
                del pair
            found = _solve(layer, moments[key], trial, recipe, learned.get(layer.name))
            solution = shelf.keep(found.solution)
            solved[layer.name] = replace(found, solution=solution)
            writer.weight(layer, solution)
            if solution.bias is not None:
                add_to_bias(plan.model, trial.biases[layer.name], solution.bias)
            progress("order", layer.groups * layer.rows, rows)
        if node in trial.corrected:
            site = trial.corrected[node]
            name = str(node.outputs[0].name)
            values = [value[site.value] for value in runs.dense(site.value)]
            given = [value[name] for value in runs.compressed.advance([name])]
            factor, shift, _ = affine(values, given, site)
            del values, given
            runs.compressed.update(name, lambda y, f=factor, s=shift, at=site: apply_affine(y, f, s, at.axis))  # type: ignore[misc]
    return solved


def _learn(layer: Layer, trial: _Trial, units: Units, runs: _Runs, progress: Progress) -> dict[str, Solution]:
    """The solutions of a layer and of those that are learned with it, by name, without losses."""
    unit = units.of(layer)
    inside = {other.name: other for other in trial.plan.layers if other.name in unit.layers}
    taps = [other.uses[0].tap.value for other in inside.values()]
    sites = [trial.corrected[node].value for node in unit.nodes if node in trial.corrected]
    wanted = runs.look_ahead([*taps, unit.output], sites)
    sources = {name: str(_present(node.inputs[index]).name) for name, (node, index) in unit.inputs.items()}
    values = runs.compressed.advance(list(dict.fromkeys(sources.values())))
    given = [{name: value[source] for name, source in sources.items()} for value in values[: len(units.feeds)]]
    levels = {name: trial.plan.choices[name].level for name in inside}
    tell = hundredths(progress, "learn", units.count)
    return units.learn(unit, levels, units.examples(unit, given, wanted[: len(units.feeds)]), tell)


def _data(use: Use) -> ir.Value:
    return _present(use.node.inputs[1 - use.index])


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _moments(
    use: Use,
    source: str,
    dense: Sequence[Feed],
    compressed: Sequence[Feed],
    batches: Sequence[tuple[int, int]],
    samples: Samples,
    recipe: Recipe,
) -> _Moments:
    how = use.tap.unfold
    groups, columns = shape_of(how, compressed[0][source].shape)
    total, spared = HessianSum(groups, columns), HessianSum(groups, columns)
    cross, left_out = np.zeros((groups, columns, columns)), 0
    for (first, count), x_feed, seen_feed in zip(batches, dense, compressed, strict=True):
        wanted, seen = x_feed[use.tap.value], seen_feed[source]
        slots, positions = positions_of(how, seen.shape, count)
        picks, each, done = None, positions, 0
        held = held_samples(first, count, slots, samples.count) & (recipe.damp is None)  # (slots,)
        if not recipe.all_positions:
            take = wanted_positions(columns, count, slots, samples.count)
            picks = pick_positions(positions, take, recipe.seed, range(first, first + slots))
            each = positions if picks is None else take
        for x, y in zip(unfold(wanted, how, picks, slots), unfold(seen, how, picks, slots), strict=True):
            good = finite_positions(x, y)
            left_out += len(good) - int(np.count_nonzero(good))
            for part, out in pieces(held, each, done, y.shape[1]):  # x, y: (groups, n, columns) float32
                (spared if out else total).add(y[:, part] if good.all() else y[:, part][:, good[part]])
            done += y.shape[1]
            if not good.all():
                x, y = x[:, good], y[:, good]
            if max(np.abs(part).max(initial=0) for part in (x, y)) > SAFE[1]:
                x, y = x.astype(np.float64), y.astype(np.float64)
            cross += np.subtract(x, y).transpose(0, 2, 1) @ np.ascontiguousarray(y)
    n = total.positions + spared.positions
    hessian, damping = join(total, spared)
    return _Moments(LayerHessian(hessian, n, damping, left_out), 2 / max(n, 1) * cross)


def _solve(layer: Layer, moments: _Moments, trial: _Trial, recipe: Recipe, learned: Solution | None) -> Solved:
    """A layer's W*, and from it the solution at its level; of one that was learned, the figures."""
    prepared = prepare_layer(layer, moments.captured, recipe)
    if learned is None:
        weight = prepared.weight.astype(np.float64)  # (groups, rows, columns)
        best = weight + weight @ moments.cross @ prepared.damped.inverse
        prepared = replace(prepared, weight=best.astype(np.float32))
    said = (SHARED if len(layer.uses) > 1 else None, trial.plan.remarks.get(layer.name))
    remark = "; ".join(text for text in said if text is not None) or None
    how = trial.schedule.method_for(layer.name, trial.method)
    if learned is not None:
        how = replace(how, learned=lambda *_: iter([learned]))
    (solved,) = solve_layer(prepared, [trial.plan.choices[layer.name]], recipe, how, remark)
    return solved
