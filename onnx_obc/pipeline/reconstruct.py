"""Trains the parts of a compressed model, one after the other, on what the compressed model before each computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..calibration.capture import run_costs
from ..calibration.split import CORRECTING, TRAINING, first_samples
from ..core.arrays import Array, Float32
from ..core.errors import ModelError, one_line
from ..core.plural import counted
from ..core.progress import Feedback, Progress, hundredths
from ..core.solution import Solution
from ..correction.reconstruction import (
    MOST,
    SPARED,
    Reconstructed,
    Training,
    can_be_taken_apart,
    examples_of,
    reconstruct,
    shared_length,
    spare,
)
from ..correction.sites import bias_sites
from ..correction.statistics import WrittenLayer, correct
from ..correction.torch_graph import check_agreement, places_of, to_torch
from ..correction.units import Unit, chain_units, layers_of
from ..graph.edit import add_initializer, names_of, submodel, take_name
from ..graph.fold import remove_unused
from ..graph.layers import find_layers
from ..graph.write import WrittenWeight, activation_pairs, rewrite, unquantized
from ..runtime.stepper import Stepper
from ..targets.registry import TARGETS
from .attempts import (
    compared,
    must_be_clear,
    of_whole_models,
    rounds_inputs_coarsely,
    unless_clearly_worse,
    without_order,
)
from .correct import missing_for_training, sites_of
from .draft import TRAINED, Draft, make_draft
from .layer import Solved, solving_device
from .material import Material
from .options import OWN
from .plan import Plan
from .recipe import Recipe
from .solve import Solutions, in_profile
from .write import write

STEPS = 400  # for each part, with --effort best
BRIEF = 100  # without
FEWEST = 32  # samples below which nothing is trained
UNASKED_SAMPLES = 128  # below which nothing is that the user did not ask for
UNASKED_FLOPS = 1e13  # of that, at most: two minutes or so on two cores
BACK_AND_FORTH = 3  # gradients take twice as long as outputs
VERSION = 2  # rises when training comes to something else: parts that are kept are then trained anew


def reconstructed(draft: Draft, start: Solutions, material: Material, recipe: Recipe, feedback: Feedback) -> Draft:
    """A model whose parts are trained; the draft where that is clearly worse on held-out samples, or where all layers
    are of 8 bits without zeros and it is not clearly better.

    start: what training begins with, where both were made layers solved each for itself: from layers solved in order it
    comes no further.
    """
    reason = _untrained(draft.plan, material, recipe)
    if reason is not None:
        return noted(draft, [reason]) if reason else draft
    with feedback.watch("reconstruct"):
        try:
            trained, notes = _trained(start, material, recipe, feedback.progress)
        except Exception as error:  # nobody loses what is solved by what he did not ask for
            if _asked(recipe):
                raise
            why = f"{type(error).__name__}: {one_line(error)}"
            trained, notes = None, [f"parts were not trained, as that failed ({why}); please report it"]
    if trained is None:
        return noted(draft, notes)
    other = make_draft(material, trained, recipe, feedback)
    count = sum(entry.report.notes[-1:] == (TRAINED,) for entry in trained.solved.values())
    with feedback.watch("correct"):
        models, clearly = (draft.plan.model, other.plan.model), must_be_clear(draft.plan.choices)
        attempt = compared(
            "reconstruction", count, models, material.dense, material.held_out, recipe.execution(), clearly
        )
    attempt = attempt if clearly else unless_clearly_worse(attempt)
    if attempt.kept:
        chosen, before = other, (*without_order(of_whole_models(draft.corrections)), *other.corrections)
    else:
        chosen, before = draft, draft.corrections
    return noted(replace(chosen, corrections=(*before, attempt)), notes)


def _untrained(plan: Plan, material: Material, recipe: Recipe) -> str | None:
    """Why nothing is trained, in words for the user, empty where he need not know; None if parts are.

    Unless the recipe says so: `best` trains at every level, and `normal` where most is gained (see `_by_default`), if
    torch is there and it takes minutes at most.
    """
    asked = _asked(recipe)
    if not plan.layers or not (asked or _by_default(plan, material, recipe)):
        return ""
    first = next(material.feeds.read(0, material.feeds.count))
    held = max(shared_length(first.feed.values()) // first.count, 1)  # samples in one: Python's feeds may be batches
    count = material.feeds.count * held
    if asked:
        few = f"{_option(recipe)} trains on {FEWEST} samples or more, and {count} are there"
        return few if count < FEWEST else None
    if count < UNASKED_SAMPLES:
        return ""
    layers = find_layers(material.folded.model)[0]
    costs = run_costs(material.folded.model, layers, material.feeds, recipe.execution()).values()
    flops = sum(2 * cost.parameters if cost.flops is None else cost.flops for cost in costs) / held
    if flops * BACK_AND_FORTH * MOST * BRIEF > UNASKED_FLOPS:
        return "parts were not trained, as a model of this size takes long; --effort best does it"
    if missing := missing_for_training():
        gain = "training parts of the model lowers the loss where weights have zeros or inputs fewer than 8 bits"
        return f"{gain}; it needs {missing}, not installed: install onnx-obc[torch]"
    return None


def _by_default(plan: Plan, material: Material, recipe: Recipe) -> bool:
    """Whether parts are trained though nobody asked for it, if there are samples and time: where weights have zeros or
    inputs fewer than 8 bits, which gain most.

    Not from a database, from which many models are written in seconds, nor in a time limit, nor after other solvers
    than the tool's own, which are there to be compared.
    """
    if recipe.reconstruction is False or recipe.effort == "fast" or recipe.solver not in OWN:
        return False
    if material.trained is not None or recipe.time_limit is not None or recipe.global_adaprune:
        return False
    return any(x.level.sparsity is not None or rounds_inputs_coarsely(x) for x in plan.choices.values())


def _asked(recipe: Recipe) -> bool:
    """Whether the user asked for training, and not for none."""
    return recipe.effort == "best" if recipe.reconstruction is None else recipe.reconstruction


def _steps(recipe: Recipe) -> int:
    return STEPS if recipe.effort == "best" else BRIEF


def _option(recipe: Recipe) -> str:
    return "--reconstruction" if recipe.reconstruction else f"--effort {recipe.effort}"


def _within(tell: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """What tells the share that is done of one of so many equal parts of something."""
    return lambda share: tell((number + share) / count)


def noted(draft: Draft, notes: Sequence[str]) -> Draft:
    """The draft with more that the user should know."""
    plan = draft.plan
    return replace(draft, source=replace(draft.source, plan=replace(plan, notes=(*plan.notes, *notes))))


def _trained(
    solutions: Solutions, material: Material, recipe: Recipe, progress: Progress
) -> tuple[Solutions | None, list[str]]:
    """Solutions whose weights and biases were trained, in a fresh plan, None where no part got better; and what the
    user should know."""
    own, blank = (in_profile(solutions, solutions.plan.choices, material.folded, recipe) for _ in range(2))
    walk = _Walk(own, material, recipe)
    option = _option(recipe)
    left: dict[str, list[str]] = {}  # layers by why they are left as they are

    def train(unit: Unit, tell: Callable[[float], None]) -> None:
        names = [name for name in unit.layers if name in walk.trainable]
        if not names:
            return
        try:
            return walk.train(unit, names, tell)
        except ModelError as error:
            why = str(error).removesuffix(f"; leave out {option}")
        if not unit.blocks:
            left.setdefault(why, []).extend(names)
        for number, block in enumerate(unit.blocks):  # torch may know the operators of some
            train(block, _within(tell, number, len(unit.blocks)))

    for unit in walk.units:
        tell = hundredths(progress, "reconstruct", len(walk.units))
        train(unit, tell)
        tell(1)
    notes = [f"{counted(len(names), 'layer')} not trained by {option}: {why}" for why, names in left.items()]
    if not walk.better:
        return None, [*notes, f"{option}: no part of the model came nearer to the dense one by training"]
    solved = {}
    for name, entry in blank.solved.items():
        solution, bias = walk.solved[name].solution, walk.added_to_bias(name)
        report = entry.report
        if name in walk.better:
            report = replace(report, notes=(*report.notes, TRAINED))
        solved[name] = replace(entry, solution=replace(solution, bias=bias), report=report)
    return replace(blank, solved=solved, stretches=walk.stretches), notes


class _Walk:
    """A written copy of a model that is trained part by part, in the order of the graph, beside the dense one.

    units: the parts. trainable: the names of the layers that can be: of those with several uses, or with a table that
    reads the same integers, none. solved: the layers as they are now; better: the names of those that were trained.
    stretches: what ranges of activations were multiplied by, see `Solutions`.
    """

    def __init__(self, solutions: Solutions, material: Material, recipe: Recipe) -> None:
        plan = self._plan = solutions.plan
        self._recipe = recipe
        self._dense_model = plan.model.clone()
        self.units: Sequence[Unit] = chain_units(plan.model, find_layers(plan.model)[0])
        tied = {tie.layer for tie in plan.ties}
        self.trainable = {layer.name for layer in plan.layers if len(layer.uses) == 1} - tied
        self._biases = bias_sites(plan.model, plan.layers)
        self._begun = {name: self._bias(name) for name in self._biases}
        sites = [site for site in sites_of(plan, material.dense, recipe) if site.kind != "norm"]
        written, _, _ = write(solutions, recipe)
        self._written = {weight.layer: weight for weight in written}
        layers = {
            name: WrittenLayer(entry.layer, entry.solution, self._written[name])
            for name, entry in solutions.solved.items()
        }
        few = list(first_samples(material.feeds, CORRECTING).feeds())
        _, now = correct(self._dense_model, plan.model, sites, layers, few, execution=recipe.execution())
        self.solved = {name: replace(entry, solution=now[name]) for name, entry in solutions.solved.items()}
        self.better: set[str] = set()
        self.stretches: dict[tuple[str, int], float] = {}
        ranged = {(one.value, one.bits) for one in plan.ranged}
        self._pairs = {x.scale: x for x in activation_pairs(plan.model) if (x.value, x.bits) in ranged}
        self._store, self._key = material.trained, ""
        if self._store is not None:
            self._key = self._store.key(*_start(solutions, recipe))
        self._floats = _with_floats(plan, self.solved, written)
        samples = first_samples(material.feeds, TRAINING)
        feeds = list(samples.feeds())
        half = replace(recipe.execution(), memory=recipe.memory_bytes() / 2)
        self._dense, self._compressed = Stepper(self._dense_model, feeds, half), Stepper(plan.model, feeds, half)
        parts = [part for unit in self.units for part in (unit, *unit.blocks)]
        self._sources = {part: _sources(part) for part in parts}  # in the order in which they may be asked for
        self._ahead: dict[str, list[Array]] = {}  # by value, what the dense model computes there, feed by feed

    def train(self, unit: Unit, names: Sequence[str], progress: Callable[[float], None]) -> None:
        """Train these layers of a unit, in place, if that brings its output nearer to the dense one on samples held
        out. Raises ModelError if torch cannot run the unit as onnxruntime does: its blocks can then be trained."""
        solutions = {name: self.solved[name].solution for name in names}
        key, arrays = "", None
        if self._store is not None:
            key = self._store.key(self._key, unit.output, names)
            arrays = self._store.recall(key)
        if arrays is None:
            result = self._result(unit, solutions, progress)
            arrays = result.arrays()
            if self._store is not None:
                self._store.keep(key, arrays)
        else:
            result = Reconstructed.restored(arrays, solutions)
        if self._store is not None:  # what comes behind was trained on what this computes
            self._key = self._store.key(key, *(part for pair in sorted(arrays.items()) for part in pair))
        if result.after < result.before:
            self._take(result)

    def _result(
        self, unit: Unit, solutions: Mapping[str, Solution], progress: Callable[[float], None]
    ) -> Reconstructed:
        """What training these layers of a unit comes to."""
        recipe = self._recipe
        parts = list(self._sources)
        later = {name for part in parts[parts.index(unit) + 1 :] for name in self._sources[part]}
        given = self._compressed.advance(self._sources[unit], later)
        if lists := [name for name, value in given[0].items() if not isinstance(value, np.ndarray)]:
            raise ModelError(f"what leads to {unit.output} reads {lists[0]}, which is not a tensor")
        part = submodel(self._floats, given[0], [unit.output])
        layers = layers_of(part, [self.solved[name].layer for name in solutions])
        places = [place.value for place in places_of(part, layers)[0]]  # given out too: biases move by their size
        graph = to_torch(part, layers, _option(recipe), list(dict.fromkeys([unit.output, *places])))
        check_agreement(graph, part, given[0], rounded=True)
        examples = examples_of(given, self._wanted(unit))
        largest = max(examples, key=lambda example: example.count)
        if largest.count and not can_be_taken_apart(graph, largest):
            if unit.blocks:
                raise ModelError(f"samples of what leads to {unit.output} cannot be taken apart")
            examples = [replace(example, count=0) for example in examples]
        training, spared = spare(examples)
        scales = tuple(name for name in self._own_scales(unit) if name in graph.scales)
        shared = TARGETS[recipe.target].shared_scale
        settings = Training(_steps(recipe), recipe.seed, solving_device(recipe.device), recipe.threads, shared, scales)
        dense = {name: self.solved[name].layer.matrix() for name in solutions}
        try:
            return reconstruct(graph, layers, dense, solutions, training, spared, settings, progress)
        except RuntimeError as error:  # of torch: also for want of memory
            raise ModelError(f"torch fails on what leads to {unit.output}: {one_line(error)}") from error

    def _wanted(self, unit: Unit) -> list[Array]:
        """The dense model's output of a unit, feed by feed. Those of its blocks are kept, as they may be trained each
        for itself."""
        if unit.output not in self._ahead:
            outputs = list(dict.fromkeys([*(block.output for block in unit.blocks), unit.output]))
            run = self._dense.advance(outputs)
            self._ahead = {name: [feed[name] for feed in run] for name in outputs}
        return self._ahead[unit.output]

    def _take(self, result: Reconstructed) -> None:
        """Write what a part became into the model."""
        for name, solution in result.solutions.items():
            self.solved[name] = replace(self.solved[name], solution=solution)
            rewrite(self._plan.model, self.solved[name].layer, self._written[name], solution)
        constants = self._plan.model.graph.initializers
        for name, bias in result.biases.items():
            constants[name].const_value = ir.Tensor(np.ascontiguousarray(bias), name=name)
        for name, stretch in result.stretches.items():
            tensor = constants[name].const_value
            assert tensor is not None
            constants[name].const_value = ir.Tensor(np.asarray(tensor.numpy() * stretch, np.float32), name=name)
            pair = self._pairs[name]
            self.stretches[pair.value, pair.bits] = stretch
        self.better.update(result.solutions)

    def _own_scales(self, unit: Unit) -> list[str]:
        """The scales of activations that a part can train: all that reads what they quantize is in it."""
        inside = set(unit.nodes)
        found = []
        for scale, pair in self._pairs.items():
            values = [node.outputs[0] for node in pair.dequantize]
            readers = {use.node for value in values for use in value.uses()}
            if readers <= inside and not any(value.is_graph_output() for value in values):
                found.append(scale)
        return found

    def added_to_bias(self, name: str) -> Float32 | None:
        """What a layer's bias has more than at the beginning, (rows,); None if that is nothing."""
        if name not in self._biases:
            return None
        change = self._bias(name) - self._begun[name]
        return change if change.any() else None

    def _bias(self, name: str) -> Float32:
        """A layer's bias as it is now, (rows,) float32."""
        site = self._biases[name]
        assert site.shift is not None
        node, index = site.shift
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return np.zeros(site.channels, np.float32)
        assert value.const_value is not None
        return np.broadcast_to(value.const_value.numpy().astype(np.float32).reshape(-1), (site.channels,)).copy()


