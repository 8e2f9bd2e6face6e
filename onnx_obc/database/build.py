"""Builds a database: every layer solved at every level, into a folder from which models for any budget are made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import psutil

from ..calibration.capture import POSITIONS_PER_COLUMN, Captured, Chunk, capture, plan_chunks, probe
from ..calibration.data import open_samples
from ..calibration.samples import DataOptions, Samples
from ..calibration.split import STORED, describe, first_samples, split
from ..core.errors import DatabaseError, ModelError, OutputError, RecipeError
from ..core.files import remove_abandoned
from ..core.level import FLOAT, Choice, Level, parse_choice
from ..core.level_sets import read_levels
from ..core.progress import Progress
from ..core.version import __version__
from ..graph.fold import fold
from ..graph.layers import Layer, find_layers
from ..graph.model import input_specs, read_model
from ..graph.save import save_model
from ..pipeline.layer import (
    SOLVER,
    method_of,
    ordered_over_exact,
    prepare_layer,
    report_layer,
    solving_device,
    trusted_method,
)
from ..pipeline.plan import possible, possible_choices, quantizable
from ..pipeline.recipe import Recipe
from ..pipeline.schedule import Schedule, make_schedule
from ..solver import Method, solve_levels, warm_up
from ..solver.linalg.threads import one_blas_thread
from ..targets.registry import TARGETS
from .calibration import samples_key, write_ranges, write_samples
from .files import (
    SCHEMA,
    LayerEntry,
    Manifest,
    content_key,
    has_arrays,
    layer_folder,
    level_file,
    model_key,
    read_arrays,
    read_manifest,
    write_arrays,
    write_manifest,
    write_solution,
)

MADE = {"layers", "hessians", "sensitivity", "timings"}  # from the data
PARTS = {"model.onnx", "model.onnx.data", "samples.safetensors", "ranges", *MADE}


@dataclass(frozen=True)
class Built:
    """What a build did. solved, reused: solutions; captured: whether the model had to be run for Hessians."""

    folder: Path
    manifest: Manifest
    solved: int
    reused: int
    captured: bool


@one_blas_thread()
def build(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object,
    levels: str,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    data: DataOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """Solve every layer of a model at every level that it can take, into `folder`.

    model, calibration, data, progress, say: as for `compress`. levels: see `levels.read_levels`. recipe: its target,
    solver options and `skip` rules count.

    What is in the folder already and was made from the same things is kept; what was made from others is made anew. An
    interrupted build goes on where it stopped, and ends in the same bytes. Levels of an earlier build from the same
    model, data and options stay. Raises DatabaseError if the folder holds something else, and what `compress` raises.
    """
    recipe, target = recipe or Recipe(), Path(folder)
    check_recipe(recipe)
    wanted = read_levels(levels, zero_points=TARGETS[recipe.target].zero_points(None))
    earlier = _open_folder(target)
    dense = read_model(model)
    key = model_key(dense)
    there = target / "model.onnx"
    if earlier.model != key if earlier is not None else there.exists() and not _holds(there, key):
        raise DatabaseError(f"{target} holds a database of another model; name another folder, or delete that one")
    graph, _ = fold(dense)
    layers, _ = find_layers(graph)
    samples = open_samples(calibration, input_specs(dense), data or DataOptions(seed=recipe.seed))
    calibrating, held_out = split(samples)
    about, notes = describe(samples, calibrating, held_out)
    options = _options(recipe)
    source = content_key(samples_key(calibrating), samples_key(held_out))
    same = earlier is not None and earlier.samples == source and earlier.recipe == options
    if same and earlier is not None:
        wanted = tuple(dict.fromkeys([*(parse_choice(text) for text in earlier.levels), *wanted]))
    choices = possible_choices(layers, wanted, recipe)
    if not any(len(found) > 1 for found in choices.values()):
        raise RecipeError(f"no layer can take any of {levels}; choose other levels, or see onnx-obc inspect")
    entries = _entries(layers, choices)
    manifest = Manifest(
        schema=SCHEMA,
        version=__version__,
        complete=False,
        model=key,
        samples=source,
        recipe=options,
        calibration={**about, "notes": notes},
        levels=tuple(map(str, wanted)),
        ranges={},
        layers=tuple(entries.values()),
    )
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {target}: {error.strerror}; name another one") from error
    _clear(target, set() if same or earlier is None else MADE)
    if not _holds(there, key):
        save_model(dense, there)
    write_manifest(target, manifest)
    if not has_arrays(target / "samples.safetensors", source):
        feeds = {"calibration": first_samples(calibrating, STORED), "held_out": held_out}
        write_samples(target / "samples.safetensors", feeds, source)

    solving = [layer for layer in layers if len(choices[layer.name]) > 1]
    device = solving_device(recipe.device)
    method = method_of(recipe, device)
    warm_up([choice.level for choice in wanted if choice.level != FLOAT], method, progress)
    planned: Mapping[str, int] = {}
    fresh = solving
    if same and earlier is not None and earlier.ordered is not None:
        planned, known = earlier.ordered, {entry.name for entry in earlier.layers if len(entry.choices) > 1}
        fresh = [layer for layer in solving if layer.name not in known]
    schedule = Schedule()
    if fresh:
        schedule = make_schedule(fresh, {layer.name: choices[layer.name][1:] for layer in fresh}, recipe, device)
    ordered_layers = {**planned, **schedule.ordered}
    for line in schedule.lines:
        say(line)
    manifest = replace(manifest, ordered=ordered_layers)
    write_manifest(target, manifest)
    hessian_key = content_key(key, source, recipe.all_positions, recipe.seed, POSITIONS_PER_COLUMN)
    captured_any, counts, ranges = False, np.zeros(2, np.int64), {}
    total = sum(layer.groups * layer.rows * (len(choices[layer.name]) - 1) for layer in solving)
    chunks = _chunks(dense, graph, solving, wanted, choices, calibrating, recipe)
    for number, chunk in enumerate(chunks):
        place = target / "ranges" / f"{number:04d}.safetensors"
        if chunk.ranges:
            ranges[place.stem] = content_key(hessian_key, list(chunk.ranges))
        captured_any |= _capture_chunk(
            target, chunk, graph, calibrating, recipe, hessian_key, entries, place, len(chunks), progress
        )
        for layer in chunk.layers:
            ordered = replace(method, solver="ordered") if layer.name in ordered_layers else method
            keys, done = _solve_layer(
                target,
                entries[layer.name],
                layer,
                choices[layer.name],
                recipe,
                ordered,
                ordered_layers.get(layer.name, 0),
                hessian_key,
                lambda rows: progress("solve", rows, total),
            )
            counts += done
            entries[layer.name] = replace(entries[layer.name], solutions=keys)
    complete = replace(manifest, complete=True, ranges=ranges, layers=tuple(entries.values()))
    _remove_stale(target, complete)
    write_manifest(target, complete)
    return Built(target, complete, int(counts[0]), int(counts[1]), captured_any)


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for what does not go together with a database: the baseline, and what fixes a level."""
    for name in ("weights", "activations", "sparsity", "asymmetric", "block"):
        if getattr(recipe, name) != Recipe.model_fields[name].default:
            raise RecipeError(f"the recipe's {name} fixes a level, but with a budget the search chooses; leave it out")
    if recipe.solver == "baseline":
        raise RecipeError("--solver baseline makes no database; leave it out")
    for rule in recipe.layers:
        if not rule.skip:
            raise RecipeError(
                f"the rule for {rule.match!r} fixes a level, but with a budget the search chooses; "
                "leave it out, or let it say skip: true"
            )


