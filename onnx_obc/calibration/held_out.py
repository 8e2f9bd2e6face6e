"""Sums a layer's inputs in two parts: what the damping of the Hessian is fitted on, and what it is judged on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ..core.arrays import Bool, Float64
from ..solver.linalg.damping import choose_damping
from .hessian import HessianSum

EVERY = 4  # one sample in so many is held out
_RUNS = 64  # neighbours may be copies of one image: they go together, in so many runs of equal length
_TILE = 256


def held_samples(first: int, count: int, slots: int, samples: int) -> Bool:
    """Which slots of a batch of `count` samples from `first` on, of `samples` in all, are held out: (slots,).

    Every fourth run of samples is. A batch whose samples do not lie along the first axis, 1 slot, is taken as a whole.
    """
    if slots != count:
        return np.full(slots, first // count % EVERY == EVERY - 1)
    run = max(1, samples // _RUNS)
    return np.asarray(np.arange(first, first + count) // run % EVERY == EVERY - 1)


def pieces(held: Bool, each: int, start: int, n: int) -> Iterator[tuple[slice, bool]]:
    """The vectors start … start + n − 1 of a batch with `each` in a slot, cut where `held` changes: slices of these."""
    of = held[np.arange(start, start + n) // each]  # (n,)
    cuts = [0, *(np.flatnonzero(of[1:] != of[:-1]) + 1).tolist(), n]
    for begin, end in pairwise(cuts):
        if end > begin:
            yield slice(begin, end), bool(of[begin])


def join(fitted: HessianSum, held: HessianSum) -> tuple[Float64, float | None]:
    """The Hessian of both parts, in place of the first, and the damping that it is to have; ends both sums.

    None if a part has no positions: then nothing can be judged.
    """
    if fitted.positions == 0 or held.positions == 0:
        return (held if fitted.positions == 0 else fitted).mean(), None
    hessian, other = fitted.mean(), held.mean()
    damping = choose_damping(hessian, other)
    share = held.positions / (fitted.positions + held.positions)
    for begin in range(0, fitted.columns, _TILE):
        rows = slice(begin, begin + _TILE)
        hessian[:, rows] *= 1 - share
        hessian[:, rows] += share * other[:, rows]
    return hessian, damping
