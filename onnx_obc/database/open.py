"""Open a database: read what a build wrote, and reject an incomplete or inconsistent one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ..calibration.capture import run_costs
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..core.arrays import Float32
from ..core.errors import DatabaseError
from ..core.level import FLOAT, Choice, parse_choice
from ..core.progress import Feedback
from ..correction.transforms.channel_permutation import group_size
from ..graph.cost import Cost
from ..graph.layers import Layer, find_layers
from ..graph.model import read_model
from ..pipeline.attempts import CorrectionReport
from ..pipeline.examine import Examiner
from ..pipeline.finish import Destination, Result, finish
from ..pipeline.kept import Shelf
from ..pipeline.layer import LayerReport, Solved
from ..pipeline.material import Material
from ..pipeline.plan import Folded, make_plan, prepare
from ..pipeline.recipe import Recipe
from ..pipeline.sequential import solve_sequentially
from ..pipeline.solve import Solutions
from ..pipeline.verify import check_graph
from ..targets.registry import TARGETS
from ..targets.target import Target
from .calibration import read_ranges, read_samples
from .files import LayerEntry, Manifest, level_file, model_key, read_manifest, read_solution
from .orders import read_order
from .trained import TrainedParts


@dataclass(frozen=True, eq=False)
class Database:
    """A database that was opened: all of it but the solutions, which are read when they are needed.

    folded: the model, its channels in the database's order. layers: of the folded graph, each with an entry in the
    manifest. samples: `calibration` and `held_out`. choices: what every layer can become, dense first. costs: of the
    dense layers, for the first sample. transforms, notes: what was tried to find the order, and what else there is to
    tell of it.
    """

    folder: Path
    manifest: Manifest
    folded: Folded
    layers: tuple[Layer, ...]
    entries: Mapping[str, LayerEntry]
    choices: Mapping[str, tuple[Choice, ...]]
    costs: Mapping[str, Cost]
    samples: Mapping[str, Samples]
    ranges: Mapping[str, RangeObserver]
    transforms: tuple[CorrectionReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def dense(self) -> ir.Model:
        """The model, in float32 where it was given in half precision."""
        return self.folded.dense

    @property
    def target(self) -> Target:
        """The runtime that it was built for."""
        return TARGETS[self.manifest.recipe["target"]]

    @property
    def graph(self) -> ir.Model:
        """The model, folded."""
        return self.folded.model

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
        found = LayerReport(**{**report, "notes": tuple(report["notes"]), "activations": choice.activations})
        return Solved(layer, solution, found)

    def write(
        self,
        profile: Mapping[str, Choice] | Solutions,
        recipe: Recipe,
        destination: Destination = Destination(None),
        feedback: Feedback | None = None,
        source: object = None,
        examiner: Examiner | None = None,
    ) -> Result:
        """A finished model with this profile: stitched, corrected, checked, and put at its destination.

        profile: the choice of each layer by name, or solutions of the caller's own, of a plan of `folded`.
        source: what the report names the model by; None: the copy in the database. examiner: measures the user's
        metric. Raises what `finish` raises.
        """
        feedback = feedback or Feedback()
        if isinstance(profile, Solutions):
            solutions, rival = profile, None
        else:
            solutions, rival = stitch(self, profile, recipe, feedback), _rival(self, profile, recipe)
        in_groups = any(group_size(choice.level) is not None for choice in solutions.plan.choices.values())
        about = dict(self.manifest.calibration)
        notes = [*about.pop("notes"), *(self.notes if in_groups else ())]
        named = str(self.folder / "model.onnx") if source is None else source
        held_out = self.samples["held_out"]
        parts = TrainedParts(self.folder / "trained", self.manifest.model, self.manifest.samples)
        calibrating = self.samples["calibration"]
        tried = self.transforms if in_groups else ()
        material = Material(named, self.folded, calibrating, held_out, about, notes, examiner, tried, trained=parts)
        checks = [check_graph(self.dense, solutions.plan.model, held_out, recipe)] if recipe.verify else []
        return finish(material, solutions, recipe, destination, feedback, checks, rival)


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
    folded, transforms, notes = read_order(folder, manifest.orders, prepare(dense))
    layers, _ = find_layers(folded.model)
    entries = {entry.name: entry for entry in manifest.layers}
    if [layer.name for layer in layers] != list(entries):
        raise DatabaseError(f"{folder}: this version finds other layers in the model; build the database again")
    ranges: dict[str, RangeObserver] = {}
    for name, key in manifest.ranges.items():
        ranges |= read_ranges(folder / "ranges" / f"{name}.safetensors", key)
    samples = read_samples(folder / "samples.safetensors", manifest.samples)
    return Database(
        folder=folder,
        manifest=manifest,
        folded=folded,
        layers=tuple(layers),
        entries=entries,
        choices={name: tuple(map(parse_choice, entry.choices)) for name, entry in entries.items()},
        costs=run_costs(folded.model, layers, samples["calibration"]),
        samples=samples,
        ranges=ranges,
        transforms=transforms,
        notes=notes,
    )


def stitch(
    database: Database,
    choices: Mapping[str, Choice],
    recipe: Recipe,
    feedback: Feedback | None = None,
) -> Solutions:
    """A plan for a profile, and its layers' solutions: stored ones, or new ones in order if the recipe says so."""
    feedback = feedback or Feedback()
    plan = make_plan(database.folded, recipe, choices)
    if recipe.sequential:
        samples = database.samples["calibration"]
        return solve_sequentially(plan, database.folded, database.ranges, samples, recipe, feedback)
    with feedback.watch("solve"):
        shelf, solved = Shelf(recipe.memory_bytes()), {}
        for layer in plan.layers:
            found = database.solved(layer, plan.choices[layer.name])
            solved[layer.name] = replace(found, solution=shelf.keep(found.solution))
    return Solutions(plan, solved, database.ranges)


def _rival(database: Database, choices: Mapping[str, Choice], recipe: Recipe) -> Solutions | None:
    """The same profile from stored solutions, for `finish` to compare with; None where `stitch` gives these anyway."""
    plain = recipe.model_copy(update={"sequential": False})
    return stitch(database, choices, plain) if recipe.sequential else None
