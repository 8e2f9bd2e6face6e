"""Reconstruction: the compressed layers of a part of a model, trained together towards what the dense part computes.

Layer by layer, the solver sees neither that activations are rounded nor what follows a layer. A part between two values
that all paths pass (`units.py`) does: its layers' codes, scales and biases, or kept weights, and the scales of its
rounded activations move by gradient steps that lower ‖y − ŷ‖² / ‖y‖², y the dense part's output on dense inputs and ŷ
the compressed part's on the inputs that the compressed model before it computes, with activations rounded as in the
file. Targets inside the model have thousands of numbers for every sample, where the model's outputs have few: so a few
hundred samples train millions of weights (BRECQ, Li et al. 2021, from the exact solver's codes instead of from
rounding). No labels.

Gradients pass rounding straight through (Bengio et al. 2013); those of an activation's scale weigh what is rounded
against what is clipped (LSQ, Esser et al. 2020). A code starts in its cell where the dense weight would have it, so
that those that the solver had to choose between move first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..core.arrays import Array, Feed, Float32
from ..core.errors import ModelError
from ..core.machine import workers
from ..core.solution import Solution
from ..graph.layers import Layer
from .latents import Bias, Codes, Scale, Weights
from .torch_graph import ROUNDED_AGREEMENT, TorchGraph, one_thread, send

if TYPE_CHECKING:
    import torch

HALVES = 2  # parts of a step that run at the same time, on any machine: so many sums, in the same order
ELEMENTS = 1_000_000  # of a part's input in one step, about
FEWEST, MOST = 4, 32  # samples in a step, as far as a feed has so many
LOOKS = 6  # at the samples held out
SPARED = 8  # one of so many samples is held out, to stop the training of a part


@dataclass(frozen=True, eq=False)
class Example:
    """A feed for a part, and what its output is to be. count: of the samples in it, along the first axis of all; 0
    where some array has another, so that it can only be taken as it is."""

    feed: Feed
    target: Float32
    count: int


@dataclass(frozen=True)
class Training:
    """How a part is trained. steps: of Adam, its rate falls along a cosine. seed: of the order of samples. threads: at
    most; the result does not depend on them. shared_scale: the rows of a layer keep one scale. scales: the initializers
    of the part that are scales of activations to train, and what each may be multiplied by at most."""

    steps: int
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    shared_scale: bool = False
    scales: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """What training a part came to. stretches: by scale of an activation, what it is to be multiplied by. before,
    after: ‖y − ŷ‖² / ‖y‖² on the samples held out; where it did not fall, nothing is changed."""

    solutions: dict[str, Solution]
    biases: dict[str, Float32]
    stretches: dict[str, float]
    before: float
    after: float

    def arrays(self) -> dict[str, Array]:
        """All that training changed, to be kept."""
        found: dict[str, Array] = {"errors": np.array([self.before, self.after])}
        if not self.after < self.before:
            return found
        for name, solution in self.solutions.items():
            if solution.codes is None or solution.grid is None:
                kept = solution.weights if solution.mask is None else solution.weights[solution.mask]
                found[f"weights {name}"] = kept
            else:
                found[f"codes {name}"], found[f"scale {name}"] = solution.codes.astype(np.int16), solution.grid.scale
        found |= {f"bias {name}": bias for name, bias in self.biases.items()}
        return found | {f"stretch {name}": np.array(stretch) for name, stretch in self.stretches.items()}

    @classmethod
    def restored(cls, arrays: Mapping[str, Array], starts: Mapping[str, Solution]) -> Reconstructed:
        """What gave these `arrays`. starts: the solutions that training began with."""
        before, after = (float(error) for error in arrays["errors"])

        def of(kind: str) -> dict[str, Array]:
            return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}

        solutions = dict(starts)
        for name, kept in of("weights ").items():
            weights = np.zeros_like(starts[name].weights)
            mask = starts[name].mask
            weights[... if mask is None else mask] = kept
            solutions[name] = replace(starts[name], weights=weights)
        for name, codes in of("codes ").items():
            grid = starts[name].grid
            assert grid is not None
            grid = replace(grid, scale=arrays[f"scale {name}"])
            solutions[name] = starts[name].recoded(grid, codes.astype(np.int32))
        stretches = {name: float(array) for name, array in of("stretch ").items()}
        return cls(solutions, of("bias "), stretches, before, after)


@one_thread()
def reconstruct(
    graph: TorchGraph,
    layers: Sequence[Layer],
    dense: Mapping[str, Float32],
    solutions: Mapping[str, Solution],
    examples: Sequence[Example],
    held_out: Sequence[Example],
    training: Training,
    progress: Callable[[float], None] = lambda share: None,
) -> Reconstructed:
    """Train the solved layers of a part.

    graph: of the part as it was written, but for weights in float; its first output is the part's. layers: those of it
    that have a solution, as the graph knows them. dense: their dense weight matrices, (groups, rows, columns) float32.
    examples: to train on; held_out: to stop by, at least one each. progress: called with the share of the steps done.
    """
    import torch

    modules = [graph, *(replace(graph, module=copy.deepcopy(graph.module)) for _ in range(HALVES - 1))]
    device = training.device
    for one in modules:
        one.module.to(device)
    spans = _spans(graph, examples[0], device)
    latents: dict[str, Codes | Weights] = {}
    for layer in layers:
        solution = solutions[layer.name]
        if solution.codes is None:
            latents[layer.name] = Weights(layer, solution, device)
        else:
            latents[layer.name] = Codes(layer, solution, dense[layer.name], training.shared_scale, device)
    names = latents.keys()
    biases = {
        place.bias: Bias(graph.bias_values[place.bias], spans[place.value], device)
        for place in graph.places
        if place.bias is not None and place.layer in names
    }
    scales = {name: Scale(graph.scale_values[name], most, device) for name, most in training.scales.items()}
    groups = [g for latent in (*latents.values(), *biases.values(), *scales.values()) for g in latent.groups()]
    optimizer = torch.optim.Adam([{"params": [p], "lr": travel / training.steps} for p, travel in groups])
    parameters = [p for p, _ in groups]
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    energy = sum(float(np.square(example.target, dtype=np.float64).sum()) for example in examples)
    energy /= sum(example.target.size for example in examples)  # a number's, so that the loss is one of relative error
    energy = energy or 1.0

    def output(one: TorchGraph, example: Example) -> torch.Tensor:
        """What the part computes now."""
        weights = {name: latent.now() for name, latent in latents.items()}
        shifts = {name: bias.now() for name, bias in biases.items()}
        steps = {name: scale.now() for name, scale in scales.items()}
        return one.run(example.feed, weights, shifts, device, steps)[0]

    def gradients(one: TorchGraph, example: Example) -> list[torch.Tensor]:
        """Of the squared error of an example's samples."""
        loss = (output(one, example) - send(example.target, device)).square().sum() / energy
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    def error(some: Sequence[Example]) -> float:
        """The relative error on some examples."""
        with torch.no_grad():
            off = whole = 0.0
            for piece in (piece for example in some for piece in _cut(example, MOST)):
                target = send(piece.target, device)
                off += float((output(graph, piece) - target).square().sum())
                whole += float(target.square().sum())
        return off / whole if whole else off

    before = best = error(held_out)
    kept = [p.detach().clone() for p in parameters]
    rng = np.random.default_rng(training.seed)
    drawn = _draw(examples, _step_samples(examples), rng)
    looks = {round(training.steps * (look + 1) / LOOKS) for look in range(LOOKS)}
    with ThreadPoolExecutor(min(HALVES, workers(training.threads)), "reconstruct") as pool:
        for step in range(1, training.steps + 1):
            pieces = _halves(next(drawn))
            numbers = sum(piece.target.size for piece in pieces)
            parts = list(pool.map(gradients, modules[: len(pieces)], pieces))
            for index, parameter in enumerate(parameters):
                given = [part[index] for part in parts if part[index] is not None]
                parameter.grad = sum(given[1:], start=given[0]) / numbers if given else None
            optimizer.step()
            falling.step()
            for latent in (*latents.values(), *scales.values()):
                latent.keep_in_range()
            if step in looks and (now := error(held_out)) < best:
                best, kept = now, [p.detach().clone() for p in parameters]
            progress(step / training.steps)
    if not best < before:
        return Reconstructed(dict(solutions), {}, {}, before, before)
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    moved = {name: bias.now().detach().cpu().numpy() for name, bias in biases.items()}
    found = {name: latent.solution() for name, latent in latents.items()}
    return Reconstructed(found, moved, {name: scale.stretch() for name, scale in scales.items()}, before, best)


