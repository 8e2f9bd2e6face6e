"""Global AdaPrune: gradient steps on all remaining weights and biases at once, with masks and grids fixed.

OBC, appendix: after stitching, the kept weights of all layers are trained together so that every layer's output comes
back to that of the dense model, Σ over layers of ‖y − ŷ‖² / ‖y‖² with y the dense output and ŷ the compressed one.
Needs the extra `torch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed, Float32, Int32
from ..core.errors import ModelError
from ..core.solution import Solution
from ..graph.layers import Layer
from .latents import rms_of
from .torch_graph import TorchGraph, check_agreement, send, to_torch

if TYPE_CHECKING:
    import torch


LEARNING_RATE = 2e-2
EPSILON = 1e-20  # of Adam: gradients of single weights of a large model are far below torch's default


@dataclass(frozen=True)
class Training:
    """How long and how fast is trained.

    epochs: passes over the feeds. seed: of their order. learning_rate: how far a weight moves in the first steps, as a
    share of its row's root mean square, or a bias, as a share of that of its layer's output, where the outputs are off
    by 100 % (root mean square over the layers); where they are off by 1 %, the steps are a hundredth of that. It falls
    to 0 along a cosine.
    """

    epochs: int
    seed: int = 0
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class AdaPruned:
    """What global AdaPrune found.

    solutions: by layer, those that were given with new weights and codes. biases: by initializer, in its shape,
    float32. losses: the objective over all feeds, before and after each epoch; the solutions and biases are those of
    the smallest.
    """

    solutions: dict[str, Solution]
    biases: dict[str, Float32]
    losses: tuple[float, ...]


def adaprune(
    dense: ir.Model,
    layers: Sequence[Layer],
    solutions: Mapping[str, Solution],
    feeds: Sequence[Feed],
    training: Training,
    *,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> AdaPruned:
    """Train the kept weights and the biases of the solved layers, for several passes over the feeds, by Adam.

    dense: the folded float model. layers: all of its layers; the objective sums over all of them, each output taken
    behind its bias. solutions: by layer; layers without one stay as they are, their biases too, and a bias that
    anything else reads. feeds: at least one, each a step, in an order drawn by the seed. progress: called with 1 after
    each epoch.

    Pruned weights stay 0 and grids stay. On a grid a float weight is trained that starts at its code and is rounded
    whenever it is used, the gradient passing straight through; in the end weights are `grid.dequantize(codes)`.
    Activations are not quantized meanwhile. The same seed on the same CPU gives the same result.

    A solution's `loss` is the one that it had: who needs that of the new weights measures it. Stops early if an
    epoch ends without a finite objective. Raises ModelError if torch cannot run the model as onnxruntime does, or if
    the objective is not finite to begin with.
    """
    if not solutions:
        return AdaPruned({}, {}, (0.0,))
    import torch

    graph = to_torch(dense, layers, "--global-adaprune")
    check_agreement(graph, dense, feeds[0])
    graph.module.to(device)
    spans = _spans(graph, feeds, device)
    solved = [layer for layer in layers if layer.name in solutions]
    weights = {layer.name: _of_layer(layer, solutions[layer.name], device) for layer in solved}
    left = {place.bias for place in graph.places if place.layer not in solutions}
    biases = {
        place.bias: _of_bias(graph.bias_values[place.bias], span, device)
        for place, span in zip(graph.places, spans, strict=True)
        if place.bias is not None and place.bias not in left
    }

    def distance(feed: Feed) -> torch.Tensor:
        with torch.no_grad():
            wanted = graph.run(feed, {}, {}, device)
        new_weights = {name: latent.now() for name, latent in weights.items()}
        new_biases = {name: latent.now() for name, latent in biases.items()}
        found = graph.run(feed, new_weights, new_biases, device)
        return sum(
            ((y - z).square().sum() * span.weight for y, z, span in zip(wanted, found, spans, strict=True)),
            start=torch.zeros((), device=device),
        )

    trained = [*weights.values(), *biases.values()]
    losses = _train(
        trained,
        distance,
        feeds,
        replace(training, learning_rate=training.learning_rate / math.sqrt(len(graph.places))),
        progress,
    )
    found = {layer.name: _solution(layer, solutions[layer.name], weights[layer.name]) for layer in solved}
    moved_biases = {name: latent.now().detach().cpu().numpy() for name, latent in biases.items()}
    return AdaPruned(found, moved_biases, losses)


def _train(
    trained: Sequence[_Latent],
    distance: Callable[[Feed], torch.Tensor],
    feeds: Sequence[Feed],
    training: Training,
    progress: Callable[[int], None],
) -> tuple[float, ...]:
    """Move what is trained to where it was best, and return the objective before and after each epoch.

    distance: what one feed adds to the objective. training: its rate, Adam's, is that where the objective is 1, and it
    goes with the root.
    """
    import torch

    def objective() -> float:
        with torch.no_grad():
            return sum(float(distance(feed)) for feed in feeds)

    losses = [objective()]
    if not math.isfinite(losses[0]):
        raise ModelError("global AdaPrune: a layer's output is NaN or infinite on the calibration data; check the data")
    best = [latent.moved.detach().clone() for latent in trained]
    optimizer = torch.optim.Adam(
        [x.moved for x in trained], lr=training.learning_rate * math.sqrt(losses[0]), eps=EPSILON
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(training.epochs, 1) * len(feeds))
    rng = np.random.default_rng(training.seed)
    for _ in range(training.epochs):
        for index in rng.permutation(len(feeds)):
            optimizer.zero_grad()
            distance(feeds[index]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            for latent in trained:
                latent.keep_in_range()
        losses.append(objective())
        progress(1)
        if not math.isfinite(losses[-1]):
            break
        if losses[-1] < min(losses[:-1]):
            best = [latent.moved.detach().clone() for latent in trained]
    for latent, moved in zip(trained, best, strict=True):
        latent.moved.data = moved
    return tuple(losses)


@dataclass(frozen=True)
class _Span:
    """A layer's output over all feeds: 1 / ‖y‖², and the root mean square of y. Both 0 where y is 0 everywhere."""

    weight: float
    rms: float