def _start(solutions: Solutions, recipe: Recipe) -> Iterator[object]:
    """All that training depends on, beside the model and the samples."""
    yield [VERSION, _steps(recipe), SPARED, recipe.seed, recipe.target, recipe.ranges]
    yield [(one.value, one.bits, one.symmetric, one.dynamic) for one in solutions.plan.activations]
    for name, entry in solutions.solved.items():
        yield name
        yield str(solutions.plan.choices[name])
        yield entry.solution.weights
        yield entry.solution.bias


def _sources(unit: Unit) -> list[str]:
    """The values in float that a unit of a written model reads, itself or through pairs that quantize them."""
    read = [node.inputs[index] for node, index in unit.inputs.values()]
    return list(dict.fromkeys(str(unquantized(value).name) for value in read if value is not None))


def _with_floats(plan: Plan, solved: Mapping[str, Solved], written: Sequence[WrittenWeight]) -> ir.Model:
    """A copy of a plan's written model with its solved weights in float, and inputs in float that have no range."""
    copy = plan.model.clone()
    nodes = dict(zip(plan.model.graph, copy.graph, strict=True))
    taken = set(names_of(copy))
    for weight in written:
        entry = solved[weight.layer]
        name = take_name(f"{weight.layer}.float", taken)
        value = add_initializer(copy.graph, name, entry.layer.tensor(entry.solution.weights))
        for use in weight.uses:
            nodes[use.node].replace_input_with(use.index, value)
    for node in list(copy.graph):
        if node.op_type == "DynamicQuantizeLinear" and (source := node.inputs[0]) is not None:
            for reader in list(node.outputs[0].uses()):
                ir.convenience.replace_all_uses_with(reader.node.outputs[0], source)
    remove_unused(copy)
    return copy
