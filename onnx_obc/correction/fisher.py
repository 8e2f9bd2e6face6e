"""How much the entries of a block's output count for the model's: the diagonal of the Fisher information, sampled.

BRECQ (Li et al. 2021, equations 8 to 10) weighs the squared error of a block's output by (∂L/∂z)². Without labels, L is
the likelihood of what the dense model itself says: a class drawn from its probabilities, or an output with unit noise,
whose squared gradient has the Fisher information as its mean. As in the authors' code, L is a mean over the samples of
a feed, and 1 is added to the size of each gradient before it is squared: that much every entry counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..core.arrays import Feed, Float32
from ..core.errors import ModelError
from ..graph.layers import Layer
from ..runtime.output_loss import class_scores, of_classes
from .torch_graph import check_agreement, one_thread, to_torch

if TYPE_CHECKING:
    import torch


@one_thread()
def fisher_weights(
    dense: ir.Model,
    layers: Sequence[Layer],
    value: str,
    feeds: Sequence[Feed],
    option: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> list[Float32]:
    """(1 + |∂L/∂z|)² of a value on each feed, in the value's shape; ones where no output depends on it.

    dense: the folded float model; layers: of it, at least one before the value. progress: called with 1 for every feed.
    Raises ModelError if torch cannot run the model as onnxruntime does, or none of its outputs is an array of floats.
    """
    import torch

    scores = class_scores(dense)
    outputs = [str(output.name) for output in dense.graph.outputs if output.producer() is not None]
    wanted = [*dict.fromkeys([value, *outputs])]
    graph = to_torch(dense, layers, option, wanted)
    check_agreement(graph, dense, feeds[0])
    graph.module.to(device)
    weights = {x.name: torch.tensor(np.ascontiguousarray(x.weight), device=device) for x in layers}
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for feed in feeds:
        tracked = {name: weight.requires_grad_() for name, weight in weights.items()}
        given = dict(zip(wanted, graph.run(feed, tracked, {}, device), strict=True))
        ends = [(given[name], name in scores) for name in outputs if given[name].is_floating_point()]
        if not ends:
            raise ModelError(f"{option}: none of the model's outputs is an array of floats; leave it out")
        samples = max(len(next(iter(feed.values()))), 1)
        total = torch.stack([_negative_log(output, classes, generator) for output, classes in ends]).sum() / samples
        (gradient,) = torch.autograd.grad(total, [given[value]], allow_unused=True)
        size = np.zeros(given[value].shape, np.float32) if gradient is None else gradient.abs().cpu().numpy()
        found.append(np.square(1 + size))
        progress(1)
    return found


def _negative_log(output: torch.Tensor, classes: bool, generator: torch.Generator) -> torch.Tensor:
    """The negative logarithm of the likelihood of something drawn as the output says, summed over the samples."""
    import torch

    if not (classes and of_classes(tuple(output.shape))):
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        return (output * noise).sum()  # −log N(y; f, 1) at y = f + noise has the gradient −noise
    rows = output.reshape(-1, output.shape[-1])
    probable = bool((rows >= 0).all()) and bool(torch.allclose(rows.sum(1), rows.new_ones(()), atol=1e-3))
    logs = rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if probable else torch.log_softmax(rows, 1)
    drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)  # (rows, 1)
    return -logs.gather(1, drawn).sum()
