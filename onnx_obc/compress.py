"""The pipeline: read and fold, find, capture, solve, write, verify. Each stage takes plain values and returns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from .calibration.capture import Captured, capture, plan_chunks, probe
from .calibration.data import DataOptions, InputSpec, Samples, open_samples
from .calibration.ranges import RangeObserver
from .finish import Material, Progress, Result, finish
from .graph.model import input_specs, read_model
from .graph.place import check_beside, check_output
from .plan import Plan, make_plan
from .recipe import Recipe
from .schedule import make_schedule
from .sequential import solve_sequentially
from .solver import warm_up
from .solver.threads import one_blas_thread
from .solving import Solved, method_of, solve_layer, solving_device
from .split import describe, split
from .stopwatch import Stopwatch
from .verify import check_graph


def compress(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object,
    recipe: Recipe | None = None,
    output: str | Path | None = None,
    *,
    data: DataOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Compress a trained ONNX model on calibration data, without labels and without training.

    model:       a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model; never changed.
    calibration: a path or text as on the command line, a dict of arrays, a list of feeds, or a function that yields
                 feeds; see `onnx_obc.calibration.data.open_samples`.
    recipe:      what each layer is to become; None: int8 weights and activations.
    output:      where to write the result; None keeps it in memory.
    data:        how the calibration data is read.
    progress:    called with the name of a stage, how much was done since the last call, and how much there is in all.
    say:         called with lines of text for the user: what is planned, before it begins.

    Raises ModelError, CalibrationError, RecipeError or OutputError for what cannot be done, before anything is
    written; VerificationError if the result fails a check: it is then left under a `.rejected` name.
    """
    recipe = recipe or Recipe()
    data = data or DataOptions(seed=recipe.seed)
    target = check_output(output, model) if output is not None else None
    watch = Stopwatch()
    with watch("read"):
        dense = read_model(model)
        if target is not None:
            check_beside(dense, target)
        plan = make_plan(dense, recipe)
        samples = open_samples(calibration, [InputSpec(*spec) for spec in input_specs(dense)], data)
        calibrating, held_out = split(samples)
        checks = [check_graph(dense, plan.model, held_out, recipe)] if recipe.verify else []

    solved, ranges = solve_layers(plan, calibrating, recipe, progress, say, watch)
    rival = None
    if recipe.sequential and plan.layers:
        rival, plan = (plan, solved), make_plan(dense, recipe)
        with watch("solve"):
            solved = solve_sequentially(plan, dense, ranges, calibrating, recipe, progress, say)
    material = Material(model, dense, calibrating, held_out, *describe(samples, calibrating, held_out))
    return finish(material, plan, solved, ranges, recipe, target, checks, watch, progress, rival=rival)


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
    chunks = plan_chunks(plan.layers, values, shapes, samples, memory)
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