def _open_folder(folder: Path) -> Manifest | None:
    """The manifest in a folder that may be built into. Raises OutputError or DatabaseError if it may not."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot build into {folder}: it is a file; name a folder")
    if not folder.parent.is_dir():
        raise OutputError(f"cannot build into {folder}: folder {folder.parent} does not exist; create it first")
    manifest = read_manifest(folder)
    if manifest is None and folder.is_dir():
        names = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
        if names and not {"model.onnx"} <= names <= PARTS:  # no manifest yet, or it was deleted
            raise DatabaseError(f"{folder} is a folder with other files in it, not a database; name another folder")
    return manifest


def _holds(path: Path, key: str) -> bool:
    """Whether the model of this key is there, and whole."""
    try:
        return path.is_file() and model_key(read_model(path)) == key
    except ModelError:
        return False


def _options(recipe: Recipe) -> dict[str, object]:
    """What of a recipe a database depends on."""
    names = ("target", "solver", "time_limit", "refine", "grid", "damp", "all_positions", "precision", "seed")
    plain = recipe.model_dump(mode="json")
    return {**{name: plain[name] for name in names}, "skip": [rule.match for rule in recipe.layers]}


def _entries(layers: Sequence[Layer], choices: Mapping[str, Sequence[Choice]]) -> dict[str, LayerEntry]:
    first: dict[object, str] = {}
    entries = {}
    for index, layer in enumerate(layers):
        folder = layer_folder(index, layer.name)
        hessian = first.setdefault(tuple(use.tap for use in layer.uses), folder)
        found = tuple(map(str, choices[layer.name]))
        entries[layer.name] = LayerEntry(
            layer.name, layer.op, layer.groups, layer.rows, layer.columns, folder, hessian, found, {}
        )
    return entries


def _chunks(
    dense: ir.Model,
    graph: ir.Model,
    layers: Sequence[Layer],
    wanted: Sequence[Choice],
    choices: Mapping[str, Sequence[Choice]],
    samples: Samples,
    recipe: Recipe,
) -> list[Chunk]:
    """The runs over the data. They depend on the machine's memory, not on what of it is free: they can be repeated."""
    widths = {(c.level.bits, c.activation_bits) for c in wanted if c.activation_bits is not None}
    values: dict[str, None] = {}
    for bits, activation_bits in sorted(widths, key=str):
        uniform = Choice(Level(bits=bits), activation_bits)
        profile = {layer.name: uniform for layer in layers if possible(layer, uniform, recipe.target) is None}
        if profile:
            values |= dict.fromkeys(quantizable(dense, recipe, profile))
    taps = [use.tap.value for layer in layers for use in layer.uses]
    shapes = probe(graph, [*values, *taps], samples, recipe.device, recipe.threads)
    memory = recipe.memory * 2**30 if recipe.memory is not None else psutil.virtual_memory().total / 4
    return plan_chunks(layers, list(values), shapes, samples, memory)


