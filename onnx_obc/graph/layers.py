"""Finds the layers of a graph and views each weight as a matrix, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..level import Float32


@dataclass(frozen=True)
class Window:
    """How a Conv or ConvTranspose sees its input: a sliding window. Columns are ordered (kernel…, channels/groups)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # begin of every axis, then end of every axis, as in ONNX
    auto_pad: str  # NOTSET, VALID, SAME_UPPER, SAME_LOWER
    groups: int
    transposed: bool  # ConvTranspose
    output_padding: tuple[int, ...] = ()  # ConvTranspose only
    output_shape: tuple[int, ...] = ()  # ConvTranspose only; spatial


@dataclass(frozen=True)
class Contraction:
    """How a MatMul or Gemm sees its input: vectors along `axis`, negative, counted from the end.

    `batch` is the weight's own batch shape: one group for every entry, aligned with the input's leading dimensions
    by broadcasting from the right; () for one group.
    """

    axis: int
    batch: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tap:
    """One layer input: the value's name, and how it unfolds into X (groups, columns, positions).

    Layers with equal taps share one Hessian.
    """

    value: str
    unfold: Window | Contraction


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weight, and the index of the weight among the node's inputs."""

    node: ir.Node
    index: int
    tap: Tap


@dataclass(frozen=True, eq=False)
class Layer:
    """One compressible weight and the nodes that use it. See `matrix` for its view as a weight matrix."""

    name: str
    op: str  # Conv, ConvTranspose, MatMul, Gemm
    uses: tuple[Use, ...]
    weight: Float32  # as the nodes see it (behind any Transpose, Reshape, Cast)
    groups: int
    rows: int
    columns: int
    channels: int  # input channels per group: how many consecutive columns lie at one kernel position

    def matrix(self) -> Float32:
        """The weight as (groups, rows, columns) float32."""
        raise NotImplementedError

    def tensor(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`: (groups, rows, columns) of any dtype back to the shape that the nodes see."""
        raise NotImplementedError


@dataclass(frozen=True)
class LeftOut:
    """A weight that stays as it is, and why."""

    name: str
    op: str
    reason: str


def find_layers(model: ir.Model) -> tuple[list[Layer], list[LeftOut]]:
    """All layers in the order of the graph, and everything with a weight that cannot be one, with the reason."""
    raise NotImplementedError
