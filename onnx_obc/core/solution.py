"""What a layer becomes: the grid of its codes, and its weights at a level."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .arrays import Bool, Float32, Int32
from .level import Level


@dataclass(frozen=True)
class Grid:
    """The values that a quantized row may take: `(code − zero_point) · scale`.

    scale: (groups, rows) float32, positive. zero_point: (groups, rows) int32, all zero if `symmetric`. With `block`,
    every so many columns have their own: (groups, rows · blocks), those of a row one after the other.
    Symmetric codes are signed, −2^(bits−1) … 2^(bits−1)−1; asymmetric codes are unsigned, 0 … 2^bits−1, and the zero
    point lies among them, so that zero is always exactly representable.
    """

    scale: Float32
    zero_point: Int32
    bits: int
    symmetric: bool
    block: int | None = None

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return int(self.qmin + 2**self.bits - 1)

    def dequantize(self, codes: Int32) -> Float32:
        """The weights of integer codes (groups, rows, columns), by the arithmetic of ONNX DequantizeLinear."""
        parts = codes.reshape(*self.scale.shape, -1)  # (groups, rows, columns), or (groups, rows · blocks, block)
        shifted = (parts - self.zero_point[:, :, None]).astype(np.float32)
        return np.asarray((shifted * self.scale[:, :, None]).reshape(codes.shape))

    def spread(self, rows: int, columns: int) -> tuple[Float32, Int32]:
        """The scale and zero point of every weight, (groups, rows, columns) each."""
        width = columns if self.block is None else self.block
        shape = (self.scale.shape[0], rows, columns)
        scale, zero = np.repeat(self.scale, width, axis=1), np.repeat(self.zero_point, width, axis=1)
        return scale.reshape(shape), zero.reshape(shape)

    def take(self, rows: int, columns: int, chosen: npt.NDArray[np.intp]) -> Grid:
        """The grid of these columns, (groups, rows or 1, k): itself where a row has one, else one for each weight."""
        if self.block is None:
            return self
        where = np.broadcast_to(chosen, (chosen.shape[0], rows, chosen.shape[2]))
        steps, zeros = self.spread(rows, columns)
        scale, zero = np.take_along_axis(steps, where, axis=2), np.take_along_axis(zeros, where, axis=2)
        return Grid(scale.reshape(len(scale), -1), zero.reshape(len(zero), -1), self.bits, self.symmetric, 1)


@dataclass(frozen=True)
class Solution:
    """A layer solved at a level.

    weights: (groups, rows, columns) float32; exactly `grid.dequantize(codes)` where the level quantizes.
    codes:   (groups, rows, columns) int32, or None for float weights.
    grid:    the rows' grids, or None for float weights.
    mask:    (groups, rows, columns) bool, True where a weight was kept, or None for a dense level.
    loss:    the layer loss that the solver's own bookkeeping predicts, ½ tr(ΔHΔᵀ) for the damped H, summed over rows
             and groups.
    loss_greedy: the same without refinement, or None if nothing was refined.
    bias:    (groups · rows,) float32, what is to be added to the layer's outputs beside, or None; losses leave it out.
    """

    level: Level
    weights: Float32
    codes: Int32 | None
    grid: Grid | None
    mask: Bool | None
    loss: float
    loss_greedy: float | None = None
    bias: Float32 | None = None

    def recoded(self, grid: Grid, codes: Int32) -> Solution:
        """The same with another grid and other codes."""
        return replace(self, grid=grid, codes=codes, weights=grid.dequantize(codes))
