"""Solutions whose rounding is learned by gradients, one part of the model after the other, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import onnx_ir as ir

from ..calibration.samples import Samples
from ..calibration.split import LEARNING, first_samples
from ..core.arrays import Feed, Float32
from ..core.errors import RecipeError
from ..core.level import Choice, Level
from ..core.progress import Progress
from ..core.solution import Solution
from ..correction.learned_rounding import ITERATIONS, Example, Learner, Learning, learn
from ..correction.units import Unit, block_units, layer_units, layers_of
from ..graph.edit import submodel
from ..graph.layers import Layer, find_layers
from ..runtime.stepper import Stepper
from ..solver.baselines import uncompensated
from ..targets.registry import TARGETS
from .correct import require_torch
from .layer import solving_device
from .options import LEARNED
from .recipe import Recipe

Levels = Mapping[str, Level]  # of the layers of a unit, by name


def check_learning(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe's solver learns and what that needs is not installed, or does not go with it."""
    if recipe.solver not in LEARNED:
        return
    require_torch(f"solver {recipe.solver}")
    if recipe.solver == "adaquant" and TARGETS[recipe.target].shared_scale:
        raise RecipeError(
            f"solver adaquant moves the scale of each row, but --target {recipe.target} has one for all; choose another"
        )


class Units:
    """The parts of a model that a solver learns on, and how.

    model: nothing may have been written into it when this is made. layers: of it, those that are to be solved.
    samples: the first ones, at most `LEARNING`, are learned on. reference: a copy of the model that stays as it is;
    None: the model itself does. count: of the parts.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        samples: Samples,
        recipe: Recipe,
        progress: Progress,
        reference: ir.Model | None = None,
    ) -> None:
        self._learner = cast(Learner, recipe.solver)
        self._layers, self._recipe = {layer.name: layer for layer in layers}, recipe
        self._reference, self._progress = model if reference is None else reference, progress
        units = (block_units if self._learner == "brecq" else layer_units)(model, layers)
        self._unit_of = {name: unit for unit in units for name in unit.layers}
        self.count = len(units)
        self._blocks = sum(len(unit.layers) > 1 for unit in units)
        chosen = first_samples(samples, LEARNING)
        self.feeds: list[Feed] = list(chosen.feeds())

    def of(self, layer: Layer) -> Unit:
        """The unit that a layer is learned in."""
        return self._unit_of[layer.name]

    def examples(self, unit: Unit, given: Sequence[Feed], wanted: Sequence[Feed]) -> list[Example]:
        """A unit's inputs, by the names that it has for them, with what the dense model makes of its own inputs."""
        weights: Sequence[Float32 | None] = [None] * len(given)
        if len(unit.layers) > 1:
            weights = self._fisher(unit.output)
        return [
            Example(feed, dense[unit.output], weight)
            for feed, dense, weight in zip(given, wanted, weights, strict=True)
        ]

    def learn(
        self, unit: Unit, levels: Levels, examples: Sequence[Example], progress: Callable[[float], None]
    ) -> dict[str, Solution]:
        """The layers of a unit that have a level here, each at that, the others as they are; by name, without losses.

        Only rounding is learned: layers are pruned by magnitude, and what has no integers is left at that.
        """
        from ..correction.torch_graph import check_agreement, to_torch

        recipe = self._recipe
        shared = TARGETS[recipe.target].shared_scale
        starts = {
            name: uncompensated(self._layers[name].matrix(), level, recipe.grid, shared)
            for name, level in levels.items()
        }
        if all(start.codes is None for start in starts.values()):
            return starts
        option = f"--solver {self._learner}"
        part = submodel(self._reference, examples[0].feed, [unit.output])
        inside = layers_of(part, [self._layers[name] for name in unit.layers])
        graph = to_torch(part, inside, option, [unit.output])
        check_agreement(graph, part, examples[0].feed)
        iterations = recipe.iterations or ITERATIONS[self._learner]
        learning = Learning(self._learner, iterations, recipe.seed, solving_device(recipe.device))
        return learn(graph, [x for x in inside if x.name in starts], starts, examples, learning, progress)

    def _fisher(self, value: str) -> list[Float32]:
        """How much the entries of a block's output count, on each feed."""
        from ..correction.fisher import fisher_weights

        recipe = self._recipe
        return fisher_weights(
            self._reference,
            find_layers(self._reference)[0],
            value,
            self.feeds,
            f"--solver {self._learner}",
            seed=recipe.seed,
            device=solving_device(recipe.device),
            progress=lambda done: self._progress("fisher", done, len(self.feeds) * self._blocks),
        )


def learned_on_dense(
    model: ir.Model,
    layers: Sequence[Layer],
    choices: Mapping[str, Sequence[Choice]],
    samples: Samples,
    recipe: Recipe,
    progress: Progress,
) -> LearnedOnDense | None:
    """What learns, if the recipe's solver does."""
    if recipe.solver not in LEARNED:
        return None
    units = Units(model, layers, samples, recipe, progress)
    return LearnedOnDense(units, Stepper(model, units.feeds, recipe.execution()), choices)


class LearnedOnDense:
    """Solutions at any number of levels, each learned on what the dense model computes before and behind a unit.

    Layers are asked for in the order of the graph. choices: of every layer; where a unit has several layers, they are
    learned at the same level together, those that cannot take it at what they have instead, or as they are.
    """

    def __init__(self, units: Units, dense: Stepper, choices: Mapping[str, Sequence[Choice]]) -> None:
        self._units, self._stepper = units, dense
        self._levels = {name: [choice.level for choice in found] for name, found in choices.items()}
        self._unit: Unit | None = None
        self._examples: list[Example] = []
        self._found: dict[tuple[tuple[str, Level], ...], dict[str, Solution]] = {}

    def __call__(self, layer: Layer, levels: Sequence[Level], progress: Callable[[float], None]) -> Iterator[Solution]:
        """The solutions of a layer, without losses. progress: called with the share of all its levels that is done."""
        unit = self._units.of(layer)
        if unit is not self._unit:
            values = self._stepper.advance([*unit.inputs, unit.output])
            given = [{name: value[name] for name in unit.inputs} for value in values]
            self._unit, self._examples, self._found = unit, self._units.examples(unit, given, values), {}
        for number, level in enumerate(levels):
            assigned = {name: self._assigned(name, level) for name in unit.layers}
            key = tuple((name, found) for name, found in assigned.items() if found is not None)
            if key not in self._found:

                def told(share: float, before: int = number) -> None:
                    progress((before + share) / len(levels))

                self._found[key] = self._units.learn(unit, dict(key), self._examples, told)
            yield self._found[key][layer.name]

    def _assigned(self, name: str, level: Level) -> Level | None:
        own = self._levels[name]
        return level if level in own else own[0] if len(own) == 1 else None
