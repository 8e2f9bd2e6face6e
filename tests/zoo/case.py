"""What a zoo case is, how its inputs are drawn, and how a torch module becomes a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Feed = dict[str, np.ndarray]
EXAMPLE = {"batch": 2, "tokens": 7, "past": 3, "frames": 40}  # what a module is exported with
FEED = {"batch": 8, "tokens": 10, "past": 5, "frames": 56}  # what it is then fed
FEEDS = 8


@dataclass(frozen=True)
class Case:
    """A model: `build` writes an ONNX file, `feeds` draws calibration batches for it."""

    name: str
    build: Callable[[Path], None]
    feeds: Callable[[np.random.Generator], list[Feed]]


@dataclass(frozen=True)
class Input:
    """A model input. Names in `shape` are free dimensions; floats are normal, integers lie in [low, high)."""

    shape: tuple[int | str, ...]
    high: int | None = None
    low: int = 0

    def draw(self, rng: np.random.Generator, sizes: dict[str, int]) -> np.ndarray:
        shape = [sizes[d] if isinstance(d, str) else d for d in self.shape]
        if self.high is None:
            return rng.standard_normal(shape, dtype=np.float32)
        return rng.integers(self.low, self.high, shape)

    @property
    def free(self) -> dict[int, str]:
        return {axis: d for axis, d in enumerate(self.shape) if isinstance(d, str)}


def feeds(inputs: dict[str, Input]) -> Callable[[np.random.Generator], list[Feed]]:
    return lambda rng: [{name: i.draw(rng, FEED) for name, i in inputs.items()} for _ in range(FEEDS)]


class Call(nn.Module):
    """A module behind plain positional arguments: `call(model, *inputs)` returns a tensor or a tuple of them."""

    def __init__(self, model: nn.Module, call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self.call = call or (lambda model, *inputs: model(*inputs))

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.call(self.model, *inputs)


@torch.no_grad()
def randomize(module: nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    """Weights that keep the signal's size, biases and scales that are not trivial, BatchNorm's own statistics."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(1.5 / parameter[0].numel()) ** 0.5)
        else:
            parameter += 0.1 * torch.randn_like(parameter)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 0.5
    module(*example)
    for norm in norms:
        norm.eval()


def torch_case(
    name: str,
    make: Callable[[], nn.Module],
    inputs: dict[str, Input],
    outputs: Sequence[str] = ("output",),
    *,
    call: Callable[..., Any] | None = None,
    opset: int = 17,
    dynamo: bool = False,
    fold_batchnorm: bool = True,
    external: bool = False,
) -> Case:
    """A module with random weights, exported by the old (TorchScript) or the new (dynamo) exporter."""

    def build(path: Path) -> None:
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        example = tuple(torch.from_numpy(i.draw(rng, EXAMPLE)) for i in inputs.values())
        module = Call(make(), call).eval()
        randomize(module, example)
        options: dict[str, Any] = {}
        if dynamo:
            shapes = tuple(dict.fromkeys(i.free, torch.export.Dim.DYNAMIC) for i in inputs.values())
            options = {"dynamic_shapes": (shapes,), "external_data": external}
        else:
            mode = torch.onnx.TrainingMode
            options = {
                "dynamic_axes": {n: i.free for n, i in inputs.items()},
                "training": mode.EVAL if fold_batchnorm else mode.PRESERVE,
            }
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, example, path, input_names=list(inputs), output_names=list(outputs),
                opset_version=opset, dynamo=dynamo, verbose=False, **options,
            )  # fmt: skip

    return Case(name, build, feeds(inputs))
