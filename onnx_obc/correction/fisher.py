"""How much each entry of a value counts for the model's outputs: the diagonal of the Fisher information, sampled.

BRECQ (Li et al. 2021, equations 8 to 10) weighs a block's output by E[(∂L/∂z)²]. Without labels, L is the likelihood of
what the dense model itself says: a class drawn from its probabilities, or an output with unit noise. The squared
gradient of one draw for each sample has the Fisher information as its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..core.arrays import Feed, Float32
from ..core.errors import ModelError
from ..graph.layers import Layer
from ..runtime.output_loss import class_scores
from .torch_graph import check_agreement, to_torch

if TYPE_CHECKING:
    import torch


def squared_gradients(
    dense: ir.Model,
    layers: Sequence[Layer],
    values: Sequence[str],
    feeds: Sequence[Feed],
    option: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Float32]]:
    """(∂L/∂z)² of each of these values on each feed, in the value's shape, scaled to a mean of 1 over all feeds.

    dense: the folded float model; layers: of it, at least one before each of the values. A value that no output depends
    on has ones. progress: called with 1 for every feed. Raises ModelError if torch cannot run the model as onnxruntime
    does, or none of its outputs is an array of floats.
    """
    import torch

    scores = class_scores(dense)
    outputs = [str(value.name) for value in dense.graph.outputs if value.producer() is not None]
    wanted = [*dict.fromkeys([*values, *outputs])]
    graph = to_torch(dense, layers, option, wanted)
    check_agreement(graph, dense, feeds[0])
    graph.module.to(device)
    weights = {x.name: torch.tensor(np.ascontiguousarray(x.weight), device=device) for x in layers}
    generator = torch.Generator(device).manual_seed(seed)
    found: list[dict[str, Float32]] = []
    for feed in feeds:
        tracked = {name: weight.requires_grad_() for name, weight in weights.items()}
        given = dict(zip(wanted, graph.run(feed, tracked, {}, device), strict=True))
        ends = {name: given[name] for name in outputs if given[name].is_floating_point()}
        if not ends:
            raise ModelError(f"{option}: none of the model's outputs is an array of floats; leave it out")
        likelihood = [_negative_log(ends[name], name in scores, generator) for name in ends]
        total = torch.stack(likelihood).sum()
        gradients = torch.autograd.grad(total, [given[name] for name in values], allow_unused=True)
        found.append(
            {
                name: np.ones(given[name].shape, np.float32) if g is None else g.square().cpu().numpy()
                for name, g in zip(values, gradients, strict=True)
            }
        )
        progress(1)
    _scale(found, values)
    return found


def _negative_log(output: torch.Tensor, classes: bool, generator: torch.Generator) -> torch.Tensor:
    """The negative logarithm of the likelihood of something drawn as the output says, summed over the samples."""
    import torch

    if not classes:
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        return (output * noise).sum()  # −log N(y; f, 1) at y = f + noise has the gradient −noise
    rows = output.reshape(-1, output.shape[-1])
    probable = bool((rows >= 0).all()) and bool(torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3))
    logs = rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if probable else torch.log_softmax(rows, 1)
    drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)  # (rows, 1)
    return -logs.gather(1, drawn).sum()


def _scale(found: Sequence[dict[str, Float32]], values: Collection[str]) -> None:
    """Bring the mean of each value over all feeds to 1; ones, where it is 0 or not finite."""
    for name in values:
        mean = sum(float(x[name].sum(dtype=np.float64)) for x in found) / sum(x[name].size for x in found)
        for x in found:
            x[name] = x[name] / np.float32(mean) if 0 < mean < np.inf else np.ones_like(x[name])
