"""Builds a database: every layer solved at every level, into a folder from which models for any budget are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir
import psutil

from ..calibration.capture import POSITIONS_PER_COLUMN, Captured, Chunk, LayerHessian, plan_chunks, probe
from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.samples import Samples
from ..calibration.split import STORED, describe, first_samples, split
from ..core.errors import DatabaseError, ModelError, OutputError, RecipeError
from ..core.files import remove_abandoned, write_file
from ..core.level import FLOAT, Choice, Level, parse_choice
from ..core.level_sets import read_levels
from ..core.progress import Feedback
from ..core.version import __version__
from ..graph.layers import Layer, find_layers
from ..graph.model import input_specs, read_model
from ..graph.save import save_model
from ..pipeline.layer import SOLVER, Solved
from ..pipeline.learned import check_learning, learned_on_dense
from ..pipeline.options import LEARNED, UniformOptions
from ..pipeline.plan import Folded, check_any, check_rules, possible, possible_choices, prepare, quantizable
from ..pipeline.recipe import Recipe
from ..pipeline.schedule import Schedule
from ..pipeline.solve import Work, capture_and_solve, method_and_schedule
from ..pipeline.tasks import Workers
from ..pipeline.workers import open_workers
from ..solver import Method
from ..targets.registry import TARGETS
from .calibration import write_ranges, write_samples
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
    write_manifest,
)
from .orders import FILE as ORDERS
from .orders import find_order, read_order, write_order
from .origin import options_of, other_than, split_key
from .spread import capture_and_solve_with, hessian_file_bytes, solution_file_bytes

DAMPINGS = 2  # rises when other dampings are chosen for the same Hessians
FOLDERS = {"ranges", "hessians", "layers", "sensitivity", "timings", "trained"}
PARTS = {"model.onnx", "model.onnx.data", "samples.safetensors", ORDERS, *FOLDERS}


@dataclass(frozen=True)
class Built:
    """What a build did. solved, reused: solutions; captured: whether the model had to be run for Hessians."""

    folder: Path
    manifest: Manifest
    solved: int
    reused: int
    captured: bool


def build(
    model: str | Path | bytes | onnx.ModelProto | ir.Model | Folded,
    calibration: object,
    levels: str,
    folder: str | Path,
    recipe: Recipe | None = None,
    *,
    data: DataOptions | None = None,
    feedback: Feedback | None = None,
    workers: str | Workers | None = None,
) -> Built:
    """Solve every layer of a model at every level that it can take, into `folder`.

    model, calibration, data, feedback: as for `compress`; a model that is folded already is not folded again. levels:
    see `level_sets.read_levels`. recipe: its target, solver options and `skip` rules count. workers: who does the work,
    as `open_workers` names them; this process alone by default. The database is the same.

    What is in the folder already is kept, and what is damaged made anew. An interrupted build goes on where it stopped,
    and ends in the same bytes. Levels of an earlier build stay. Raises DatabaseError if the folder holds other files,
    or a database of another model, other data or other options, and what `compress` raises.
    """
    recipe, feedback, target = recipe or Recipe(), feedback or Feedback(), Path(folder)
    check_recipe(recipe)
    if workers is not None and recipe.solver in LEARNED:
        raise RecipeError(f"--workers: solver {recipe.solver} learns on the model as a whole; leave it out")
    if isinstance(workers, str):
        with open_workers(workers, recipe.device, recipe.threads) as found:
            return build(model, calibration, levels, folder, recipe, data=data, feedback=feedback, workers=found)
    wanted = read_levels(levels, zero_points=TARGETS[recipe.target].zero_points(None))
    earlier = _open_folder(target)
    folded = model if isinstance(model, Folded) else prepare(read_model(model), recipe.cast)
    key = model_key(folded.given)
    stored_model = target / "model.onnx"
    if earlier.model != key if earlier is not None else stored_model.exists() and not _holds(stored_model, key):
        raise DatabaseError(f"{target} holds a database of another model; name another folder, or delete that one")
    layers, left_out = find_layers(folded.model)
    check_rules(folded.model, layers, left_out, recipe)
    samples = open_samples(calibration, input_specs(folded.dense), data or DataOptions(seed=recipe.seed), folded.dense)
    calibrating, held_out = split(samples)
    about, notes = describe(samples, calibrating, held_out)
    source = split_key(calibrating, held_out)
    if earlier is not None:
        if other := other_than(earlier, source, recipe):
            raise DatabaseError(f"{target} was built with {other}; name another folder, or delete that one")
        wanted = tuple(dict.fromkeys([*(parse_choice(text) for text in earlier.levels), *wanted]))
    choices = possible_choices(layers, wanted, recipe)
    check_any(choices, levels)
    entries = _entries(layers, choices)
    manifest = Manifest(
        schema=SCHEMA,
        version=__version__,
        complete=False,
        model=key,
        samples=source,
        recipe=options_of(recipe),
        calibration={**about, "notes": notes},
        levels=tuple(map(str, wanted)),
        ranges={},
        layers=tuple(entries.values()),
    )
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {target}: {error.strerror}; name another one") from error
    _clear(target)
    if not _holds(stored_model, key):
        save_model(folded.given, stored_model)
    write_manifest(target, manifest if earlier is None else replace(earlier, complete=False))
    if not has_arrays(target / "samples.safetensors", source):
        feeds = {"calibration": first_samples(calibrating, STORED), "held_out": held_out}
        write_samples(target / "samples.safetensors", feeds, source)

    method, schedule = _schedule(layers, choices, earlier, recipe, feedback)
    if earlier is not None and _order_is_whole(target, earlier):
        order = earlier.orders
    else:
        settled = recipe.model_copy(update={"memory": _memory(recipe)})
        order = write_order(target, folded, find_order(folded, choices, calibrating, held_out, settled, feedback))
    folded, _, _ = read_order(target, order, folded)
    layers, _ = find_layers(folded.model)
    manifest = replace(manifest, ordered=schedule.ordered, orders=order)
    write_manifest(target, manifest)
    chunks = _chunks(folded, layers, wanted, choices, calibrating, recipe)
    hessian_key = content_key(
        key, source, recipe.all_positions, recipe.seed, POSITIONS_PER_COLUMN, recipe.damp is None and DAMPINGS
    )
    if order is not None:
        hessian_key = content_key(hessian_key, order)
    store = _Folder(target, entries, choices, hessian_key, recipe, method, schedule)
    solving = {name: found[1:] for name, found in choices.items()}
    at_a_level = [layer for layer in layers if solving[layer.name]]
    learned = learned_on_dense(folded.model, at_a_level, solving, calibrating, recipe, feedback.progress)
    work = Work(folded.model, chunks, solving, method, schedule, learned=learned)
    if workers is None:
        capture_and_solve(work, calibrating, recipe, store, feedback)
    else:
        capture_and_solve_with(workers, work, calibrating, recipe, store, feedback)
    complete = replace(manifest, complete=True, ranges=store.ranges, layers=tuple(store.entries.values()))
    _remove_stale(target, complete)
    write_manifest(target, complete)
    return Built(target, complete, store.solved, store.reused, store.captured)


def _schedule(
    layers: Sequence[Layer],
    choices: Mapping[str, Sequence[Choice]],
    earlier: Manifest | None,
    recipe: Recipe,
    feedback: Feedback,
) -> tuple[Method, Schedule]:
    """How layers are solved: those that an earlier build decided on stay as they were."""
    solving = [layer for layer in layers if len(choices[layer.name]) > 1]
    ordered: Mapping[str, int] = {}
    decided: set[str] = set()
    if earlier is not None and earlier.ordered is not None:
        ordered, decided = earlier.ordered, {entry.name for entry in earlier.layers if len(entry.choices) > 1}
    levels = {name: found[1:] for name, found in choices.items()}
    method, schedule = method_and_schedule(solving, levels, recipe, feedback, decided)
    return method, Schedule({**ordered, **schedule.ordered})


class _Folder:
    """A database's folder as the store of what is captured and solved.

    entries: the layers, with the keys of their solutions once these are there. ranges: the keys of the files of ranges.
    solved, reused: solutions; captured: whether the model had to be run.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, LayerEntry],
        choices: Mapping[str, Sequence[Choice]],
        hessian_key: str,
        recipe: Recipe,
        method: Method,
        schedule: Schedule,
    ) -> None:
        self._folder, self._choices, self.hessian_key, self._recipe = folder, choices, hessian_key, recipe
        self._method, self._schedule = method, schedule
        self.entries, self.ranges = dict(entries), dict[str, str]()
        self.solved, self.reused, self.captured = 0, 0, False

    def recall(self, number: int, chunk: Chunk) -> bool:
        """See `Store`."""
        file, ranges_key = self._ranges(number, chunk)
        if chunk.ranges:
            self.ranges[file.stem] = ranges_key
        have_hessians = all(has_arrays(self.hessian_file(layer), self.hessian_key) for layer in chunk.layers)
        return have_hessians and (not chunk.ranges or has_arrays(file, ranges_key))

    def keep(self, number: int, chunk: Chunk, captured: Captured) -> None:
        """See `Store`."""
        self.captured = True
        for layer in chunk.layers:
            write_file(self.hessian_file(layer), hessian_file_bytes(captured.of(layer), self.hessian_key))
        if chunk.ranges:
            file, ranges_key = self._ranges(number, chunk)
            write_ranges(file, captured.ranges, ranges_key)

    def hessian(self, layer: Layer) -> LayerHessian:
        """See `Store`."""
        arrays, info = read_arrays(self.hessian_file(layer), self.hessian_key)
        return LayerHessian(arrays["hessian"], int(info["positions"]), info["damping"], int(info["left_out"]))

    def missing(self, layer: Layer, hessian: LayerHessian) -> Sequence[Choice]:
        """The levels without a whole solution file, each once, activations aside."""
        choices = [Choice(choice.level) for choice in self._choices[layer.name] if choice.level != FLOAT]
        levels = dict.fromkeys(choice.level for choice in choices)
        method = self._schedule.method_for(layer.name, self._method).method
        damp = hessian.damping if self._recipe.damp is None else self._recipe.damp
        how = asdict(replace(method, threads=None, device="")) | {"damp": damp}
        if method.iterations is None:
            del how["iterations"]  # keys from before there were any stay as they are
        if method.solver == "brecq":  # blocks of layers are learned together, at levels that all of them have
            how["levels"] = {name: list(map(str, found)) for name, found in self._choices.items()}
        base = content_key(SOLVER, layer.matrix(), hessian.hessian, hessian.positions, layer.name, how)
        keys = {str(level): content_key(base, str(level)) for level in levels}
        self.entries[layer.name] = replace(self.entries[layer.name], solutions=keys)
        missing = [x for x in levels if not has_arrays(self._solution_file(layer.name, x), keys[str(x)])]
        self.solved += len(missing)
        self.reused += len(levels) - len(missing)
        return [Choice(level) for level in missing]

    def put(self, solved: Solved, choice: Choice) -> None:
        """See `Store`."""
        path, key = self.solution_file(solved.layer.name, choice)
        write_file(path, solution_file_bytes(solved, key))

    def put_file(self, path: Path, data: bytes) -> None:
        """See `FolderStore`."""
        self.captured |= path.parent.name == "hessians"
        write_file(path, data)

    def solution_file(self, layer: str, choice: Choice) -> tuple[Path, str]:
        """See `FolderStore`."""
        return self._solution_file(layer, choice.level), self.entries[layer].solutions[str(choice.level)]

    def hessian_file(self, layer: Layer) -> Path:
        """See `FolderStore`."""
        return self._folder / "hessians" / f"{self.entries[layer.name].hessian}.safetensors"

    def _solution_file(self, layer: str, level: Level) -> Path:
        return self._folder / "layers" / self.entries[layer].folder / level_file(str(level))

    def _ranges(self, number: int, chunk: Chunk) -> tuple[Path, str]:
        """The file of a chunk's ranges, and its key."""
        return self._folder / "ranges" / f"{number:04d}.safetensors", content_key(self.hessian_key, list(chunk.ranges))


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for what does not go together with a database: what fixes a level."""
    check_learning(recipe)
    for name in recipe.changed(UniformOptions):
        raise RecipeError(f"the recipe's {name} fixes a level, but with a budget the search chooses; leave it out")
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


def _order_is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether an earlier build looked for an order of channels, and what it found is there; it writes how layers are
    solved at the same moment."""
    looked = manifest.ordered is not None
    return looked and (manifest.orders is None or has_arrays(folder / ORDERS, manifest.orders))