def examples_of(given: Sequence[Feed], targets: Sequence[Array]) -> list[Example]:
    """What a part is trained on. Feeds are taken apart only if in all of them every array has its samples in front."""
    counts = [shared_length([*feed.values(), target]) for feed, target in zip(given, targets, strict=True)]
    return [
        Example(feed, target, count if all(counts) else 0)
        for feed, target, count in zip(given, targets, counts, strict=True)
    ]


def shared_length(arrays: Iterable[Array]) -> int:
    """The length of the first axes of all arrays, 0 where they differ."""
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    return lengths.pop() if len(lengths) == 1 else 0


def spare(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those to train on, and those that stop the training: every so many-th feed, or sample where feeds are few.

    Raises ModelError where none can be spared.
    """
    if len(examples) >= SPARED:
        return [x for n, x in enumerate(examples) if n % SPARED], list(examples[::SPARED])
    training, spared = [], []
    for example in examples:
        if example.count < SPARED:
            training.append(example)
            continue
        out = np.arange(example.count) % SPARED == 0
        training.append(take(example, np.flatnonzero(~out)))
        spared.append(take(example, np.flatnonzero(out)))
    if spared:
        return training, spared
    if len(examples) < 2:
        raise ModelError("all samples come in one feed that cannot be taken apart; give a smaller --batch")
    return training[1:], training[:1]


def _step_samples(examples: Sequence[Example]) -> int:
    """The samples of a step: fewer where each has many positions."""
    elements = sum(array.size for array in examples[0].feed.values()) / max(examples[0].count, 1)
    return int(np.clip(round(ELEMENTS / max(elements, 1)), FEWEST, MOST))


def _draw(examples: Sequence[Example], samples: int, rng: np.random.Generator) -> Iterator[Example]:
    """Pieces of examples of so many samples, pass after pass over all of them, in an order drawn anew for each."""
    while True:
        pieces = []
        for number, example in enumerate(examples):
            order = rng.permutation(example.count)
            pieces += [(number, order[start : start + samples]) for start in range(0, len(order), samples)]
            if example.count == 0:
                pieces.append((number, order))
        for index in rng.permutation(len(pieces)):
            number, chosen = pieces[index]
            yield take(examples[number], np.sort(chosen)) if len(chosen) else examples[number]


def take(example: Example, chosen: Array) -> Example:
    """These samples of an example, by their places in it."""
    feed = {name: array[chosen] for name, array in example.feed.items()}
    return Example(feed, example.target[chosen], len(chosen))


def can_be_taken_apart(graph: TorchGraph, example: Example) -> bool:
    """Whether a graph makes of some samples what it makes of them among all, on the CPU.

    It does not where sizes are fixed in it, or where an axis that is as long as there are samples is not theirs.
    """
    import torch

    with torch.no_grad():
        whole = graph.run(example.feed, {}, {}, "cpu")[0]
        for count in (1, min(FEWEST, example.count)):
            try:
                part = graph.run(take(example, np.arange(count)).feed, {}, {}, "cpu")[0]
            except (RuntimeError, IndexError):
                return False
            wanted = whole[:count]
            if part.shape != wanted.shape:
                return False
            if float((part - wanted).square().sum()) > ROUNDED_AGREEMENT**2 * float(wanted.square().sum()):
                return False
    return True


def _cut(example: Example, samples: int) -> list[Example]:
    """An example in pieces of at most so many samples."""
    if example.count <= samples:
        return [example]
    return [take(example, np.arange(s, min(s + samples, example.count))) for s in range(0, example.count, samples)]


def _halves(example: Example) -> list[Example]:
    return _cut(example, -(-example.count // HALVES)) if example.count > 1 else [example]


def _spans(graph: TorchGraph, example: Example, device: str) -> dict[str, float]:
    """The root mean square of each output of a graph, on some samples of an example."""
    import torch

    piece = _cut(example, FEWEST)[0]
    with torch.no_grad():
        values = graph.run(piece.feed, {}, {}, device)
    return {name: float(value.square().mean().sqrt()) for name, value in zip(graph.outputs, values, strict=True)}
