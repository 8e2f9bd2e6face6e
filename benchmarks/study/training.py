"""Fine-tuning a compressed classifier: quantization with learned steps (LSQ), and gradual magnitude pruning.

Both as Kuzmin et al. (2023) compare them. LSQ is Esser et al. (2020), the pruning schedule Zhu and Gupta (2017). A
network is an ONNX model in torch, BatchNorm not folded, whose layers' weights pass a `Rule` before they are used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.evaluation import CIFAR_MEAN, CIFAR_STD, cifar_images
from onnx_obc.correction.torch_graph import check_agreement, to_torch
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.study.distributions import sample
from onnx_obc.study.theory import codes, quantize

PADDING = 4  # pixels around an image that crops may show, black
LEAST = 0.1  # of its start: where a learned step ends, which Adam could take through zero


@dataclass(frozen=True)
class Schedule:
    """How long and how fast is trained; rates fall along a cosine to `end` of them.

    rate, momentum: of SGD, for weights, biases and BatchNorm. scale_rate: of Adam, for LSQ's steps. pruned: the share
    of the epochs in which is pruned, every `every` iterations.
    """

    epochs: int = 20
    batch: int = 128
    rate: float = 0.01
    momentum: float = 0.9
    scale_rate: float = 1e-5
    end: float = 0.01
    pruned: float = 0.75
    every: int = 50
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Images:
    """pixels: (n, 3, 32, 32) uint8. labels: (n,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def read_images(archive: Path, share: int = 1) -> Images:
    """Every image of a CIFAR archive, or every `share`-th."""
    pixels, labels = cifar_images(archive)
    return Images(torch.from_numpy(pixels[::share].transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels[::share]))


def normalised(pixels: Tensor) -> Tensor:
    """What the model gets: (n, 3, 32, 32) float32, channels last in memory."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CIFAR_MEAN, CIFAR_STD))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image padded, cropped at random and flipped at random. (n, 3, h, w) uint8, both."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (PADDING,) * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator)  # (n, 1) each
    flip = torch.randint(2, (n, 1), generator=generator).bool()
    rows = top + torch.arange(height)  # (n, h)
    columns = left + torch.where(flip, torch.arange(width).flip(0), torch.arange(width))  # (n, w)
    image, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Rule(nn.Module):
    """What the layers' weights become before they are used: here what they are."""

    def forward(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return list(weights)

    def update(self, weights: Sequence[Tensor], done: int, schedule: Schedule, iterations: int) -> None:
        """Called after `done` of so many iterations."""


class Lsq(Rule):
    """One grid for each weight, with a step that is learned from where it loses least of the weight.

    scales: (layers,), the steps. ends: the lowest and highest code of each layer.
    """

    least: Tensor

    def __init__(self, weights: Sequence[Tensor], bits: int) -> None:
        super().__init__()
        spread = [sample(weight.detach().numpy()) for weight in weights]
        grids = [codes(bits, "int", each.signed) for each in spread]
        self.ends = [(float(grid[0]), float(grid[-1])) for grid in grids]
        start = torch.tensor([quantize(each, bits).delta for each in spread], dtype=torch.float32)
        self.scales = nn.Parameter(start)
        self.register_buffer("least", LEAST * start)

    def forward(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [lsq(w, s, *ends) for w, s, ends in zip(weights, self.scales, self.ends, strict=True)]

    def update(self, weights: Sequence[Tensor], done: int, schedule: Schedule, iterations: int) -> None:
        with torch.no_grad():
            self.scales.clamp_(min=self.least)


def lsq(weight: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """The weight on the grid scale · (low, …, high), the gradient passing straight through the rounding.

    It is that of clip(w / s) with the rounding's shift held: 0 for a clipped weight; for the step round(w / s) − w / s,
    or the end where clipped, summed and divided by √(weights · high).
    """
    factor = 1 / math.sqrt(weight.numel() * high)
    step = scale.detach() + factor * (scale - scale.detach())  # the value is exactly that of the scale
    place = (weight / step).clamp(low, high)
    return (place + (place.round() - place).detach()) * step


class Gradual(Rule):
    """Masks that grow to one density in every layer, by magnitude; what is pruned stays so."""

    def __init__(self, weights: Sequence[Tensor], density: float) -> None:
        super().__init__()
        self.density = density
        for index, weight in enumerate(weights):
            self.register_buffer(f"mask{index}", torch.ones_like(weight))

    @property
    def masks(self) -> list[Tensor]:
        """1 where a weight is kept, 0 where it is pruned."""
        return list(self.buffers())

    def forward(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [w * mask for w, mask in zip(weights, self.masks, strict=True)]

    def update(self, weights: Sequence[Tensor], done: int, schedule: Schedule, iterations: int) -> None:
        last = round(schedule.pruned * iterations)
        if done == last or (done < last and done % schedule.every == 0):
            self.prune(weights, scheduled(1 - self.density, done / last))

    def prune(self, weights: Sequence[Tensor], sparsity: float) -> None:
        """Extend every mask to this share of its weight, round(share · weights) of them."""
        for weight, mask in zip(weights, self.masks, strict=True):
            size = torch.where(mask > 0, weight.detach().abs(), -1.0).flatten()  # what is pruned comes first
            kept = torch.ones_like(size)
            kept[size.argsort()[: round(sparsity * size.numel())]] = 0
            mask.mul_(kept.view(mask.shape))


def scheduled(sparsity: float, progress: float) -> float:
    """The sparsity at a share of the time that pruning has, 0 to 1: s · (1 − (1 − t)³)."""
    return sparsity * (1 - (1 - progress) ** 3)


def check_rules() -> None:
    """Raise AssertionError unless the gradients of LSQ and the masks of gradual pruning are what they should be."""
    torch.manual_seed(0)
    weight = torch.randn(64, 9, dtype=torch.float64)
    for bits, scale in ((2, 0.9), (4, 0.3), (8, 0.02)):
        _check_gradients(weight, scale, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    _check_masks(weight, 0.125)


def _check_gradients(weight: Tensor, scale: float, low: float, high: float) -> None:
    """Those of LSQ against differences of what they are the gradient of, where the rounding's shift is held."""
    place = weight / scale
    inside, shift = (place > low) & (place < high), place.clamp(low, high).round() - place.clamp(low, high)
    sent = torch.randn_like(weight)
    step = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    latent = weight.clone().requires_grad_(True)
    (lsq(latent, step, low, high) * sent).sum().backward()  # type: ignore[no-untyped-call]

    def held(s: float) -> float:
        return float((((weight / s).clamp(low, high) + shift) * s * sent).sum())

    little = 1e-6 * scale
    slope = (held(scale + little) - held(scale - little)) / (2 * little) / math.sqrt(weight.numel() * high)
    assert step.grad is not None and math.isclose(float(step.grad), slope, rel_tol=1e-4), (step.grad, slope)
    assert latent.grad is not None and torch.allclose(latent.grad, sent * inside)
    assert 0 < int(inside.sum()) < inside.numel()


def _check_masks(weight: Tensor, kept: float) -> None:
    """Those of the full schedule, under weights that move: at the scheduled sparsity, and never growing back."""
    schedule, total, last = Schedule(), 39 * 20, 39 * 15
    rule = Gradual([weight], kept)
    for done in range(1, total + 1):
        before = rule.masks[0].clone()
        rule.update([weight + 0.1 * torch.randn_like(weight)], done, schedule, total)
        at = last if done >= last else done // schedule.every * schedule.every
        assert not (rule.masks[0] > before).any()
        assert int((rule.masks[0] == 0).sum()) == round(scheduled(1 - kept, at / last) * weight.numel()), done


class Network(nn.Module):
    """A model whose layers' weights pass a rule; its last output, the logits (n, classes). paths: of those weights."""

    def __init__(self, inner: nn.Module, paths: Sequence[str], make: Callable[[Sequence[Tensor]], Rule]) -> None:
        super().__init__()
        self.inner, self.paths = inner, tuple(paths)
        self.rule = make(self.weights())

    def weights(self) -> list[Tensor]:
        """The weights as they are trained, before the rule."""
        return [self.inner.get_parameter(path) for path in self.paths]

    def used(self) -> list[Tensor]:
        """The weights as they are used."""
        with torch.no_grad():
            return list(self.rule(self.weights()))

    def forward(self, images: Tensor) -> Tensor:
        state = dict(zip(self.paths, self.rule(self.weights()), strict=True))
        output: Tensor = torch.func.functional_call(self.inner, state, images)[-1]
        return output


def open_network(model: Path, make: Callable[[Sequence[Tensor]], Rule]) -> Network:
    """An ONNX classifier whose last layer gives its logits, to be trained. make: the rule for its layers' weights."""
    dense = read_model(model)
    layers, _ = find_layers(dense)
    graph = to_torch(dense, layers)
    check_agreement(graph, dense, {graph.inputs[0]: np.zeros((2, 3, 32, 32), np.float32)})
    paths = [slot.path for layer in layers for slot in graph.weights[layer.name]]
    graph.module.requires_grad_(True)
    graph.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(graph.module, paths, make)


def accuracy(network: Network, train: Images, test: Images, batch: int = 250) -> float:
    """Top-1 on `test`, with the BatchNorm statistics of `train` under the weights as they are now."""
    estimate_statistics(network, train, batch)
    network.eval()
    with torch.no_grad():
        predicted = [network(normalised(part)).argmax(1) for part in torch.split(test.pixels, batch)]  # (batch,) each
    return float((torch.cat(predicted) == test.labels).double().mean())


def estimate_statistics(network: Network, train: Images, batch: int = 250) -> None:
    """Set every BatchNorm's mean and variance to their averages over mixed batches of the images, not augmented."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    network.train()
    with torch.no_grad():
        for picked in torch.split(order, batch):
            if len(picked) == min(batch, len(train)):  # not the rest, whose variances would count as much
                network(normalised(train.pixels[picked]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass(frozen=True)
class Trained:
    """losses: the mean cross-entropy of every epoch, while it ran. seconds: of all epochs."""

    losses: tuple[float, ...]
    seconds: float


def train(
    network: Network,
    images: Images,
    schedule: Schedule,
    checkpoint: Path,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Trained:
    """Train weights, biases, BatchNorm and what the rule learns, from `checkpoint` on if there is one.

    The checkpoint is written after every epoch. An epoch's order and augmentation depend on the seed and its number
    alone, so all rules see the same images. progress: gets the number of epochs that are done, and the last one's loss.
    """
    learned = list(network.rule.parameters())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(network.inner.parameters(), lr=schedule.rate, momentum=schedule.momentum)
    ]
    if learned:
        optimizers.append(torch.optim.Adam(learned, lr=schedule.scale_rate))
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    losses, seconds = _resume(network, optimizers, schedule, checkpoint)
    each = len(images) // schedule.batch  # iterations of an epoch; the rest of its order is left out
    total = each * schedule.epochs
    for epoch in range(len(losses), schedule.epochs):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(1000 * schedule.seed + epoch)
        order = torch.randperm(len(images), generator=generator)[: each * schedule.batch]
        network.train()
        summed = 0.0
        for index, picked in enumerate(torch.split(order, schedule.batch)):
            done = epoch * each + index
            fall = schedule.end + (1 - schedule.end) * (1 + math.cos(math.pi * done / total)) / 2
            for group, rate in zip((g for o in optimizers for g in o.param_groups), rates, strict=True):
                group["lr"] = rate * fall
            loss = F.cross_entropy(
                network(normalised(augmented(images.pixels[picked], generator))), images.labels[picked]
            )
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            network.rule.update(network.weights(), done + 1, schedule, total)
            summed += float(loss.detach())
        losses.append(summed / each)
        seconds += time.perf_counter() - began
        _keep(network, optimizers, schedule, checkpoint, losses, seconds)
        progress(epoch + 1, losses[-1])
    return Trained(tuple(losses), seconds)


def _keep(
    network: Network,
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Schedule,
    checkpoint: Path,
    losses: Sequence[float],
    seconds: float,
) -> None:
    scratch = checkpoint.with_name(f".{checkpoint.name}.tmp")
    state = {
        "schedule": asdict(schedule),
        "network": network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "losses": list(losses),
        "seconds": seconds,
    }
    torch.save(state, scratch)
    scratch.replace(checkpoint)


def _resume(
    network: Network, optimizers: Sequence[torch.optim.Optimizer], schedule: Schedule, checkpoint: Path
) -> tuple[list[float], float]:
    """Bring back what a checkpoint of the same schedule holds: the losses of its epochs, and their seconds."""
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if state is None or state["schedule"] != asdict(schedule):
        return [], 0.0
    network.load_state_dict(state["network"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return list(state["losses"]), float(state["seconds"])
