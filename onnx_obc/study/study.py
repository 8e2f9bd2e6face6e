"""Prune or quantize? Every layer of a model at equal size, after Kuzmin et al. (2023), and which answers are proven."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ..calibration.capture import plan_chunks, probe
from ..calibration.data import open_samples
from ..calibration.options import DataOptions
from ..calibration.samples import Samples
from ..calibration.split import describe, split
from ..core.errors import DatabaseError, ModelError, ObcError, RecipeError
from ..core.level import NM, Choice, Level
from ..core.plural import counted
from ..core.progress import Feedback
from ..core.solution import Solution
from ..core.version import __version__
from ..database.files import model_key
from ..database.open import Database, open_database
from ..database.origin import other_than, split_key
from ..graph.layers import Layer, find_layers
from ..graph.model import input_specs, read_model
from ..pipeline.layer import Prepared, method_of, prepare_layer, trusted_method
from ..pipeline.options import OWN, MethodOptions
from ..pipeline.plan import Folded, prepare
from ..pipeline.recipe import Recipe
from ..pipeline.solve import capture_chunk
from ..solver import Method
from ..solver.linalg.threads import one_blas_thread
from ..targets.registry import TARGETS
from .chunks import Problem, draw_problems, prove, relaxation_installed
from .layers import Recall, Rows, draw_rows, plan_layer, study_layer, study_weight, take_rows
from .levels import COMPRESSION, Size, quantized_level
from .record import ChunkRow, LayerRow, Study, WholeModel
from .theory import BITS
from .whole import compare_models, recipe_paths

WIDE = 6144  # columns beyond which a row takes the exact solver minutes


@dataclass(frozen=True)
class StudyOptions:
    """What is studied.

    bits: budgets, for each weight. size: the convention of equal size that counts first. prove: seconds for proofs on
    chunks of `chunk` columns; 0 for none. rows: how many rows of a layer are solved; 0 for all, None for all up to 64
    and 40 of more, fewer of layers of more than 1152 columns. recipe: where to write a recipe with the best ways; the
    three models are then compared. database: solutions that are there already.
    """

    bits: tuple[int, ...] = (2, 3, 4, 8)
    size: Size = "bytes"
    prove: float = 0.0
    chunk: int = 36
    rows: int | None = None
    recipe: Path | None = None
    database: Path | None = None

    def check(self, calibrated: bool) -> None:
        """Raise RecipeError for what cannot be studied."""
        if not self.bits or any(bits not in BITS for bits in self.bits):
            raise RecipeError(f"--bits: budgets are {BITS[0]} to {BITS[-1]} bits for each weight; write e.g. 2,3,4,8")
        if not 2 <= self.chunk <= 64:
            raise RecipeError(f"--chunk {self.chunk}: exact optima are found for 2 to 64 columns; write e.g. 36")
        if not 0 <= self.prove < math.inf or (self.rows is not None and self.rows < 0):
            raise RecipeError("--prove and --rows are numbers not below 0; write e.g. --prove 120")
        for name, given in (("--prove", self.prove), ("--recipe", self.recipe), ("--database", self.database)):
            if given and not calibrated:
                raise RecipeError(f"{name} is about layer outputs: it needs --calib, data like what the model will see")


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """A study with data: what is fixed while its layers are gone through."""

    folded: Folded
    options: StudyOptions
    recipe: Recipe
    method: Method
    levels: Mapping[int, Level]
    calibrating: Samples
    held_out: Samples
    database: Database | None
    feedback: Feedback


def study_model(
    model: str | Path | bytes | onnx.ModelProto | ir.Model,
    calibration: object | None = None,
    options: StudyOptions = StudyOptions(),
    recipe: Recipe | None = None,
    *,
    data: DataOptions | None = None,
    feedback: Feedback | None = None,
) -> Study:
    """Quantized, pruned, or both: what each layer of a model loses at equal size.

    model, calibration, data, feedback: as for `compress`; without calibration only weights are looked at. recipe: its
    target and solver options count. An interrupt ends it with what there is: `Study.interrupted`. Raises ModelError
    where there is no layer, RecipeError for options that do not go together, and what `compress` raises.
    """
    recipe, feedback = recipe or Recipe(), feedback or Feedback()
    options.check(calibration is not None)
    if recipe.solver not in OWN:
        raise RecipeError(
            f"--solver {recipe.solver}: a study solves layers, and shows the baseline beside; leave it out"
        )
    folded = prepare(read_model(model))
    layers, left_out = find_layers(folded.model)
    if not layers:
        why = f"; {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        raise ModelError(f"the model has no layer with a constant weight that could be studied{why}")
    levels = {bits: quantized_level(bits, TARGETS[recipe.target].zero_points(None)) for bits in options.bits}
    how: _Calibrated | None = None
    notes = list(folded.notes)
    if calibration is not None:  # first, so that bad data ends it at once
        samples = open_samples(
            calibration, input_specs(folded.dense), data or DataOptions(seed=recipe.seed), folded.dense
        )
        calibrating, held_out = split(samples)
        notes += describe(samples, calibrating, held_out)[1]
        if options.prove and not relaxation_installed():
            notes.append("where exact search runs out of time, bounds are its own: pip install 'onnx-obc[study]'")
        database = _database(options, folded)
        if database is not None:  # its channels may have another order
            folded, layers = database.folded, list(database.layers)
            if other := other_than(database.manifest, split_key(calibrating, held_out), recipe):
                notes.append(f"{options.database}, of which solutions are taken, was built with {other}")
        how = _Calibrated(folded, options, recipe, method_of(recipe), levels, calibrating, held_out, database, feedback)
    rows = {layer.name: LayerRow(layer.name, layer.op, layer.groups, layer.rows, layer.columns) for layer in layers}
    chunks: list[ChunkRow] = []
    whole: list[WholeModel] = []
    interrupted = False
    try:
        for layer in layers:
            rows[layer.name] = _weight_row(layer, rows[layer.name], levels)
            feedback.progress("weights", 1, len(layers))
        if how is not None:
            _calibrated(layers, rows, chunks, whole, notes, how)
    except KeyboardInterrupt:
        interrupted = True
    if options.database is not None:
        recalled = sum(row.recalled for row in rows.values())
        notes.append(f"{counted(recalled, 'solution')} came from {options.database}")
    return Study(
        model=str(model) if isinstance(model, str | Path) else "",
        bits=options.bits,
        size=options.size,
        compression=COMPRESSION,
        chunk=options.chunk,
        samples=0 if how is None else how.calibrating.count,
        layers=tuple(rows.values()),
        chunks=tuple(chunks),
        whole=tuple(whole),
        notes=tuple(notes),
        how=_how(options, recipe, None if how is None else how.calibrating),
        interrupted=interrupted,
    )


def _calibrated(
    layers: Sequence[Layer],
    rows: dict[str, LayerRow],
    chunks: list[ChunkRow],
    whole: list[WholeModel],
    notes: list[str],
    how: _Calibrated,
) -> None:
    """Add what data says to the rows, and chunks and whole models, each as soon as it is there."""
    problems: list[Problem] = []
    with one_blas_thread():
        for row, drawn in _study_layers([x for x in layers if rows[x.name].reason is None], rows, how):
            rows[row.name] = row
            problems += drawn
    for proved in prove(problems, how.options.prove, how.method, how.feedback.progress):
        chunks.append(proved)
    recipes = recipe_paths(how.options.recipe, how.options.bits)
    about = f"From a study (equal size: {how.options.size}; onnx-obc {__version__})"
    data = how.calibrating, how.held_out
    try:
        for compared in compare_models(how.folded, list(rows.values()), recipes, data, how.recipe, about, how.feedback):
            whole.append(compared)
    except ObcError as error:  # what was found so far stands
        notes.append(f"whole models were not compared: {error}")


def _how(options: StudyOptions, recipe: Recipe, samples: Samples | None) -> dict[str, object]:
    """What it takes to repeat a study: versions, data, and the options that are not at their defaults."""
    data = {} if samples is None else {"calibration": samples.source}
    rows = {} if options.rows is None else {"rows": options.rows}
    database = {} if options.database is None else {"database": str(options.database)}
    always = {"version": __version__, "seed": recipe.seed, "target": recipe.target, "prove": options.prove}
    return {**always, **data, **rows, **database, **recipe.changed(MethodOptions)}


def _weight_row(layer: Layer, row: LayerRow, levels: Mapping[int, Level]) -> LayerRow:
    """A layer's weight alone, or why there is nothing to say of it."""
    weight = layer.matrix()  # (groups, rows, columns)
    if not np.isfinite(weight).all():
        return replace(row, reason="its weights hold NaN or infinity")
    if weight.min() == weight.max():
        return replace(row, reason="all of its weights are equal: there is nothing to choose")
    kurtosis, budgets = study_weight(weight, levels)
    return replace(row, kurtosis=kurtosis, budgets=budgets)