def _holds(path: Path, key: str) -> bool:
    """Whether the model of this key is there, and whole."""
    try:
        return path.is_file() and model_key(read_model(path)) == key
    except ModelError:
        return False


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
    folded: Folded,
    layers: Sequence[Layer],
    wanted: Sequence[Choice],
    choices: Mapping[str, Sequence[Choice]],
    samples: Samples,
    recipe: Recipe,
) -> list[Chunk]:
    """The runs over the data."""
    solving = [layer for layer in layers if len(choices[layer.name]) > 1]
    inputs = {Choice(Level(bits=c.level.bits), c.activation_bits, c.dynamic) for c in wanted}
    values: dict[str, None] = {}
    for uniform in sorted((choice for choice in inputs if choice.activation_bits is not None), key=str):
        profile = {layer.name: uniform for layer in solving if possible(layer, uniform, recipe.target) is None}
        if profile:
            values |= dict.fromkeys(quantizable(folded, recipe, profile))
    taps = [use.tap.value for layer in solving for use in layer.uses]
    shapes = probe(folded.model, [*values, *taps], samples, recipe.execution())
    return plan_chunks(solving, list(values), shapes, samples, _memory(recipe) * 2**30, recipe.damp is None)


def _memory(recipe: Recipe) -> float:
    """GiB that what is decided once may take. They depend on the machine's memory, not on what of it is free, so that
    a build can be repeated."""
    return recipe.memory if recipe.memory is not None else psutil.virtual_memory().total / 4 / 2**30


def _clear(folder: Path) -> None:
    """Remove what a build that was killed left under temporary names."""
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
