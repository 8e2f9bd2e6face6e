"""Builds a database with workers: what each does, and how its results, already in the form of the files, come back."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
from safetensors.numpy import load

from ..calibration.capture import Captured, Chunk, LayerHessian, capture
from ..calibration.ranges import HISTOGRAM_ELEMENTS, RangeObserver
from ..calibration.samples import Batch, Samples
from ..core.level import Choice
from ..core.progress import Feedback
from ..graph.layers import Layer, Tap, find_layers
from ..graph.save import save_model
from ..pipeline.layer import LayerMethod, Solved, prepare_layer, solve_layer, solving_device
from ..pipeline.recipe import Recipe
from ..pipeline.schedule import longest_first
from ..pipeline.solve import Store, Work
from ..pipeline.tasks import Shared, SharedFolder, Task, Workers
from .files import arrays_bytes, solution_bytes

COUNTED = 50  # multiplications with addition that a value costs that goes into a histogram


class FolderStore(Store, Protocol):
    """A store that takes files as workers make them."""

    hessian_key: str

    def hessian_file(self, layer: Layer) -> Path:
        """Where a layer's Hessian lies."""

    def solution_file(self, layer: str, choice: Choice) -> tuple[Path, str]:
        """Where a solution lies that `missing` has named, and its key."""

    def put_file(self, path: Path, data: bytes) -> None:
        """Take a file of either kind."""


def solution_file_bytes(solved: Solved, key: str) -> bytes:
    """The file of a solution. Times are not kept: the same build ends in the same bytes."""
    return solution_bytes(solved.solution, key, asdict(replace(solved.report, seconds=0.0)))


def hessian_file_bytes(captured: LayerHessian, key: str) -> bytes:
    """The file of a Hessian."""
    about = {"positions": captured.positions, "damping": captured.damping, "left_out": captured.left_out}
    return arrays_bytes({"hessian": captured.hessian}, key, about)


@dataclass(frozen=True)
class CaptureJob:
    """Part of a run over the data: the Hessians of some layers and the ranges of some values, over all samples.

    folder: of the folded model. layers: by name. choose_damping, mapped, beside: as in `Chunk`. batches: of the
    samples, of which there are `count`, called `names`.
    """

    folder: SharedFolder
    layers: tuple[str, ...]
    ranges: tuple[str, ...]
    mapped: frozenset[Tap]
    choose_damping: bool
    beside: tuple[str, ...]
    batches: tuple[Shared, ...]
    names: tuple[str, ...]
    step: int
    recipe: Recipe
    key: str


def do_capture(job: CaptureJob) -> tuple[dict[str, bytes], dict[str, RangeObserver]]:
    """In a worker: the files of Hessians, by the name of the first layer that each is of, and what ranges were seen."""
    model, layers = _folded(job.folder.place())
    recipe = job.recipe

    def read(start: int, stop: int) -> Iterator[Batch]:
        for shared in job.batches:
            batch: Batch = shared.get()
            if start <= batch.first < stop:
                yield batch

    samples = Samples(len(job.names), "", read, step=job.step, name_of=job.names.__getitem__)
    chosen = tuple(layers[name] for name in job.layers)
    chunk = Chunk(chosen, job.ranges, job.mapped, job.choose_damping, job.beside)
    captured = capture(
        model, chunk, samples, all_positions=recipe.all_positions, seed=recipe.seed, execution=recipe.execution()
    )
    first: dict[tuple[Tap, ...], Layer] = {}
    for layer in chosen:
        first.setdefault(_taps(layer), layer)
    files = {layer.name: hessian_file_bytes(captured.of(layer), job.key) for layer in first.values()}
    return files, captured.ranges


@dataclass(frozen=True)
class SolveJob:
    """A layer, without the nodes that use it, at all levels that are missing. hessian: the bytes of its file; keys: of
    the solutions. The array of `about` is left out."""

    layer: Layer
    hessian: Shared
    about: LayerHessian
    choices: Sequence[Choice]
    recipe: Recipe
    how: LayerMethod
    remark: str | None
    keys: Sequence[str]


def do_solve(job: SolveJob) -> list[bytes]:
    """In a worker: the files of a layer's solutions, in the order of its choices."""
    recipe = job.recipe
    method = replace(job.how.method, device=solving_device(recipe.device), threads=recipe.threads)
    captured = replace(job.about, hessian=load(bytes(job.hessian.get()))["hessian"])
    prepared = prepare_layer(job.layer, captured, recipe)
    solutions = solve_layer(prepared, job.choices, recipe, replace(job.how, method=method), job.remark)
    return [solution_file_bytes(solved, key) for solved, key in zip(solutions, job.keys, strict=True)]


def capture_and_solve_with(
    workers: Workers, work: Work, samples: Samples, recipe: Recipe, store: FolderStore, feedback: Feedback
) -> None:
    """As `capture_and_solve`, by workers: first all that is captured, then all layers, and each file as it comes."""
    theirs = recipe.model_copy(update={"threads": workers.threads})
    with feedback.watch("capture"):
        _capture(workers, work, samples, theirs, store, feedback)
    with feedback.watch("solve"):
        _solve(workers, work, theirs, store, feedback)


