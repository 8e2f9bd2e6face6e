"""Capture and solve, chunk by chunk of what fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..calibration.capture import Captured, capture, plan_chunks, probe
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..core.progress import Progress, Stopwatch
from ..solver import warm_up
from ..solver.linalg.threads import one_blas_thread
from .layer import Solved, method_of, solve_layer, solving_device
from .plan import Plan
from .recipe import Recipe
from .schedule import make_schedule


@one_blas_thread()  # or the last digits would depend on the cores, and BLAS would wait for onnxruntime's threads
def solve_layers(
    plan: Plan,
    samples: Samples,
    recipe: Recipe,
    progress: Progress,
    say: Callable[[str], None],
    watch: Stopwatch,
) -> tuple[dict[str, Solved], dict[str, RangeObserver]]:
    """Capture and solve, chunk by chunk: the Hessians of a chunk are dropped before the next one is captured."""
    if not plan.layers:  # only tables, which need no data
        return {}, {}
    device = solving_device(recipe.device)
    method = method_of(recipe, device)
    with watch("compile"):
        if recipe.solver != "baseline":
            warm_up([plan.choices[layer.name].level for layer in plan.layers], method, progress)
    schedule = make_schedule(plan.layers, {name: [choice] for name, choice in plan.choices.items()}, recipe, device)
    for line in schedule.lines:
        say(line)
    values = [activation.value for activation in plan.activations]
    taps = [use.tap.value for layer in plan.layers for use in layer.uses]
    shapes = probe(plan.model, [*values, *taps], samples, recipe.device, recipe.threads)
    memory = recipe.memory_bytes()
    chunks = plan_chunks(plan.layers, values, shapes, samples, memory, recipe.damp is None)
    rows = sum(layer.groups * layer.rows for layer in plan.layers)

    solved: dict[str, Solved] = {}
    ranges: dict[str, RangeObserver] = {}
    for chunk in chunks:
        with watch("capture"):
            captured: Captured = capture(
                plan.model,
                chunk,
                samples,
                all_positions=recipe.all_positions,
                seed=recipe.seed,
                device=recipe.device,
                threads=recipe.threads,
                progress=lambda done: progress("capture", done, samples.count * len(chunks)),
            )
        ranges |= captured.ranges
        with watch("solve"):
            for layer in chunk.layers:
                ordered = layer.name in schedule.ordered
                solved[layer.name] = solve_layer(
                    layer,
                    captured,
                    plan.choices[layer.name],
                    recipe,
                    replace(method, solver="ordered") if ordered else method,
                    schedule.ordered.get(layer.name, 0),
                    plan.remarks.get(layer.name),
                    lambda done: progress("solve", done, rows),
                )
        del captured
    return solved, ranges
