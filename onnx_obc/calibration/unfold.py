"""Unfolds a layer's input into X, and draws the positions that are taken.

A layer's input is seen as `slots × positions` vectors: one slot for every sample of the batch (or one in all, where the
samples do not lie along the first axis), and one position for every place where the layer reads its input. X is held
position by position, (groups, n, columns), which is Xᵀ of the paper, since that is how patches are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.arrays import Array
from ..graph.layers import Contraction, Window

Index: TypeAlias = npt.NDArray[np.intp]

CHUNK_ELEMENTS = 2**22  # of X at a time: 16 MiB of float32


def shape_of(unfold: Window | Contraction, shape: tuple[int, ...]) -> tuple[int, int]:
    """(groups, columns) of X for an input of this shape."""
    if isinstance(unfold, Window):
        return unfold.groups, prod(unfold.kernel) * (shape[1] // unfold.groups)
    return prod(unfold.batch), shape[unfold.along(len(shape))]


def positions_of(unfold: Window | Contraction, shape: tuple[int, ...], count: int) -> tuple[int, int]:
    """(slots, positions in each) of an input of this shape that holds `count` samples."""
    if isinstance(unfold, Window):
        total = shape[0] * prod(output_shape(unfold, shape[2:]))
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
    generator = np.random.default_rng(0)
    for row, sample in enumerate(samples):
        generator.bit_generator.state = _random_state(seed, sample)
        picks[row] = generator.integers(edges[:-1], edges[1:])
    return picks


@lru_cache(maxsize=4096)  # every layer draws for the same samples
def _random_state(seed: int, sample: int) -> Any:
    return np.random.default_rng([seed, sample]).bit_generator.state


def unfold(value: Array, how: Window | Contraction, picks: Index | None, slots: int) -> Iterator[Array]:
    """The vectors of a layer's input, in chunks (groups, n, columns). `picks`: (slots, take) positions, or None."""
    _, positions = positions_of(how, value.shape, slots)
    flat = None  # (n,) of all slots' positions
    if picks is not None:
        flat = (picks + np.arange(len(picks))[:, None] * positions).ravel()
    if isinstance(how, Contraction):
        yield from _vectors(value, how, flat)
    elif flat is None:
        yield from _all_windows(value, how)
    else:
        yield from _picked_windows(value, how, flat)


def finite_positions(*vectors: Array) -> npt.NDArray[np.bool_]:
    """At which positions of all these (groups, n, columns) no value is NaN or infinite: (n,)."""
    good: npt.NDArray[np.bool_] = np.logical_and.reduce([np.isfinite(x).all(axis=(0, 2)) for x in vectors])
    return good


# ------------------------------------------------ matrix products


