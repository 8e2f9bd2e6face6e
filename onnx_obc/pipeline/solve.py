"""Capture and solve, chunk by chunk of what fits in memory: for one level of each layer or for many."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import onnx_ir as ir

from ..calibration.capture import Captured, Chunk, LayerHessian, capture, plan_chunks, probe
from ..calibration.ranges import RangeObserver
from ..calibration.samples import Samples
from ..core.level import Choice
from ..core.progress import Feedback, Progress
from ..graph.layers import Layer, LeftOut
from ..solver import Method, warm_up
from ..solver.linalg.threads import one_blas_thread
from .kept import Shelf
from .layer import Solved, method_of, prepare_layer, solve_layer, solving_device
from .learned import LearnedOnDense, learned_on_dense
from .plan import Folded, Plan, make_plan
from .recipe import Recipe
from .schedule import Schedule, make_schedule


@dataclass(frozen=True)
class Solutions:
    """Layers solved: the plan that they are for, each layer's solution by name, and the ranges of its activations.

    stretches: what the interval of an activation, by value and bits, is multiplied by; training finds it.
    """

    plan: Plan
    solved: Mapping[str, Solved]
    ranges: Mapping[str, RangeObserver]
    stretches: Mapping[tuple[str, int], float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be captured and solved.

    model: the graph that is run. chunks: what each run over the data captures; the layers in them are solved. choices:
    what each layer is solved at. remarks: for the report, by layer. method, schedule: how. learned: what solves
    instead, where rounding is learned.
    """

    model: ir.Model
    chunks: Sequence[Chunk]
    choices: Mapping[str, Sequence[Choice]]
    method: Method
    schedule: Schedule
    remarks: Mapping[str, str] = field(default_factory=dict)
    learned: LearnedOnDense | None = None


class Store(Protocol):
    """Where Hessians, ranges and solutions are kept, and what of them is there already."""

    def recall(self, number: int, chunk: Chunk) -> bool:
        """Whether all that a chunk captures is there already."""

    def keep(self, number: int, chunk: Chunk, captured: Captured) -> None:
        """Take what a chunk captured."""

    def hessian(self, layer: Layer) -> LayerHessian:
        """The Hessian of a layer whose chunk was recalled or kept last."""

    def missing(self, layer: Layer, hessian: LayerHessian) -> Sequence[Choice]:
        """The choices of a layer that are not solved yet."""

    def put(self, solved: Solved, choice: Choice) -> None:
        """Take a solution."""


class InMemory:
    """Keeps solutions and ranges; the Hessians of a chunk are dropped when the next one is captured.

    memory: the bytes from which on solutions lie in temporary files.
    """

    def __init__(self, choices: Mapping[str, Sequence[Choice]], memory: float = math.inf) -> None:
        self._choices = choices
        self._shelf = Shelf(memory)
        self._captured: Captured | None = None
        self._solved: dict[tuple[str, Choice], Solved] = {}
        self.ranges: dict[str, RangeObserver] = {}

    def recall(self, number: int, chunk: Chunk) -> bool:
        """Nothing is kept from before."""
        self._captured = None
        return False

    def keep(self, number: int, chunk: Chunk, captured: Captured) -> None:
        """See `Store`."""
        self._captured = captured
        self.ranges |= captured.ranges

    def hessian(self, layer: Layer) -> LayerHessian:
        """See `Store`."""
        assert self._captured is not None
        return self._captured.of(layer)

    def missing(self, layer: Layer, hessian: LayerHessian) -> Sequence[Choice]:
        """All of them."""
        return self._choices[layer.name]

    def put(self, solved: Solved, choice: Choice) -> None:
        """See `Store`."""
        self._solved[solved.layer.name, choice] = replace(solved, solution=self._shelf.keep(solved.solution))

    def of(self, plan: Plan) -> Solutions:
        """The solutions of a plan's choices; its graph may be another clone of the one that was run."""
        solved = {x.name: replace(self._solved[x.name, plan.choices[x.name]], layer=x) for x in plan.layers}
        return Solutions(plan, solved, self.ranges)


@one_blas_thread()  # or the last digits would depend on the cores, and BLAS would wait for onnxruntime's threads
def capture_and_solve(work: Work, samples: Samples, recipe: Recipe, store: Store, feedback: Feedback) -> None:
    """Capture what each chunk asks for and solve its layers, where the store does not have them already."""
    watch, progress, chunks = feedback.watch, feedback.progress, work.chunks
    layers = [layer for chunk in chunks for layer in chunk.layers]
    total = sum(layer.groups * layer.rows * len(work.choices[layer.name]) for layer in layers)
    for number, chunk in enumerate(chunks):
        with watch("capture"):
            if store.recall(number, chunk):
                progress("capture", samples.count, samples.count * len(chunks))
            else:
                store.keep(number, chunk, capture_chunk(work.model, chunk, samples, recipe, progress, len(chunks)))
        with watch("solve"):
            for layer in chunk.layers:
                _solve(layer, work, recipe, store, lambda rows: progress("solve", rows, total))


