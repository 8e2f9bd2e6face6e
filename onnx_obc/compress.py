"""The pipeline: read and fold, find, capture, solve, write, verify. Each stage takes plain values and returns them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir
import psutil

from .calibration.capture import Captured, capture, plan_chunks, probe
from .calibration.data import DataOptions, InputSpec, Samples, open_samples
from .calibration.ranges import RangeObserver
from .errors import VerificationError
from .graph.fold import remove_unused
from .graph.model import input_specs, read_model, save_model
from .graph.place import check_beside, check_output, place_model
from .graph.qdq import Writer, WrittenWeight
from .plan import Plan, make_plan
from .recipe import Recipe
from .report.report import Report, make_report
from .runtime.session import Device
from .schedule import make_schedule
from .solver import warm_up
from .solver.greedy_torch_device import devices
from .solver.threads import one_blas_thread
from .solving import EmbeddingReport, Solved, method_of, round_embedding, solve_layer
from .stopwatch import Stopwatch
from .verify import Verdict, check_graph, verify

HELD_OUT = 256  # the last tenth of the samples, but at most so many, only serve to compare the outputs
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Result:
    """A compressed model and the report on it. `path` is where it was written, None if it was kept in memory."""

    model: ir.Model
    report: Report
    path: Path | None


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
    with watch("write"):
        written, embeddings, intervals = write(plan, solved, ranges, recipe)
    with tempfile.TemporaryDirectory(prefix=".onnx-obc-", dir=target.parent if target is not None else None) as scratch:
        path = Path(scratch) / (target.name if target is not None else "model.onnx")
        save_model(plan.model, path)
        verdict = Verdict()
        if recipe.verify:
            with watch("verify"):
                verdict = verify(path, dense, solved, written, held_out, recipe, progress)
            verdict = replace(verdict, checks=(*checks, *verdict.checks))
        report = make_report(
            model=model,
            target=target,
            written=path,
            recipe=recipe,
            plan=plan,
            samples=samples,
            held_out=held_out,
            solved=solved,
            embeddings=embeddings,
            ranges=intervals,
            verdict=verdict,
            seconds=watch.seconds,
        )
        if verdict.faults:
            raise VerificationError(f"{verdict.faults}{leave_rejected(path, target)}")
        if target is not None:
            place_model(path, target)
    return Result(plan.model, report, target)


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples to calibrate on and those held out of it; with too few to spare any, the same ones serve as both."""
    spare = min(max(samples.count // 10, samples.step), HELD_OUT)
    spare -= spare % samples.step
    if spare == 0 or spare >= samples.count:
        return samples, samples
    return samples.part(0, samples.count - spare), samples.part(samples.count - spare, samples.count)


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
    schedule = make_schedule(plan.layers, plan.choices, recipe, device)
    for line in schedule.lines:
        say(line)
    values = [activation.value for activation in plan.activations]
    taps = [use.tap.value for layer in plan.layers for use in layer.uses]
    shapes = probe(plan.model, [*values, *taps], samples, recipe.device, recipe.threads)
    memory = recipe.memory * 2**30 if recipe.memory is not None else psutil.virtual_memory().available / 2
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


def solving_device(device: Device) -> str:
    """Where layers are solved: the first GPU, if one is asked for, or if any may be taken and there is one."""
    if device == "cpu":
        return "cpu"
    return next(iter(devices()), "cpu" if device == "auto" else "cuda")


def write(
    plan: Plan, solved: dict[str, Solved], ranges: dict[str, RangeObserver], recipe: Recipe
) -> tuple[list[WrittenWeight], list[EmbeddingReport], dict[str, tuple[float, float]]]:
    """Write solutions, tables and Q/DQ pairs into the plan's graph. Returns where, what, and each range."""
    writer = Writer(plan.model)
    intervals = {a.value: ranges[a.value].interval(recipe.ranges, a.bits, a.symmetric) for a in plan.activations}
    written = [writer.weight(entry.layer, entry.solution) for entry in solved.values()]
    embeddings = []
    for embedding in plan.embeddings:
        codes, grid, block, report = round_embedding(embedding, recipe)
        writer.embedding(embedding, codes, grid, block)
        embeddings.append(report)
    for activation in plan.activations:
        writer.activation(activation, *intervals[activation.value])
    remove_unused(plan.model)
    return written, embeddings, intervals


def leave_rejected(path: Path, target: Path | None) -> str:
    """Keep a file that failed a check under a name that nobody takes for a good one; says where."""
    if target is None:
        return ""
    rejected = target.with_name(f"{target.name}.rejected")
    if path.with_name(f"{path.name}.data").exists():  # weights beside it go by the name of the file
        save_model(ir.load(path), rejected)
    else:
        path.replace(rejected)
    return f"; the file was left as {rejected} for you to look at: please report it"
