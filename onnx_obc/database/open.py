"""Opens a database: reads what a build wrote, and refuses what is not of one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..core.arrays import Float32
from ..core.errors import DatabaseError
from ..core.level import FLOAT, Choice, parse_choice
from ..core.progress import Progress
from ..graph.cost import Cost, layer_costs
from ..graph.fold import fold
from ..graph.layers import Layer, find_layers
from ..graph.model import read_model
from ..pipeline.layer import LayerReport, Solved
from ..pipeline.material import Material
from ..pipeline.plan import Plan, make_plan
from ..pipeline.recipe import Recipe
from ..pipeline.sequential import solve_sequentially
from .calibration import read_ranges, read_samples
from .files import LayerEntry, Manifest, level_file, model_key, read_manifest, read_solution


@dataclass(frozen=True, eq=False)
class Database:
    """A database that was opened: all of it but the solutions, which are read when they are needed.

    graph: the dense model, folded. layers: of that graph, each with an entry in the manifest. samples: `calibration`
    and `held_out`. choices: what every layer can become, dense first. costs: of the dense layers.
    """

    folder: Path
    manifest: Manifest
    dense: ir.Model
    graph: ir.Model
    layers: tuple[Layer, ...]
    entries: Mapping[str, LayerEntry]
    choices: Mapping[str, tuple[Choice, ...]]
    costs: Mapping[str, Cost]
    samples: Mapping[str, Samples]
    ranges: Mapping[str, RangeObserver]

    def solution_file(self, layer: str, choice: Choice) -> tuple[Path, str]:
        """Where the solution of a layer lies, and its key."""
        entry, level = self.entries[layer], str(choice.level)
        return self.folder / "layers" / entry.folder / level_file(level), entry.solutions[level]

    def weight(self, layer: Layer, choice: Choice) -> Float32:
        """A layer's weight matrix (groups, rows, columns) at a choice. Raises DatabaseError."""
        if choice.level == FLOAT:
            return layer.matrix()
        return read_solution(*self.solution_file(layer.name, choice))[0].weights

    def solved(self, layer: Layer, choice: Choice) -> Solved:
        """A layer's solution and report. Raises DatabaseError."""
        solution, report = read_solution(*self.solution_file(layer.name, choice))
        activations = "float" if choice.activation_bits is None else f"int{choice.activation_bits}"
        found = LayerReport(**{**report, "notes": tuple(report["notes"]), "activations": activations})
        return Solved(layer, solution, found)


def open_database(folder: str | Path) -> Database:
    """Read what `build` wrote. Raises DatabaseError if it is unfinished, damaged, or not of one piece."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        what = "does not exist" if not folder.exists() else "is no database: it has no manifest.json"
        raise DatabaseError(f"{folder} {what}; make one with onnx-obc build MODEL {folder} --calib DATA --levels gpu")
    if not manifest.complete:
        raise DatabaseError(
            f"{folder} is not finished; run the same onnx-obc build again, which goes on where it stopped"
        )
    if not (folder / "model.onnx").is_file():
        raise DatabaseError(f"{folder / 'model.onnx'} is missing; run the same onnx-obc build again")
    dense = read_model(folder / "model.onnx")
    if model_key(dense) != manifest.model:
        raise DatabaseError(
            f"{folder / 'model.onnx'} is not the model that the database was built from; build it again"
        )
    graph, _ = fold(dense)
    layers, _ = find_layers(graph)
    entries = {entry.name: entry for entry in manifest.layers}
    if [layer.name for layer in layers] != list(entries):
        raise DatabaseError(f"{folder}: this version finds other layers in the model; build the database again")
    ranges: dict[str, RangeObserver] = {}
    for name, key in manifest.ranges.items():
        ranges |= read_ranges(folder / "ranges" / f"{name}.safetensors", key)
    return Database(
        folder=folder,
        manifest=manifest,
        dense=dense,
        graph=graph,
        layers=tuple(layers),
        entries=entries,
        choices={name: tuple(map(parse_choice, entry.choices)) for name, entry in entries.items()},
        costs=layer_costs(graph, layers),
        samples=read_samples(folder / "samples.safetensors", manifest.samples),
        ranges=ranges,
    )


def stitch(
    database: Database,
    choices: Mapping[str, Choice],
    recipe: Recipe,
    progress: Progress = lambda stage, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Plan, dict[str, Solved]]:
    """A plan for a profile, and its layers' solutions: stored ones, or new ones in order if the recipe says so."""
    plan = make_plan(database.dense, recipe, choices)
    if recipe.sequential:
        samples = database.samples["calibration"]
        return plan, solve_sequentially(plan, database.dense, database.ranges, samples, recipe, progress, say)
    return plan, {layer.name: database.solved(layer, plan.choices[layer.name]) for layer in plan.layers}


def rival_of(
    database: Database, choices: Mapping[str, Choice], recipe: Recipe
) -> tuple[Plan, dict[str, Solved]] | None:
    """The same profile from stored solutions, for `finish` to compare with; None where `stitch` gives these anyway."""
    plain = recipe.model_copy(update={"sequential": False})
    return stitch(database, choices, plain) if recipe.sequential else None


def material_of(database: Database, source: object = None) -> Material:
    """What a model from this database is finished with. source: what the report names the model by; None: the copy."""
    about = dict(database.manifest.calibration)
    notes = list(about.pop("notes"))
    return Material(
        str(database.folder / "model.onnx") if source is None else source,
        database.dense,
        database.samples["calibration"],
        database.samples["held_out"],
        about,
        notes,
    )
