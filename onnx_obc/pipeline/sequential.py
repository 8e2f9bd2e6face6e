"""Solves layers in order, each on the inputs that the compressed layers before it produce.

The goal of a layer stays what the dense model computes, WX for its inputs X, but what it gets is X̂. So first the
weights W* are found that are the best for those inputs, min ‖WX − W*X̂‖² + λ‖W* − W‖² with the damping λ of the
Hessian, and then W* is pruned and quantized by the exact greedy with the Hessian 2 X̂X̂ᵀ / n:

    W* = W + W D Ĥ⁻¹,  D = 2 (X − X̂) X̂ᵀ / n,  Ĥ = 2 X̂X̂ᵀ / n + λ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..calibration.capture import wanted_positions
from ..calibration.hessian import HessianSum
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..calibration.unfold import finite_positions, pick_positions, positions_of, shape_of, unfold
from ..core.arrays import Feed, Float64
from ..correction.sites import Site
from ..correction.statistics import affine, apply_affine
from ..graph.layers import Layer, Use
from ..graph.write import Writer
from ..runtime.stepper import Stepper
from ..solver import Method, solve, warm_up
from ..solver.linalg.threads import one_blas_thread
from .correct import sites_of
from .layer import Solved, method_of, ordered_over_exact, prepare_layer, report_layer, solving_device, trusted_method
from .plan import Plan, make_plan
from .recipe import Recipe
from .schedule import make_schedule
from .write import interval

SHARED = "solved in order on the inputs of its first use; it has others"


@one_blas_thread()
def solve_sequentially(
    plan: Plan,
    dense: ir.Model,
    ranges: Mapping[str, RangeObserver],
    samples: Samples,
    recipe: Recipe,
    progress: Callable[[str, int, int], None],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Solved]:
    """Solve the layers of a plan in the order of the graph, each on what a compressed copy of its model computes.

    The plan's model stays as it is. dense: the model as the user gave it. ranges: of the plan's activations, which are
    quantized as they will be in the file. On the way, statistics are corrected as they will be, if the recipe says so.
    A layer with several uses is solved for the first.

    The reports' losses are those of W*, which differ from the losses of the same layers solved on dense inputs.
    """
    device = solving_device(recipe.device)
    method = method_of(recipe, device)
    warm_up([plan.choices[layer.name].level for layer in plan.layers], method, progress)
    schedule = make_schedule(plan.layers, {name: [choice] for name, choice in plan.choices.items()}, recipe, device)
    for line in schedule.lines:
        say(line)
    own = {layer.name: layer for layer in plan.layers}
    trial = make_plan(dense, recipe, plan.choices)
    sites = sites_of(trial, dense, recipe) if recipe.correct else []
    reference = trial.model.clone()
    found = _walk(trial, reference, sites, ranges, samples, recipe, method, schedule.ordered, progress)
    return {name: replace(entry, layer=own[name]) for name, entry in found.items()}


def _walk(
    plan: Plan,
    reference: ir.Model,
    sites: Sequence[Site],
    ranges: Mapping[str, RangeObserver],
    samples: Samples,
    recipe: Recipe,
    method: Method,
    ordered: Mapping[str, int],
    progress: Callable[[str, int, int], None],
) -> dict[str, Solved]:
    """Solve, and write into the plan's model, layer by layer. reference: that model before."""
    memory = recipe.memory_bytes()
    batches = list(samples.read(0, samples.count))
    feeds = [batch.feed for batch in batches]
    writer = Writer(plan.model)
    for activation in plan.activations:
        writer.activation(activation, *interval(activation, ranges, recipe))
    dense, compressed = (
        Stepper(model, feeds, device=recipe.device, threads=recipe.threads, memory=memory / 2)
        for model in (reference, plan.model)
    )
    layers = {layer.uses[0].node: layer for layer in plan.layers}
    corrected = {site.node: site for site in sites}
    rows = sum(layer.groups * layer.rows for layer in plan.layers)
    solved: dict[str, Solved] = {}
    moments: dict[tuple[str, str, object], tuple[Float64, Float64, int]] = {}  # of the last input: layers may share it
    for node in list(plan.model.graph):
        if node in layers:
            layer = layers[node]
            use = layer.uses[0]
            source = str(_data(use).name)
            key = (use.tap.value, source, use.tap.unfold)
            if key not in moments:
                pair = (dense.advance([use.tap.value]), compressed.advance([source]))
                moments = {key: _moments(use, source, *pair, [(b.first, b.count) for b in batches], samples, recipe)}
                del pair
            how = replace(method, solver="ordered") if layer.name in ordered else method
            solved[layer.name] = _solve(layer, *moments[key], plan, recipe, how, ordered.get(layer.name, 0))
            writer.weight(layer, solved[layer.name].solution)
            progress("solve", layer.groups * layer.rows, rows)
        if node in corrected:
            site = corrected[node]
            name = str(node.outputs[0].name)
            values = [value[site.value] for value in dense.advance([site.value])]
            found = [value[name] for value in compressed.advance([name])]
            factor, shift, _ = affine(values, found, site)
            del values, found
            compressed.update(name, lambda y, f=factor, s=shift, at=site: apply_affine(y, f, s, at.axis))  # type: ignore[misc]
    return solved


def _data(use: Use) -> ir.Value:
    value = use.node.inputs[1 - use.index]
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
) -> tuple[Float64, Float64, int]:
    """Ĥ = 2 X̂X̂ᵀ / n and D = 2 (X − X̂) X̂ᵀ / n, both (groups, columns, columns) float64, and n."""
    how = use.tap.unfold
    groups, columns = shape_of(how, compressed[0][source].shape)
    total = HessianSum(groups, columns)
    cross = np.zeros((groups, columns, columns))
    for (first, count), x_feed, seen_feed in zip(batches, dense, compressed, strict=True):
        wanted, seen = x_feed[use.tap.value], seen_feed[source]
        slots, positions = positions_of(how, seen.shape, count)
        picks = None
        if not recipe.all_positions:
            take = wanted_positions(columns, count, slots, samples.count)
            picks = pick_positions(positions, take, recipe.seed, range(first, first + slots))
        for x, y in zip(unfold(wanted, how, picks, slots), unfold(seen, how, picks, slots), strict=True):
            if not (good := finite_positions(x, y)).all():
                x, y = x[:, good], y[:, good]
            total.add(y)  # x, y: (groups, n, columns) float32
            cross += np.subtract(x, y).transpose(0, 2, 1) @ np.ascontiguousarray(y)
    n = total.positions
    return total.mean(), 2 / max(n, 1) * cross, n


def _solve(
    layer: Layer,
    hessian: Float64,
    cross: Float64,
    positions: int,
    plan: Plan,
    recipe: Recipe,
    method: Method,
    compared_rows: int,
) -> Solved:
    """A layer's W*, and from it the solution at its level."""
    choice = plan.choices[layer.name]
    plain = prepare_layer(layer, hessian, positions, recipe)
    weight = plain.weight.astype(np.float64)  # (groups, rows, columns)
    best = weight + weight @ cross @ plain.damped.inverse
    prepared = replace(plain, weight=best.astype(np.float32))
    solution = solve(prepared.weight, prepared.damped, choice.level, trusted_method(prepared, method))
    remark = SHARED if len(layer.uses) > 1 else plan.remarks.get(layer.name)
    ratio = ordered_over_exact(prepared, solution, method, compared_rows)
    return Solved(layer, solution, report_layer(prepared, choice, solution, recipe, method, ratio, remark))