def capture_chunk(
    model: ir.Model, chunk: Chunk, samples: Samples, recipe: Recipe, progress: Progress, runs: int
) -> Captured:
    """One of so many runs over the data, on the positions, and in the place, that a recipe asks for."""
    return capture(
        model,
        chunk,
        samples,
        all_positions=recipe.all_positions,
        seed=recipe.seed,
        execution=recipe.execution(),
        progress=lambda done: progress("capture", done, samples.count * runs),
    )


def _solve(layer: Layer, work: Work, recipe: Recipe, store: Store, progress: Callable[[int], None]) -> None:
    hessian = store.hessian(layer)
    missing = store.missing(layer, hessian)
    progress(layer.groups * layer.rows * (len(work.choices[layer.name]) - len(missing)))
    if missing:
        prepared = prepare_layer(layer, hessian, recipe)
        how, remark = work.schedule.method_for(layer.name, work.method), work.remarks.get(layer.name)
        how = replace(how, learned=work.learned)
        solutions = solve_layer(prepared, missing, recipe, how, remark, progress)
        for choice, solved in zip(missing, solutions, strict=True):
            store.put(solved, choice)


def solve_plan(plan: Plan, samples: Samples, recipe: Recipe, feedback: Feedback) -> Solutions:
    """Capture and solve all layers of a plan, each at its level."""
    if not plan.layers:  # only tables, which need no data
        return Solutions(plan, {}, {})
    choices = {name: (choice,) for name, choice in plan.choices.items()}
    return solve_choices(plan, choices, samples, recipe, feedback).of(plan)


def in_profile(solutions: Solutions, profile: Mapping[str, Choice], folded: Folded, recipe: Recipe) -> Solutions:
    """The same solutions in a fresh plan of a profile, which may leave layers out, or their inputs in float.

    folded: what the plan was made from. What the plan says of layers and of what was left out stays.
    """
    plan = solutions.plan
    fresh = make_plan(folded, recipe, profile)
    known = tuple(one for one in fresh.activations if one.dynamic or one.value in solutions.ranges)
    notes = (*plan.notes, *(note for note in fresh.notes if note not in plan.notes))
    fresh = replace(fresh, activations=known, left_out=plan.left_out, notes=notes, remarks=plan.remarks)
    solved = {layer.name: replace(solutions.solved[layer.name], layer=layer) for layer in fresh.layers}
    return replace(solutions, plan=fresh, solved=solved)


def left_in_float(
    solutions: Solutions, names: Collection[str], folded: Folded, recipe: Recipe, why: str
) -> Solutions | None:
    """The same solutions without those of some layers, which stay float; None where no layer would be left."""
    plan = solutions.plan
    profile = {name: choice for name, choice in plan.choices.items() if name not in names}
    if not profile:
        return None
    found = in_profile(solutions, profile, folded, recipe)
    gone = [LeftOut(layer.name, layer.op, why) for layer in plan.layers if layer.name not in found.solved]
    return replace(found, plan=replace(found.plan, left_out=(*plan.left_out, *gone)))


def capture_ranges(plan: Plan, samples: Samples, recipe: Recipe, feedback: Feedback) -> Mapping[str, RangeObserver]:
    """The ranges of a plan's activations, by value, and nothing else."""
    values = tuple(dict.fromkeys(activation.value for activation in plan.ranged))
    if not values:
        return {}
    with feedback.watch("capture"):
        return capture_chunk(plan.model, Chunk((), values), samples, recipe, feedback.progress, 1).ranges


def solve_choices(
    plan: Plan, choices: Mapping[str, Sequence[Choice]], samples: Samples, recipe: Recipe, feedback: Feedback
) -> InMemory:
    """Capture what a plan asks for, and solve each of its layers at several choices."""
    method, schedule = method_and_schedule(plan.layers, choices, recipe, feedback)
    values = [activation.value for activation in plan.ranged]
    taps = [use.tap.value for layer in plan.layers for use in layer.uses]
    shapes = probe(plan.model, [*values, *taps], samples, recipe.execution())
    chunks = plan_chunks(plan.layers, values, shapes, samples, recipe.memory_bytes(), recipe.damp is None)
    store = InMemory(choices, recipe.memory_bytes())
    learned = learned_on_dense(plan.model, plan.layers, choices, samples, recipe, feedback.progress)
    work = Work(plan.model, chunks, choices, method, schedule, plan.remarks, learned)
    capture_and_solve(work, samples, recipe, store, feedback)
    return store


def method_and_schedule(
    layers: Sequence[Layer],
    choices: Mapping[str, Sequence[Choice]],
    recipe: Recipe,
    feedback: Feedback,
    decided: Collection[str] = (),
) -> tuple[Method, Schedule]:
    """How layers are solved at these choices: compiled, timed where that decides, and told to the user.

    decided: the layers whose solver is known; they are left out of the schedule.
    """
    device = solving_device(recipe.device)
    method = method_of(recipe, device)
    with feedback.watch("compile"):
        if method.greedy:
            levels = dict.fromkeys(choice.level for layer in layers for choice in choices[layer.name])
            warm_up(list(levels), method, feedback.progress)
    undecided = [layer for layer in layers if layer.name not in decided]
    schedule = make_schedule(undecided, choices, recipe, device) if undecided else Schedule()
    for line in schedule.lines:
        feedback.say(line)
    return method, schedule
