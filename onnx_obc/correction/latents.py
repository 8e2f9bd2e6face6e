"""What of a layer moves while it is trained: codes and scales, or kept weights, biases, and the scales of its inputs.

Each says what is trained and how far it can go (`groups`), and what stands in the graph meanwhile (`now`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..core.arrays import Array, Float32
from ..core.solution import Solution
from ..graph.layers import Layer
from .torch_graph import as_seen, send, with_codes

if TYPE_CHECKING:
    import torch

# How far all steps together would go at the first rate; it falls to 0 along a cosine, so half as far at most.
CODE_TRAVEL = 0.4  # steps of the grid
WEIGHT_TRAVEL = 0.8  # of the root mean square of a row
SCALE_TRAVEL = 0.4  # of a scale, of weights or of an activation
BIAS_TRAVEL = 0.4  # of the root mean square of a layer's output
CENTRE = 0.45  # of a step, how far from the middle of its cell a code starts at most


class Bias:
    """A bias in training."""

    def __init__(self, start: Float32, span: float, device: str) -> None:
        import torch

        self._start, self._span = send(start, device), span
        self._moved = torch.nn.Parameter(torch.zeros_like(self._start))

    def groups(self) -> list[tuple[torch.Tensor, float]]:
        """What is trained, each with its travel."""
        return [(self._moved, BIAS_TRAVEL)]

    def now(self) -> torch.Tensor:
        """The bias, in its shape."""
        return self._start + self._moved * self._span


class Scale:
    """The scale of an activation in training; its zero point stays, so that both ends of its range move alike.

    most: what it may be multiplied by at most.
    """

    def __init__(self, start: float, most: float, device: str) -> None:
        import torch

        self._start, self._most = start, most
        self._factor = torch.nn.Parameter(torch.zeros((), device=device))

    def groups(self) -> list[tuple[torch.Tensor, float]]:
        """What is trained, each with its travel."""
        return [(self._factor, SCALE_TRAVEL)]

    def now(self) -> torch.Tensor:
        """The scale."""
        return self._start * (1 + self._factor)

    def keep_in_range(self) -> None:
        """Do not go beyond the largest factor."""
        self._factor.data.clamp_(max=self._most - 1)

    def stretch(self) -> float:
        """What it was multiplied by."""
        return 1 + float(self._factor.detach())


class Weights:
    """A layer's float weights in training; those that were pruned stay 0."""

    def __init__(self, layer: Layer, solution: Solution, device: str) -> None:
        import torch

        weights = solution.weights  # (groups, rows, columns)
        self._layer, self._solution = layer, solution
        kept = np.ones(weights.shape, np.bool_) if solution.mask is None else solution.mask
        self._start, self._unit = send(weights, device), send(rms_of(weights, kept) * kept, device)
        self._moved = torch.nn.Parameter(torch.zeros_like(self._start))

    def groups(self) -> list[tuple[torch.Tensor, float]]:
        """What is trained, each with its travel."""
        return [(self._moved, WEIGHT_TRAVEL)]

    def _matrix(self) -> torch.Tensor:
        return self._start + self._moved * self._unit

    def now(self) -> torch.Tensor:
        """The weight, in the shape that nodes see."""
        return as_seen(self._layer, self._matrix())

    def keep_in_range(self) -> None:
        """There is none."""

    def solution(self) -> Solution:
        """The layer as it is now."""
        return replace(self._solution, weights=self._matrix().detach().cpu().numpy())


class Codes:
    """A layer's codes and scales in training. dense: its weights, (groups, rows, columns)."""

    def __init__(self, layer: Layer, solution: Solution, dense: Float32, shared_scale: bool, device: str) -> None:
        import torch

        grid, codes = solution.grid, solution.codes
        assert grid is not None and codes is not None
        self._layer, self._solution = layer, solution
        scale, zero = grid.spread(*solution.weights.shape[1:])  # (groups, rows, columns) each
        kept = np.ones(codes.shape, np.bool_) if solution.mask is None else solution.mask
        centre = (codes - zero).astype(np.float32)  # of each cell
        start = np.clip(dense / scale, centre - CENTRE, centre + CENTRE) * kept
        unit = np.ones((*codes.shape[:2], 1), np.float32)  # steps of the grid, (groups, rows, 1)
        if solution.mask is not None:  # those that are left make up for zeros, however fine the grid is
            unit = np.maximum(unit, WEIGHT_TRAVEL / CODE_TRAVEL * rms_of(centre, kept))
        self._width = codes.shape[2] if grid.block is None else grid.block
        self._kept = send(kept, device)
        self._low, self._high = (send(end - zero, device) for end in (grid.qmin, grid.qmax))
        self._start, self._unit = send(start, device), send(unit, device)
        self._moved = torch.nn.Parameter(torch.zeros_like(self._start))
        self._scale = send(grid.scale, device)  # (groups, rows), or (groups, rows · blocks)
        shape = (1, 1) if shared_scale else self._scale.shape
        self._factor = torch.nn.Parameter(torch.zeros(shape, device=device))

    def groups(self) -> list[tuple[torch.Tensor, float]]:
        """What is trained, each with its travel."""
        return [(self._moved, CODE_TRAVEL), (self._factor, SCALE_TRAVEL)]

    def _steps(self) -> torch.Tensor:
        return self._start + self._moved * self._unit

    def _whole(self) -> torch.Tensor:
        """How many steps from the zero point every weight lies."""
        import torch

        steps = self._steps()
        rounded = steps + (steps.round() - steps).detach()
        return torch.minimum(torch.maximum(rounded, self._low), self._high) * self._kept

    def now(self) -> torch.Tensor:
        """The weight, in the shape that nodes see."""
        scale = self._scale * (1 + self._factor)
        spread = scale.repeat_interleave(self._width, dim=1).reshape(self._start.shape)
        return as_seen(self._layer, self._whole() * spread)

    def keep_in_range(self) -> None:
        """Bring codes that left the range of the grid back to its ends."""
        import torch

        with torch.no_grad():
            inside = torch.minimum(torch.maximum(self._steps(), self._low - 0.49), self._high + 0.49)
            self._moved.copy_((inside - self._start) / self._unit)

    def solution(self) -> Solution:
        """The layer as it is now."""
        grid = self._solution.grid
        assert grid is not None
        scale = (self._scale * (1 + self._factor.detach())).cpu().numpy()
        grid = replace(grid, scale=np.maximum(scale, np.finfo(np.float32).tiny))
        return with_codes(self._solution, grid, self._whole())


def rms_of(rows: Float32, kept: Array) -> Array:
    """The root mean square of what is kept of each row, (groups, rows, 1)."""
    count = np.maximum(kept.sum(axis=2, keepdims=True), 1)
    rms: Array = np.sqrt(np.square(rows * kept, dtype=np.float64).sum(axis=2, keepdims=True) / count)
    return rms