def _vectors(value: Array, how: Contraction, flat: Index | None) -> Iterator[Array]:
    full, batch_axes = _broadcast(how, value.shape)
    if value.ndim == 1:
        vectors = value[None, None]  # (1, 1, columns)
    else:
        x = np.moveaxis(value, how.axis, -1)  # (lead…, M, columns)
        x = np.broadcast_to(x, (*full, x.shape[-1]))
        x = np.moveaxis(x, batch_axes, range(len(batch_axes)))  # (batch…, rest…, columns)
        vectors = x.reshape(prod(how.batch), -1, x.shape[-1])  # (groups, all positions, columns)
    step = max(1, CHUNK_ELEMENTS // max(vectors.shape[0] * vectors.shape[2], 1))
    for start in range(0, vectors.shape[1] if flat is None else len(flat), step):
        part = slice(start, start + step)
        yield vectors[:, part] if flat is None else vectors.take(flat[part], axis=1)


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


# ------------------------------------------------ convolutions
#
# A ConvTranspose reads its input as a convolution of stride 1 does, with zeros between the values and its kernel
# mirrored. What is called a plane below has these zeros, and its coordinates count them.


def _all_windows(value: Array, how: Window) -> Iterator[Array]:
    """Every window: for each tap of the kernel, a strided slice of the planes."""
    size, groups = value.shape[2:], how.groups
    out, taps = output_shape(how, size), offsets(how, size)
    strides = (1,) * len(size) if how.transposed else how.strides
    channels = value.shape[1] // groups
    per_row = max(prod(out[1:]) * len(taps) * value.shape[1], 1)  # elements of X for one index of the first axis
    images = max(1, CHUNK_ELEMENTS // max(out[0] * per_row, 1))
    rows = max(1, CHUNK_ELEMENTS // per_row)
    first_tap = taps.min(axis=0)  # (axes,)
    reach = taps.max(axis=0) - first_tap  # (axes,)
    for start in range(0, len(value), images):
        for top in range(0, out[0], rows):
            count = (min(top + rows, out[0]) - top, *out[1:])
            low = first_tap + np.array([top * strides[0], *[0] * (len(out) - 1)])
            high = low + reach + [(n - 1) * stride + 1 for n, stride in zip(count, strides, strict=True)]
            part = planes(value[start : start + images], how, low, high)  # (n, high − low…, C)
            x = np.empty((groups, len(part), *count, len(taps), channels), value.dtype)
            for tap, corner in enumerate(taps - first_tap):
                ends = [c + (n - 1) * stride + 1 for c, n, stride in zip(corner, count, strides, strict=True)]
                where = map(slice, corner, ends, strides)
                pixels = part[(slice(None), *where)]  # (n, out…, C)
                x[..., tap, :] = np.moveaxis(pixels.reshape(*pixels.shape[:-1], groups, channels), -2, 0)
            yield x.reshape(groups, -1, len(taps) * channels)  # (groups, n, kernel positions · C/groups)


def planes(value: Array, how: Window, low: Index, high: Index) -> Array:
    """The part [low, high) of the planes of an input (N, C, spatial…), zero outside of it: (N, high − low…, C)."""
    between = how.strides if how.transposed else (1,) * len(low)
    channels_last = np.moveaxis(value, 1, -1)  # (N, spatial…, C)
    result = np.zeros((len(value), *(high - low), value.shape[1]), value.dtype)
    source, target = [slice(None)], [slice(None)]
    for size, step, begin, end in zip(value.shape[2:], between, low.tolist(), high.tolist(), strict=True):
        first, last = max(0, -(-begin // step)), min(size, -(-end // step))
        source.append(slice(first, max(first, last)))
        target.append(slice(first * step - begin, max(first, last) * step - begin, step))
    result[tuple(target)] = channels_last[tuple(source)]
    return result


def _picked_windows(value: Array, how: Window, flat: Index) -> Iterator[Array]:
    """The windows at these positions, counted over all images."""
    size, groups = value.shape[2:], how.groups
    out, taps = output_shape(how, size), offsets(how, size).T[:, None]  # taps: (axes, 1, kernel positions)
    sizes, strides = np.array(size)[:, None, None], np.array(how.strides)[:, None, None]
    pixels = np.moveaxis(value.reshape(*value.shape[:2], -1), 1, 2)  # (N, spatial, C)
    together = len(flat) * taps.shape[2] > prod(pixels.shape[:2])  # pixels are read more than once on average …
    if together:  # … which pays for bringing their channels together; the last pixel is what padding reads
        joined = np.zeros((prod(pixels.shape[:2]) + 1, value.shape[1]), value.dtype)
        joined[:-1].reshape(pixels.shape)[...] = pixels
    step = max(1, CHUNK_ELEMENTS // max(taps.shape[2] * value.shape[1], 1))
    for start in range(0, len(flat), step):
        image, position = np.divmod(flat[start : start + step], prod(out))
        corner = np.array(np.unravel_index(position, out))[:, :, None]  # (axes, n, 1)
        if how.transposed:
            at, between = np.divmod(corner + taps, strides)  # (axes, n, kernel positions)
            inside = ((at >= 0) & (at < sizes) & (between == 0)).all(axis=0)
        else:
            at = corner * strides + taps  # (axes, n, kernel positions)
            inside = ((at >= 0) & (at < sizes)).all(axis=0)  # (n, kernel positions)
        where = np.ravel_multi_index(tuple(np.where(inside, at, 0)), size)
        if together:
            patches = joined.take(np.where(inside, image[:, None] * pixels.shape[1] + where, len(joined) - 1), axis=0)
        else:
            patches = pixels[image[:, None], where]  # (n, kernel positions, C)
            patches[~inside] = 0
        patches = patches.reshape(*patches.shape[:2], groups, -1).transpose(2, 0, 1, 3)
        yield patches.reshape(groups, len(image), -1)  # (groups, n, kernel positions · C/groups)


def offsets(how: Window, spatial: tuple[int, ...]) -> Index:
    """Where each tap reads the plane, less the output's position times the stride: (kernel positions, axes)."""
    taps = np.indices(how.kernel).reshape(len(spatial), -1).T  # (kernel positions, axes)
    if how.transposed:
        taps = np.array(how.kernel) - 1 - taps
    begin = np.array([before for before, _ in _paddings(how, spatial)])
    result: Index = taps * np.array(how.dilations) - begin
    return result


def output_shape(how: Window, spatial: tuple[int, ...]) -> tuple[int, ...]:
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
