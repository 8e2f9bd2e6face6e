"""The sum X Xᵀ of a convolution of stride 1 over all positions, without unfolding it.

Its blocks are H_ab = Σ_p x(p + o_a) x(p + o_b)ᵀ, where o_a is where tap a of the kernel reads, and p runs over the
output. With q = p + o_a this is Σ_q x(q) x(q + o_b − o_a)ᵀ: but for the border, it depends only on the difference of
the two taps, of which a 3×3 kernel has 13 (up to transposition) for its 45 pairs. The border is exact: the plane is cut
into zones, such that each zone counts wholly or not at all for every tap; a zone's products are added where it counts.
Nothing is subtracted, so that zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from operator import add
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..core.arrays import Array
from ..graph.layers import Window
from .hessian import BLOCK, SINGLE, HessianSum, factor
from .unfold import Index, offsets, output_shape, planes, shape_of

Shift: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]  # two taps of the kernel
Zone: TypeAlias = tuple[tuple[int, int], ...]  # start and stop on every axis

PLENTY = 128  # pixels of a zone that are worth a product in float32 of their own for each image

# What `pays` counts in, is multiply-adds of float32. In that unit, moving a number costs, to X or to a sum
MOVE = 32
CALL = 3000  # … numbers more for every block that is added: what it costs to begin
MOST = 2**23  # zones times pairs of taps: a kernel of 11 × 11 in a large plane has 2**22.9
IMAGES = 32  # … and what all images share is done once for so many


def pays(how: Window, shape: tuple[int, ...]) -> bool:
    """Whether shifted products take less time than unfolding all of an input (N, C, spatial…).

    Unfolding costs, for every output pixel, columns²/2 multiply-adds (twice that in float64) and `columns` moves.
    Shifted products cost, for every pixel of a zone and shift, channels² multiply-adds (twice that in float64) and
    `channels` moves; channels² moves for every product and shift; and for each zone and pair of taps that it counts
    for, channels² + CALL moves every IMAGES images. With several groups there is nothing to gain: moves are all they
    cost. Nor is there with more zones and pairs of taps than MOST, which a kernel about as large as its input has.
    """
    if len(shape) < 3 or any(stride != 1 for stride in how.strides) or prod(how.kernel) == 1 or how.groups > 1:
        return False
    return _pays(how, shape[1:])


@lru_cache(maxsize=1024)
def _pays(how: Window, shape: tuple[int, ...]) -> bool:
    """`pays` for an image (C, spatial…)."""
    channels, (_, columns) = shape[0], shape_of(how, (1, *shape))
    out, taps = output_shape(how, shape[1:]), prod(how.kernel)
    zones = prod(min(2 * kernel + 1, size) for kernel, size in zip(how.kernel, shape[1:], strict=True))  # or fewer
    if zones * taps**2 > MOST:
        return False
    starts = offsets(how, shape[1:])
    found = list(_zones(starts, shape[1:], out))
    pairs = _reads(found, starts, out) @ np.arange(taps, 0, -1)  # (zones,) those (a, b) that count, a ≤ b
    shifts = (prod(2 * kernel - 1 for kernel in how.kernel) + 1) // 2
    shifted = 0.0
    for zone, counted in zip(found, pairs.tolist(), strict=True):
        pixels = prod(stop - start for start, stop in zone)
        products = -(-pixels // BLOCK) if pixels >= PLENTY else 1 / IMAGES
        effort = channels**2 * (1 if pixels >= PLENTY else 2) + MOVE * channels  # of a pixel and shift
        shifted += shifts * (pixels * effort + products * MOVE * channels**2)
        shifted += counted * MOVE * (channels**2 + CALL) / IMAGES
    return shifted < prod(out) * (columns**2 / (2 if columns >= SINGLE else 1) + MOVE * columns)


def add_shifted(total: HessianSum, value: Array, how: Window) -> None:
    """Add all positions of an input (N, C, spatial…) to the sum. `how` has stride 1 and one group.

    Large zones of float32 inputs are multiplied as HessianSum does with many columns, by the image, so that nothing
    depends on the batch; small zones and other inputs are multiplied in float64.
    """
    size = value.shape[2:]
    taps, out = offsets(how, size), output_shape(how, size)
    shifts = _shifts(taps)
    reach = np.abs(list(shifts)).max(axis=0)  # (axes,)
    part = planes(value, how, -reach, reach + size)  # (N, padded…, C)
    zones = list(_zones(taps, size, out))
    for zone, reads in zip(zones, _reads(zones, taps, out).tolist(), strict=True):
        kept = {shift: [pair for pair in pairs if reads[pair[0]]] for shift, pairs in shifts.items()}
        if any(kept.values()):
            _add_zone(total, part, reach, zone, {shift: pairs for shift, pairs in kept.items() if pairs})
    total.positions += len(value) * prod(out)


def _add_zone(total: HessianSum, part: Array, reach: Index, zone: Zone, shifts: dict[Shift, list[Pair]]) -> None:
    """Multiply the pixels of a zone with those at each shift from them, the first of which is 0; add where they count.

    part: (N, padded…, C), `reach` zeros around each plane.
    """
    channels = part.shape[-1]
    size = [stop - start for start, stop in zone]
    large = prod(size) >= PLENTY
    dtype = np.float32 if large and part.dtype in (np.float16, np.float32) else np.float64
    images = 1 if large else max(1, BLOCK // prod(size))
    rows = -(-size[0] // -(-prod(size) // BLOCK))  # about BLOCK pixels at a time
    blocks = np.zeros((len(shifts) * channels, channels))  # (shifts · C, C)
    for first in range(0, len(part), images):
        for top in range(0, size[0], rows):
            here = part[first : first + images]
            shape = (len(here), min(rows, size[0] - top), *size[1:], len(shifts), channels)
            n = prod(shape[:-2])
            x = np.zeros((-(-n // 32) * 32, len(shifts) * channels), dtype)
            pixels = x[:n].reshape(shape)  # (images, rows, zone…, shifts, C)
            for number, shift in enumerate(shifts):
                corner = [start + r + s for (start, _), r, s in zip(zone, reach.tolist(), shift, strict=True)]
                corner[0] += top
                where = map(slice, corner, map(add, corner, shape[1:]))
                pixels[..., number, :] = here[(slice(None), *where)]
            x = factor(x)  # (n, shifts · C)
            blocks += x.T @ x[:, :channels]
    for number, pairs in enumerate(shifts.values()):
        block = blocks[number * channels : (number + 1) * channels]  # (C, C)
        for a, b in pairs:
            total.lower[0, b * channels : (b + 1) * channels, a * channels : (a + 1) * channels] += block


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


def _reads(zones: Sequence[Zone], taps: Index, out: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Whether each tap of the kernel reads each zone, (zones, taps); if not, it reads none of its pixels."""
    start, stop = np.moveaxis(np.array(zones).reshape(len(zones), -1, 2), 2, 0)[..., None]  # (zones, axes, 1) each
    begin, end = taps.T, (taps + np.array(out)).T  # (axes, taps) each
    inside: npt.NDArray[np.bool_] = ((begin <= start) & (stop <= end)).all(axis=1)
    return inside