def _study_layers(
    layers: Sequence[Layer], rows: Mapping[str, LayerRow], how: _Calibrated
) -> Iterator[tuple[LayerRow, list[Problem]]]:
    """Capture chunk by chunk of what fits in memory, and study each layer of it."""
    samples, recipe, progress = how.calibrating, how.recipe, how.feedback.progress
    taps = [use.tap.value for layer in layers for use in layer.uses]
    shapes = probe(how.folded.model, taps, samples, recipe.execution())
    chunks = plan_chunks(layers, (), shapes, samples, recipe.memory_bytes(), recipe.damp is None) if layers else []
    for chunk in chunks:
        captured = capture_chunk(how.folded.model, chunk, samples, recipe, progress, len(chunks))
        for layer in chunk.layers:
            yield _layer_row(layer, rows[layer.name], prepare_layer(layer, captured.of(layer), recipe), how)
            progress("study", 1, len(layers))


def _layer_row(layer: Layer, row: LayerRow, prepared: Prepared, how: _Calibrated) -> tuple[LayerRow, list[Problem]]:
    """A layer at all budgets, and the small problems that are drawn from it."""
    row = replace(row, positions=prepared.positions, damping=float(prepared.damped.damping.max()))
    if not prepared.energy > 0:
        return replace(row, reason="its outputs are zero throughout: the calibration data never reaches it"), []
    generator = np.random.default_rng([how.recipe.seed, zlib.crc32(layer.name.encode())])
    picked = draw_rows(layer.groups, layer.rows, layer.columns, how.options.rows, generator)
    method = trusted_method(prepared, how.method)
    if layer.columns > WIDE:
        method = replace(method, solver="ordered")
    planned = plan_layer(prepared.weight, layer.channels, how.levels)
    recalled: list[Level] = []
    recall = _recall(layer, picked, how.database, recalled)
    whole = len(picked) == layer.rows
    part = Rows(prepared.weight[:, picked], prepared.damped, layer.channels, whole, recall)
    budgets = study_layer(part, planned, how.options.size, row.budgets, method)
    studied, notes = layer.groups * len(picked), tuple(_notes(layer, prepared, how))
    row = replace(row, studied=studied, recalled=len(recalled), budgets=budgets, notes=notes)
    options = how.options
    drawn = draw_problems(layer, prepared, budgets, options.size, options.chunk, generator) if options.prove else []
    return row, drawn