def _solve(workers: Workers, work: Work, recipe: Recipe, store: FolderStore, feedback: Feedback) -> None:
    layers = [layer for chunk in work.chunks for layer in chunk.layers]
    rows = {layer.name: layer.groups * layer.rows for layer in layers}
    total = sum(rows[name] * len(work.choices[name]) for name in rows)

    def tasks() -> Iterator[Task]:
        for layer in longest_first(layers, work.choices, work.schedule):
            hessian = store.hessian(layer)
            missing = store.missing(layer, hessian)
            feedback.progress("solve", rows[layer.name] * (len(work.choices[layer.name]) - len(missing)), total)
            if missing:
                files[layer.name] = [store.solution_file(layer.name, choice) for choice in missing]
                job = SolveJob(
                    replace(layer, uses=()),
                    workers.share_file(store.hessian_file(layer)),
                    replace(hessian, hessian=hessian.hessian[:0]),
                    missing,
                    recipe,
                    work.schedule.method_for(layer.name, work.method),
                    work.remarks.get(layer.name),
                    [key for _, key in files[layer.name]],
                )
                yield Task(f"layer {layer.name!r}", do_solve, job)

    files: dict[str, list[tuple[Path, str]]] = {}
    for task, made in workers.run(tasks()):
        assert isinstance(task.job, SolveJob)
        name = task.job.layer.name
        for (path, _), data in zip(files.pop(name), made, strict=True):
            store.put_file(path, data)
        feedback.progress("solve", rows[name] * len(made), total)


def _capture(
    workers: Workers, work: Work, samples: Samples, recipe: Recipe, store: FolderStore, feedback: Feedback
) -> None:
    """Run what chunks ask for, each in as many parts as there are workers, but what the store has already."""
    parts: list[tuple[int, Chunk]] = []
    for number, chunk in enumerate(work.chunks):
        ranges = () if not chunk.ranges or store.recall(number, replace(chunk, layers=())) else chunk.ranges
        layers = tuple(x for x in chunk.layers if not store.recall(number, Chunk((x,), ())))
        missing = replace(chunk, layers=layers, ranges=ranges, beside=chunk.values)
        parts += [(number, part) for part in split_chunk(missing, workers.many(), samples.count)]
    if not parts:
        return
    open_ranges = {number: sum(bool(part.ranges) for n, part in parts if n == number) for number, _ in parts}
    seen: defaultdict[int, dict[str, RangeObserver]] = defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as scratch:
        save_model(work.model, Path(scratch) / "model.onnx")
        folder = workers.share_folder(Path(scratch))
        batches = tuple(workers.share(batch) for batch in samples.read(0, samples.count))
        names = tuple(samples.name_of(position) for position in range(samples.count))
        owners = {_name(number, part): (number, part) for number, part in parts}
        tasks = (
            Task(name, do_capture, _job(part, folder, batches, names, samples.step, recipe, store.hessian_key))
            for name, (_, part) in owners.items()
        )
        for task, (hessians, ranges) in workers.run(tasks):
            number, part = owners[task.name]
            named = {layer.name: layer for layer in part.layers}
            for name, data in hessians.items():
                store.put_file(store.hessian_file(named[name]), data)
            if part.ranges:
                seen[number] |= ranges
                open_ranges[number] -= 1
                if not open_ranges[number]:
                    whole = work.chunks[number]
                    ordered = {value: seen[number][value] for value in whole.ranges}
                    store.keep(number, replace(whole, layers=()), Captured({}, {}, ordered))
            feedback.progress("capture", 1, len(parts))


def _job(
    part: Chunk,
    folder: SharedFolder,
    batches: tuple[Shared, ...],
    names: tuple[str, ...],
    step: int,
    recipe: Recipe,
    key: str,
) -> CaptureJob:
    layers = tuple(layer.name for layer in part.layers)
    how = part.mapped, part.choose_damping, part.beside
    return CaptureJob(folder, layers, part.ranges, *how, batches, names, step, recipe, key)


def split_chunk(chunk: Chunk, most: int, samples: int) -> list[Chunk]:
    """A chunk in at most so many parts of about equal work; layers with a Hessian in common stay together.

    Each part runs the model again, on all samples, and adds up its Hessians as the whole would. Samples are not shared
    out: sums of parts of them would be other sums in the last digits, would take the memory of all Hessians on every
    worker, and would have to be sent: columns² · 8 bytes for each, twice with dampings, from every worker.
    """
    together: dict[tuple[Tap, ...], list[Layer]] = {}
    for layer in chunk.layers:
        together.setdefault(_taps(layer), []).append(layer)
    items: list[tuple[float, list[Layer], tuple[str, ...]]] = [
        (128.0 * layers[0].groups * layers[0].columns ** 3, layers, ()) for layers in together.values()
    ]
    items += [(float(COUNTED * HISTOGRAM_ELEMENTS * samples), [], (value,)) for value in chunk.ranges]
    shares = [(0.0, set[str](), set[str]()) for _ in range(min(most, len(items)))]
    for effort, layers, values in sorted(items, key=lambda item: -item[0]):
        least = min(range(len(shares)), key=lambda i: shares[i][0])
        done, names, watched = shares[least]
        shares[least] = done + effort, names | {layer.name for layer in layers}, watched | set(values)
    return [
        replace(
            chunk,
            layers=tuple(layer for layer in chunk.layers if layer.name in names),
            ranges=tuple(value for value in chunk.ranges if value in watched),
        )
        for _, names, watched in shares
    ]


def _name(number: int, part: Chunk) -> str:
    what = [f"layer {part.layers[0].name!r}"] if part.layers else []
    what += [f"value {part.ranges[0]!r}"] if part.ranges and not part.layers else []
    return f"run {number + 1} over the data, for {what[0]} and others"


def _taps(layer: Layer) -> tuple[Tap, ...]:
    return tuple(use.tap for use in layer.uses)


@lru_cache(maxsize=1)  # of all parts that a worker does
def _folded(folder: Path) -> tuple[ir.Model, Mapping[str, Layer]]:
    model = ir.load(folder / "model.onnx")
    return model, {layer.name: layer for layer in find_layers(model)[0]}
