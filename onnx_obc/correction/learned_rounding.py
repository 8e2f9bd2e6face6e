"""Rounding learned by gradients, to compare with: AdaRound, BRECQ and AdaQuant, each on a part of the model.

- AdaRound (Nagel et al. 2020): every weight goes to one of its two nearest codes; which, is learned on a layer's output
  behind its activation function. The choice is a rectified sigmoid h(V) in [0, 1] (equation 23 there), which a
  regulariser 1 − |2h − 1|^β drives to 0 or 1 while β falls (equation 24).
- BRECQ (Li et al. 2021): the same for all layers of a residual block together, on the block's output, whose entries
  are weighted by their diagonal Fisher information (equation 10 there; `fisher.py`).
- AdaQuant (Hubara et al. 2021): weights, scales and bias move by small steps, and gradients pass the rounding
  straight through.

Hyper-parameters are those of the papers and of their authors' code, but that: a step sees one feed, 32 samples by
default. With fewer steps than published the rate of AdaRound and BRECQ rises in proportion, up to tenfold, so that a
choice can travel as far. AdaQuant's rates, which its authors tuned for 8 bits, fall to 0 along a line, as at constant
ones the error rises again before the steps are over; zero points stay, and inputs are what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ..core.arrays import Feed, Float32
from ..core.errors import ModelError
from ..core.solution import Solution
from ..graph.layers import Layer
from .torch_graph import TorchGraph, as_seen, one_thread, send, with_codes

if TYPE_CHECKING:
    import torch

Learner: TypeAlias = Literal["adaround", "adaquant", "brecq"]

ITERATIONS: dict[Learner, int] = {"adaround": 10_000, "adaquant": 1_000, "brecq": 20_000}  # as published
ROUND_RATE, FASTER = 1e-3, 10  # of Adam, for the published steps, and how many times that at most
STRETCH = (-0.1, 1.1)  # of the sigmoid, before it is clipped to [0, 1]
REGULARISER = 0.01
BETA, WARM = (20.0, 2.0), 0.2  # from, to; and the share of the steps before which there is no regulariser
WEIGHT_RATE, BIAS_RATE, SPAN_RATE = 1e-5, 1e-3, 1e-3  # of AdaQuant's Adam


@dataclass(frozen=True)
class Learning:
    """How rounding is learned. iterations: steps, each on one example, in an order drawn by the seed."""

    learner: Learner
    iterations: int
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Example:
    """A feed for a part of the model, and what its output is to be.

    weight: how much the squared error of each entry counts, in the shape of the target; None: all the same.
    """

    feed: Feed
    target: Float32
    weight: Float32 | None = None


@one_thread()
def learn(
    graph: TorchGraph,
    layers: Sequence[Layer],
    starts: Mapping[str, Solution],
    examples: Sequence[Example],
    learning: Learning,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Solution]:
    """Learn the codes of some layers of a part of the model; the solutions by the layers' names.

    graph: of the part, with its output alone. layers: those of it that have a start, as `graph` knows them. starts:
    rounded to nearest; their grids and masks stay, but that AdaQuant moves scales, and adds to biases that are there.
    A start without codes is the layer's weight meanwhile, and stays as it is. examples: at least one. progress: called
    with the share of the steps that are done. The losses of the solutions are 0: who has a Hessian measures them. The
    same seed on the same CPU gives the same result. Raises ModelError for values that are not finite.
    """
    import torch

    if not all(np.isfinite(example.target).all() for example in examples):
        raise ModelError(
            f"{graph.outputs[0]}: it is NaN or infinite on some of the calibration samples; take these out, or leave "
            f"out {graph.option}, which cannot learn on them"
        )
    rng = np.random.default_rng(learning.seed)
    graph.module.to(learning.device)
    straight = learning.learner == "adaquant"
    make = _Straight if straight else _Rounding
    learned = [layer for layer in layers if starts[layer.name].codes is not None]
    weights: dict[str, _Rounding | _Straight] = {x.name: make(x, starts[x.name], learning.device) for x in learned}
    constants = {
        x.name: send(x.tensor(starts[x.name].weights), learning.device) for x in layers if x.name not in weights
    }
    biases = _biases(graph, learned, learning.device) if straight else {}
    rate = ROUND_RATE * min(max(ITERATIONS[learning.learner] / learning.iterations, 1), FASTER)
    groups = [{"params": [p], "lr": r or rate} for latent in weights.values() for p, r in latent.parameters()]
    groups += [{"params": [bias], "lr": BIAS_RATE} for bias in biases.values()]
    optimizer = torch.optim.Adam(groups)
    convolved = any("Conv" in layer.op for layer in layers)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / learning.iterations)
    order: list[int] = []
    for step in range(learning.iterations):
        order = order or list(rng.permutation(len(examples)))
        example = examples[order.pop()]
        target = send(example.target, learning.device)
        optimizer.zero_grad()
        now = constants | {name: latent.now() for name, latent in weights.items()}
        (found,) = graph.run(example.feed, now, biases, learning.device)
        error = (found - target).square()
        if example.weight is not None:
            error = error * send(example.weight, learning.device)
        channels = 1 if straight else target.shape[1 if convolved and target.ndim > 2 else -1]
        loss = error.sum() * (channels / target.numel())
        beta = _beta(step / learning.iterations)
        if beta is not None:
            loss = loss + REGULARISER * sum(latent.penalty(beta) for latent in weights.values())
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"{graph.outputs[0]}: learning on it came to NaN or infinity at step {step + 1}; give fewer "
                f"--iterations, or leave out {graph.option}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if straight:
            falling.step()
        progress((step + 1) / learning.iterations)
    solutions = {name: starts[name] for name in constants} | {name: x.solution() for name, x in weights.items()}
    for place in graph.places:
        if place.bias in biases:
            moved = biases[place.bias].detach().cpu().numpy() - graph.bias_values[place.bias]
            solutions[place.layer] = replace(solutions[place.layer], bias=moved.reshape(-1))
    return solutions


def _beta(done: float) -> float | None:
    """The exponent of the regulariser when a share of the steps is done; None where there is no regulariser yet."""
    if done < WARM:
        return None
    return BETA[1] + (BETA[0] - BETA[1]) * (1 - (done - WARM) / (1 - WARM))


class _Rounding:
    """A layer whose codes are the next below, floor(w / s), plus h(V) in [0, 1], which in the end is 0 or 1."""

    def __init__(self, layer: Layer, start: Solution, device: str) -> None:
        import torch

        assert start.grid is not None
        self._layer, self._start = layer, start
        scale, zero = start.grid.spread(*start.weights.shape[1:])  # (groups, rows, columns) each
        steps = layer.matrix() / scale
        below = np.floor(steps)
        share = (np.clip(steps - below, 1e-6, 1 - 1e-6) - STRETCH[0]) / (STRETCH[1] - STRETCH[0])
        kept = np.ones(steps.shape, np.bool_) if start.mask is None else start.mask
        self._scale, self._below, self._kept = (send(x, device) for x in (scale, below, kept))
        self._low, self._high = (send(end - zero, device) for end in (start.grid.qmin, start.grid.qmax))
        self._choice = torch.nn.Parameter(send(np.log(share / (1 - share)), device))

    def parameters(self) -> list[tuple[torch.Tensor, float | None]]:
        """What is learned, and at which rate; None: the usual one."""
        return [(self._choice, None)]

    def now(self) -> torch.Tensor:
        """The weight, in the shape that nodes see."""
        return as_seen(self._layer, self._steps(self._up()) * self._scale)

    def penalty(self, beta: float) -> torch.Tensor:
        """The regulariser, summed over the kept weights."""
        return ((1 - (2 * self._up() - 1).abs() ** beta) * self._kept).sum()

    def solution(self) -> Solution:
        """The layer with every weight at the code that its choice is nearer to."""
        assert self._start.grid is not None
        return with_codes(self._start, self._start.grid, self._steps((self._choice >= 0).float()))

    def _up(self) -> torch.Tensor:
        import torch

        return torch.clamp(torch.sigmoid(self._choice) * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1)

    def _steps(self, up: torch.Tensor) -> torch.Tensor:
        """How many steps from the zero point a weight lies that goes so far up, (groups, rows, columns)."""
        return _clipped(self._below + up, self._low, self._high) * self._kept


class _Straight:
    """A layer whose weights and scales move; gradients pass the rounding straight through."""

    def __init__(self, layer: Layer, start: Solution, device: str) -> None:
        import torch

        assert start.grid is not None
        self._layer, self._start = layer, start
        zero = start.grid.spread(*start.weights.shape[1:])[1]
        kept = np.ones(start.weights.shape, np.bool_) if start.mask is None else start.mask
        self._kept = send(kept, device)
        self._low, self._high = (send(end - zero, device) for end in (start.grid.qmin, start.grid.qmax))
        self._width = start.weights.shape[2] if start.grid.block is None else start.grid.block
        self._codes = start.grid.qmax - start.grid.qmin
        self._weight = torch.nn.Parameter(send(layer.matrix(), device))
        self._span = torch.nn.Parameter(send(start.grid.scale * self._codes, device))

    def parameters(self) -> list[tuple[torch.Tensor, float | None]]:
        """What is learned, and at which rate."""
        return [(self._weight, WEIGHT_RATE), (self._span, SPAN_RATE)]

    def now(self) -> torch.Tensor:
        """The weight, in the shape that nodes see."""
        scale = self._scale()
        return as_seen(self._layer, self._steps(scale) * scale)

    def penalty(self, beta: float) -> torch.Tensor:
        """There is none."""
        return self._span.new_zeros(())

    def solution(self) -> Solution:
        """The layer at the codes and scales that were reached."""
        assert self._start.grid is not None
        scale = (self._span.detach() / self._codes).cpu().numpy()
        grid = replace(self._start.grid, scale=np.maximum(scale, np.finfo(np.float32).tiny))
        return with_codes(self._start, grid, self._steps(self._scale()))

    def _scale(self) -> torch.Tensor:
        """Of every weight, (groups, rows, columns)."""
        scale = self._span.clamp_min(self._codes * float(np.finfo(np.float32).tiny)) / self._codes
        return scale.repeat_interleave(self._width, dim=1).reshape(self._weight.shape)

    def _steps(self, scale: torch.Tensor) -> torch.Tensor:
        """How many steps from the zero point a weight lies, (groups, rows, columns)."""
        steps = self._weight / scale
        rounded = steps + (steps.round() - steps).detach()
        return _clipped(rounded, self._low, self._high) * self._kept


def _clipped(steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Steps in the range of the grid; at its ends half of the gradient passes, which a clamp would let pass whole."""
    import torch

    return torch.minimum(torch.maximum(steps, low), high)


def _biases(graph: TorchGraph, layers: Sequence[Layer], device: str) -> dict[str, torch.Tensor]:
    """The biases of these layers, by initializer, to be learned."""
    import torch

    names = {layer.name for layer in layers}
    found = {place.bias for place in graph.places if place.layer in names and place.bias is not None}
    return {name: torch.nn.Parameter(send(graph.bias_values[name], device)) for name in sorted(found)}
