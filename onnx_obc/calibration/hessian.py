"""Unfolds a layer's input into X and accumulates the Hessian H = 2 X Xᵀ / n.

A layer's input is seen as `slots × positions` vectors: one slot for every sample of the batch (or one in all, where the
samples do not lie along the first axis), and one position for every place where the layer reads its input. X is held
position by position, (groups, n, columns), which is Xᵀ of the paper, since that is how patches are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dsyrk

from ..graph.layers import Contraction, Window
from ..level import Float64

Index: TypeAlias = npt.NDArray[np.intp]
Array: TypeAlias = npt.NDArray[Any]

CHUNK_ELEMENTS = 2**23  # of X at a time: 64 MiB of float64


class HessianSum:
    """The running sum X Xᵀ of one tap, float64, whatever the size of the batches that it comes in."""

    def __init__(self, groups: int, columns: int) -> None:
        self._sum: Float64 = np.zeros((groups, columns, columns))  # (groups, columns, columns)
        self.columns = columns
        self.positions = 0

    def add(self, x: Array) -> None:
        """Add vectors x (groups, n, columns)."""
        groups, n, columns = x.shape
        self.positions += n
        if groups == 1:
            # dsyrk writes one triangle of a Fortran-ordered matrix; x is passed as its transpose, (columns, n).
            total = dsyrk(2.0, x[0].astype(np.float64, copy=False).T, beta=1.0, c=self._sum[0].T, overwrite_c=1)
            self._sum[0] = total.T
            return
        x = x.astype(np.float64, copy=False)
        for start in range(0, groups, _step := max(1, 2**22 // (columns * columns))):
            part = x[start : start + _step]
            self._sum[start : start + _step] += 2 * (part.transpose(0, 2, 1) @ part)

    def mean(self) -> Float64:
        """H = 2 X Xᵀ / n, (groups, columns, columns) float64, symmetric."""
        lower = np.tril(self._sum)
        return (lower + np.tril(self._sum, -1).transpose(0, 2, 1)) / max(self.positions, 1)


def shape_of(unfold: Window | Contraction, shape: tuple[int, ...]) -> tuple[int, int]:
    """(groups, columns) of X for an input of this shape."""
    if isinstance(unfold, Window):
        return unfold.groups, prod(unfold.kernel) * (shape[1] // unfold.groups)
    return prod(unfold.batch), shape[unfold.axis]


def positions_of(unfold: Window | Contraction, shape: tuple[int, ...], count: int) -> tuple[int, int]:
    """(slots, positions in each) of an input of this shape that holds `count` samples."""
    if isinstance(unfold, Window):
        total = shape[0] * prod(_output_shape(unfold, shape[2:]))
        return (count, total // count) if shape[0] % count == 0 else (1, total)
    full, batch_axes = _broadcast(unfold, shape)
    free = [size for axis, size in enumerate(full) if axis not in batch_axes]
    vectors = prod(free)
    sample_first = bool(free) and 0 not in batch_axes and len(shape) > 1 and full[0] % count == 0
    return (count, vectors // count) if sample_first else (1, vectors)


def pick_positions(positions: int, take: int, seed: int, samples: range) -> Index | None:
    """`take` of `positions` for every sample, drawn evenly: one from each of `take` equal strata. None: all of them.

    (samples, take). What is drawn for a sample depends on the seed and its index alone, not on its batch.
    """
    if take >= positions:
        return None
    edges = np.arange(take + 1) * positions // take  # (take + 1,)
    picks = np.empty((len(samples), take), dtype=np.intp)
    for row, sample in enumerate(samples):
        picks[row] = np.random.default_rng([seed, sample]).integers(edges[:-1], edges[1:])
    return picks


def unfold(value: Array, how: Window | Contraction, picks: Index | None, slots: int) -> Iterator[Array]:
    """The vectors of a layer's input, in chunks (groups, n, columns). `picks`: (slots, take) positions, or None."""
    groups, columns = shape_of(how, value.shape)
    _, positions = positions_of(how, value.shape, slots)
    if picks is None:
        flat: Index = np.arange(slots * positions, dtype=np.intp)
    else:
        flat = (picks + np.arange(len(picks))[:, None] * positions).ravel()  # (slots · take,)
    if isinstance(how, Window):
        gather = _window_gather(value, how, everything=picks is None)
    else:
        gather = _contraction_gather(value, how)
    step = max(1, CHUNK_ELEMENTS // max(groups * columns, 1))
    for start in range(0, len(flat), step):
        yield gather(flat[start : start + step])


def _contraction_gather(value: Array, how: Contraction) -> Callable[[Index], Array]:
    full, batch_axes = _broadcast(how, value.shape)
    if value.ndim == 1:
        vectors = value[None, None]  # (1, 1, columns)
    else:
        x = np.moveaxis(value, how.axis, -1)  # (lead…, M, columns)
        x = np.broadcast_to(x, (*full, x.shape[-1]))
        x = np.moveaxis(x, batch_axes, range(len(batch_axes)))  # (batch…, rest…, columns)
        vectors = x.reshape(prod(how.batch), -1, x.shape[-1])  # (groups, all positions, columns)
    return lambda index: vectors[:, index]


def _broadcast(how: Contraction, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input's shape without its columns, broadcast against the weight's batch, and which axes are the batch's.

    The last axis is the vectors' own (M of an M × K operand); in front of it stand the leading axes.
    """
    if len(shape) == 1:
        return (1,), ()
    lead, vectors = shape[:-2], shape[-1] if how.axis == -2 else shape[-2]
    full = (*np.broadcast_shapes(lead, how.batch), vectors)
    first = len(full) - 1 - len(how.batch)
    return full, tuple(first + axis for axis, size in enumerate(how.batch) if size > 1)


def _window_gather(value: Array, how: Window, everything: bool) -> Callable[[Index], Array]:
    size = value.shape[2:]
    out, padding = _output_shape(how, size), _paddings(how, size)
    column = (-1, 1, 1)
    taps = np.indices(how.kernel).reshape(len(out), 1, -1)  # (axes, 1, kernel positions)
    if how.transposed:  # a convolution of stride 1 over the input with zeros between its values, its kernel mirrored
        taps = np.array(how.kernel).reshape(column) - 1 - taps
    taps = taps * np.array(how.dilations).reshape(column) - np.array([begin for begin, _ in padding]).reshape(column)
    sizes, strides = np.array(size).reshape(column), np.array(how.strides).reshape(column)

    pixels = np.moveaxis(value.reshape(*value.shape[:2], -1), 1, 2)  # (N, spatial, C)
    if everything:  # then every pixel is read several times: worth bringing its channels together
        pixels = np.ascontiguousarray(pixels)

    def gather(index: Index) -> Array:
        image, position = np.divmod(index, prod(out))
        corner = np.array(np.unravel_index(position, out))[:, :, None]  # (axes, n, 1)
        if how.transposed:
            at, between = np.divmod(corner + taps, strides)  # (axes, n, kernel positions)
            inside = ((at >= 0) & (at < sizes) & (between == 0)).all(axis=0)
        else:
            at = corner * strides + taps  # (axes, n, kernel positions)
            inside = ((at >= 0) & (at < sizes)).all(axis=0)  # (n, kernel positions)
        where = np.ravel_multi_index(tuple(np.where(inside, at, 0)), size)
        patches = pixels[image[:, None], where]  # (n, kernel positions, C)
        patches[~inside] = 0
        patches = patches.reshape(*patches.shape[:2], how.groups, -1).transpose(2, 0, 1, 3)
        x: Array = patches.reshape(how.groups, len(index), -1)
        return x  # (groups, n, kernel positions · C/groups)

    return gather


def _output_shape(how: Window, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial shape of the layer's output."""
    padding, strides = _paddings(how, spatial), how.strides
    if how.transposed:
        strides = (1,) * len(spatial)
        spatial = tuple((size - 1) * stride + 1 for size, stride in zip(spatial, how.strides, strict=True))
    return tuple(
        (size + before + after - (kernel - 1) * dilation - 1) // stride + 1
        for size, (before, after), kernel, dilation, stride in zip(
            spatial, padding, how.kernel, how.dilations, strides, strict=True
        )
    )


def _paddings(how: Window, spatial: tuple[int, ...]) -> list[tuple[int, int]]:
    """Zeros to put before and after every spatial axis (negative: crop), so that the window slides without padding."""
    result = []
    for axis, size in enumerate(spatial):
        stride, reach = how.strides[axis], (how.kernel[axis] - 1) * how.dilations[axis]
        same = how.auto_pad.startswith("SAME")
        if how.transposed:
            extra = how.output_padding[axis] if how.output_padding else 0
            if how.output_shape or same:
                full = (size - 1) * stride + extra + reach + 1
                total = full - (how.output_shape[axis] if how.output_shape else size * stride)
                positive = max(total, 0)  # onnxruntime appends to an output that is too small, if its shape is given
                begin = positive // 2 if how.auto_pad == "SAME_UPPER" else positive - positive // 2
                end = (total if how.output_shape else positive) - begin
            elif how.auto_pad == "VALID":
                begin = end = 0
            else:
                begin, end = how.pads[axis], how.pads[axis + len(spatial)]
            result.append((reach - begin, reach - end + extra))
        elif same:
            total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
            begin = total // 2 if how.auto_pad == "SAME_UPPER" else total - total // 2
            result.append((begin, total - begin))
        elif how.auto_pad == "VALID":
            result.append((0, 0))
        else:
            result.append((how.pads[axis], how.pads[axis + len(spatial)]))
    return result
