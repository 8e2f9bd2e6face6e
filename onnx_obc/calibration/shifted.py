"""The sum X Xᵀ of a convolution of stride 1 over all positions, without unfolding it.

Its blocks are H_ab = Σ_p x(p + o_a) x(p + o_b)ᵀ, where o_a is where tap a of the kernel reads, and p runs over the
output. With q = p + o_a this is Σ_q x(q) x(q + o_b − o_a)ᵀ: but for the border, it depends only on the difference of
the two taps, of which a 3×3 kernel has 13 (up to transposition) for its 45 pairs. The border is exact: the plane is cut
into zones, such that each zone counts wholly or not at all for every tap; a zone's products are added where it counts.
Nothing is subtracted, so that zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from math import prod
from operator import add
from typing import TypeAlias

import numpy as np

from ..graph.layers import Window
from .hessian import SINGLE, HessianSum
from .unfold import CHUNK_ELEMENTS, Array, Index, offsets, output_shape, planes, positions_of, shape_of

Shift: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]  # two taps of the kernel
Zone: TypeAlias = tuple[tuple[int, int], ...]  # start and stop on every axis

# What `pays` counts, in multiply-adds of float64: moving one number, to X or to the sum, costs as much as
MOVE = 16
IMAGES = 32  # … and sums are added to once for so many images


def pays(how: Window, shape: tuple[int, ...]) -> bool:
    """Whether shifted products take less time than unfolding all of an input (N, C, spatial…).

    Unfolding costs, for every output pixel, columns²/2 multiply-adds (half that in float32) and `columns` moves.
    Shifted products cost, for every input pixel and shift, channels² multiply-adds and `channels` moves; and for each
    zone and pair of taps that it counts for, channels² moves every IMAGES images. All that times the groups.
    """
    if len(shape) < 3 or any(stride != 1 for stride in how.strides) or prod(how.kernel) == 1:
        return False
    groups, columns = shape_of(how, shape)
    channels = shape[1] // groups
    taps, out = offsets(how, shape[2:]), output_shape(how, shape[2:])
    shifts = _shifts(taps)
    starts = [taps[a] for pairs in shifts.values() for a, _ in pairs]  # of all pairs
    counted = sum(_counts(zone, start, out) for zone in _zones(taps, shape[2:], out) for start in starts)
    unfolded = prod(out) * (columns**2 / (4 if groups == 1 and columns >= SINGLE else 2) + MOVE * columns)
    pixels = prod(shape[2:]) * len(shifts) * (channels**2 + MOVE * channels)
    return pixels + MOVE * counted * channels**2 / IMAGES < unfolded


def add_shifted(total: HessianSum, value: Array, how: Window) -> None:
    """Add all positions of an input (N, C, spatial…) to the sum. `how` has stride 1; padding and dilation are free."""
    size, groups = value.shape[2:], how.groups
    taps, out = offsets(how, size), output_shape(how, size)
    channels = value.shape[1] // groups
    shifts = _shifts(taps)
    reach = np.abs(list(shifts)).max(axis=0)  # (axes,)
    images = max(1, CHUNK_ELEMENTS // max(prod(size) * len(shifts) * value.shape[1], 1))
    total.positions += prod(positions_of(how, value.shape, len(value)))
    for start in range(0, len(value), images):
        part = planes(value[start : start + images], how, -reach, reach + size).astype(np.float64)
        part = np.moveaxis(part.reshape(*part.shape[:-1], groups, channels), -2, 0)  # (groups, n, padded…, C/groups)
        for zone in _zones(taps, size, out):
            kept = {
                shift: [pair for pair in pairs if _counts(zone, taps[pair[0]], out)] for shift, pairs in shifts.items()
            }
            _add_zone(total, part, reach, zone, {shift: pairs for shift, pairs in kept.items() if pairs})


def _add_zone(total: HessianSum, part: Array, reach: Index, zone: Zone, shifts: dict[Shift, list[Pair]]) -> None:
    """Multiply the pixels of a zone with those at each shift from them, and add where they count.

    part: (groups, n, padded…, channels) float64, `reach` zeros around each plane.
    """
    groups, channels = part.shape[0], part.shape[-1]
    size = [stop - start for start, stop in zone]
    rows = max(1, CHUNK_ELEMENTS // max(part.shape[1] * prod(size[1:]) * len(shifts) * groups * channels, 1))

    def pixels(shift: Shift, top: int, bottom: int) -> Array:
        first = [start + r + s for (start, _), r, s in zip(zone, reach, shift, strict=True)]
        where = [slice(first[0] + top, first[0] + bottom), *map(slice, first[1:], map(add, first[1:], size[1:]))]
        return part[(slice(None), slice(None), *where)]  # (groups, n, zone…, channels)

    for top in range(0, size[0] if shifts else 0, rows):
        bottom = min(top + rows, size[0])
        here = pixels((0,) * len(size), top, bottom)
        there = np.empty((*here.shape[:-1], len(shifts), channels))  # (groups, n, zone…, shifts, channels)
        for number, shift in enumerate(shifts):
            there[..., number, :] = pixels(shift, top, bottom)
        there = there.reshape(groups, -1, len(shifts) * channels)  # (groups, pixels, shifts · channels)
        blocks = there.transpose(0, 2, 1) @ here.reshape(groups, -1, channels)  # (groups, shifts · channels, channels)
        for number, pairs in enumerate(shifts.values()):
            block = blocks[:, number * channels : (number + 1) * channels]  # (groups, channels, channels)
            for a, b in pairs:
                total.lower[:, b * channels : (b + 1) * channels, a * channels : (a + 1) * channels] += block


def _shifts(taps: Index) -> dict[Shift, list[Pair]]:
    """The differences between taps (kernel positions, axes), and the pairs (a, b), a ≤ b, of each."""
    result: dict[Shift, list[Pair]] = {}
    for b in range(len(taps)):
        for a in range(b + 1):
            result.setdefault(tuple((taps[b] - taps[a]).tolist()), []).append((a, b))
    return result


def _zones(taps: Index, size: tuple[int, ...], out: tuple[int, ...]) -> Iterator[Zone]:
    """The plane cut wherever a tap begins or ceases to read."""
    axes = []
    for length, n, starts in zip(size, out, taps.T, strict=True):
        cuts = {0, length, *np.clip(starts, 0, length).tolist(), *np.clip(starts + n, 0, length).tolist()}
        axes.append(list(pairwise(sorted(cuts))))
    return product(*axes)


def _counts(zone: Zone, tap: Index, out: tuple[int, ...]) -> bool:
    """Whether this tap of the kernel reads the zone; if not, it reads none of its pixels."""
    bounds = zip(zone, tap.tolist(), out, strict=True)
    return all(begin <= start and stop <= begin + length for (start, stop), begin, length in bounds)