def _notes(layer: Layer, prepared: Prepared, how: _Calibrated) -> Iterator[str]:
    if prepared.positions < layer.columns:
        yield (
            f"{prepared.positions} positions for {layer.columns} columns: the Hessian has a null space, where figures "
            "and bounds rest on its damping"
        )
    if prepared.damped.dead:
        yield f"{prepared.damped.dead} of {layer.groups * layer.columns} inputs are always zero"
    if layer.columns > WIDE:
        yield f"solved by the ordered solver, as {layer.columns} columns take the exact one minutes a row"
    if trusted_method(prepared, how.method) != how.method:
        yield "not refined: too few positions to trust small gains"


def _recall(layer: Layer, picked: Sequence[int], database: Database | None, recalled: list[Level]) -> Recall:
    """The solutions of a database, of the rows that are studied; `recalled` gets the levels that it had."""
    known = {} if database is None else database.entries[layer.name].solutions

    def recall(level: Level) -> Solution | None:
        settled = level.sparsity is None or isinstance(level.sparsity, NM)  # row by row, whatever the other rows
        if database is None or str(level) not in known or not (settled or len(picked) == layer.rows):
            return None
        recalled.append(level)
        return take_rows(database.solved(layer, Choice(level)).solution, picked)

    return recall


def _database(options: StudyOptions, folded: Folded) -> Database | None:
    if options.database is None:
        return None
    database = open_database(options.database)
    if database.manifest.model != model_key(folded.given):
        raise DatabaseError(f"{options.database} is a database of another model; name its own, or leave it out")
    if (solver := database.manifest.recipe["solver"]) not in OWN:
        raise DatabaseError(f"{options.database} was solved by {solver}, not by this tool; leave it out")
    return database