@dataclass(frozen=True, eq=False)
class _Latent:
    """A weight or a bias in training, `start + moved · unit`; on a grid that is in steps from the zero point.

    All tensors have the shape that nodes see. unit is 0 where a weight is pruned, which then stays where it is. scale,
    low and high: the size of a step, and the range in steps; None off a grid.
    """

    start: torch.Tensor
    moved: torch.Tensor
    unit: torch.Tensor
    scale: torch.Tensor | None = None
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def now(self) -> torch.Tensor:
        """The value that the model gets, on the grid where there is one; the gradient passes the rounding."""
        if self.scale is None:
            return self.start + self.moved * self.unit
        steps = self.start + self.moved * self.unit
        return (steps + (steps.round() - steps).detach()) * self.scale  # exact: both differ by at most ½

    def steps(self) -> torch.Tensor:
        """How many steps from the zero point the value lies, whole."""
        return (self.start + self.moved.detach() * self.unit).round()

    def keep_in_range(self) -> None:
        """Bring a value that left the range of its grid back to its end."""
        if self.low is None or self.high is None:
            return
        import torch

        low, high = ((end - self.start) / self.unit for end in (self.low, self.high))  # ∓∞ or NaN where pruned
        with torch.no_grad():
            self.moved.copy_(torch.where(self.unit > 0, torch.clamp(self.moved, low, high), self.moved))


def _spans(graph: TorchGraph, feeds: Sequence[Feed], device: str) -> list[_Span]:
    """What the dense model's places span."""
    import torch

    squares, counts = [0.0] * len(graph.places), [0] * len(graph.places)
    with torch.no_grad():
        for feed in feeds:
            for index, value in enumerate(graph.run(feed, {}, {}, device)):
                squares[index] += float(value.square().sum())
                counts[index] += value.numel()
    return [_Span(1 / s if s else 0.0, math.sqrt(s / max(n, 1))) for s, n in zip(squares, counts, strict=True)]


def _of_layer(layer: Layer, solution: Solution, device: str) -> _Latent:
    weights, mask, grid = solution.weights, solution.mask, solution.grid  # (groups, rows, columns)
    shape = weights.shape
    kept = np.ones(shape, np.bool_) if mask is None else mask
    rms = rms_of(weights, kept)  # (groups, rows, 1)
    rms[rms == 0] = rms.max() or 1.0

    def seen(array: Array) -> torch.Tensor:
        return send(layer.tensor(np.broadcast_to(array, shape)), device)

    if grid is None or solution.codes is None:
        return _trainable(seen(weights), seen(rms * kept))
    scale, zero = grid.spread(*shape[1:])
    ends = seen(grid.qmin - zero), seen(grid.qmax - zero)
    return _trainable(seen(solution.codes - zero), seen(rms / scale * kept), seen(scale), *ends)


def _of_bias(bias: Float32, span: _Span, device: str) -> _Latent:
    return _trainable(send(bias, device), send(np.full(bias.shape, span.rms), device))


def _trainable(start: torch.Tensor, unit: torch.Tensor, *grid: torch.Tensor) -> _Latent:
    import torch

    return _Latent(start, torch.zeros_like(start, requires_grad=True), unit, *grid)


def _solution(layer: Layer, solution: Solution, latent: _Latent) -> Solution:
    """The solution with what was trained: `latent` in the shape that nodes see, back as (groups, rows, columns)."""

    def matrix(tensor: torch.Tensor) -> Float32:
        return replace(layer, weight=tensor.cpu().numpy()).matrix()

    if solution.grid is None or solution.codes is None:
        return replace(solution, weights=matrix(latent.now().detach()))
    zero = solution.grid.spread(*solution.weights.shape[1:])[1]
    codes: Int32 = matrix(latent.steps()).astype(np.int32) + zero
    return solution.recoded(solution.grid, codes)