def _capture_chunk(
    folder: Path,
    chunk: Chunk,
    graph: ir.Model,
    samples: Samples,
    recipe: Recipe,
    key: str,
    entries: Mapping[str, LayerEntry],
    ranges: Path,
    chunks: int,
    progress: Progress,
) -> bool:
    """Have the Hessians and ranges of a chunk on disk; whether the model had to be run for them."""
    files = {layer.name: folder / "hessians" / f"{entries[layer.name].hessian}.safetensors" for layer in chunk.layers}
    ranges_key = content_key(key, list(chunk.ranges))
    if all(has_arrays(file, key) for file in files.values()) and (not chunk.ranges or has_arrays(ranges, ranges_key)):
        progress("capture", samples.count, samples.count * chunks)
        return False
    captured: Captured = capture(
        graph,
        chunk,
        samples,
        all_positions=recipe.all_positions,
        seed=recipe.seed,
        device=recipe.device,
        threads=recipe.threads,
        progress=lambda done: progress("capture", done, samples.count * chunks),
    )
    for layer in chunk.layers:
        hessian, positions = captured.hessian(layer)
        info = {"positions": positions, "left_out": captured.not_finite(layer)}
        write_arrays(files[layer.name], {"hessian": np.asarray(hessian)}, key, info)
    if chunk.ranges:
        write_ranges(ranges, captured.ranges, ranges_key)
    return True


def _solve_layer(
    folder: Path,
    entry: LayerEntry,
    layer: Layer,
    choices: Sequence[Choice],
    recipe: Recipe,
    method: Method,
    compared_rows: int,
    hessian_key: str,
    progress: Callable[[int], None],
) -> tuple[dict[str, str], tuple[int, int]]:
    """Have a layer's solutions on disk. Returns their keys by level, and how many were solved and how many reused."""
    levels = list(dict.fromkeys(choice.level for choice in choices if choice.level != FLOAT))
    arrays, info = read_arrays(folder / "hessians" / f"{entry.hessian}.safetensors", hessian_key)
    hessian, positions = arrays["hessian"], int(info["positions"])
    how = asdict(replace(method, threads=None, device="")) | {"damp": recipe.damp}
    if not method.shared_scale:
        del how["shared_scale"]  # so that keys stay what they were before there was such a thing
    base = content_key(SOLVER, layer.matrix(), hessian, positions, layer.name, how)
    keys = {str(level): content_key(base, str(level)) for level in levels}
    place = folder / "layers" / entry.folder
    missing = [x for x in levels if not has_arrays(place / level_file(str(x)), keys[str(x)])]
    rows = layer.groups * layer.rows
    progress(rows * (len(choices) - 1 - len(missing)))
    if missing:
        prepared = replace(prepare_layer(layer, hessian, positions, recipe), left_out=int(info["left_out"]))
        told = 0

        def advance(done: int) -> None:
            nonlocal told
            progress(done - told)
            told = done

        solutions = solve_levels(prepared.weight, prepared.damped, missing, trusted_method(prepared, method), advance)
        for solution in solutions:
            choice = Choice(solution.level)
            ratio = ordered_over_exact(prepared, solution, method, compared_rows)
            report = asdict(report_layer(prepared, choice, solution, recipe, method, ratio))
            path = place / level_file(str(solution.level))
            write_solution(path, solution, keys[str(solution.level)], report)
        advance(rows * len(missing))
    return keys, (len(missing), len(levels) - len(missing))


def _clear(folder: Path, parts: set[str]) -> None:
    """Remove what a build that was killed left under temporary names, and whole parts."""
    for name in parts:
        shutil.rmtree(folder / name, ignore_errors=True)
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        remove_abandoned(place)


def _remove_stale(folder: Path, manifest: Manifest) -> None:
    """Remove solutions and Hessians that the manifest does not name."""
    kept = {folder / "layers" / x.folder / level_file(level) for x in manifest.layers for level in x.solutions}
    kept |= {folder / "ranges" / f"{name}.safetensors" for name in manifest.ranges}
    kept |= {folder / "hessians" / f"{x.hessian}.safetensors" for x in manifest.layers if x.solutions}
    for path in [*folder.glob("layers/*/*"), *folder.glob("hessians/*"), *folder.glob("ranges/*")]:
        if path not in kept:
            path.unlink()
