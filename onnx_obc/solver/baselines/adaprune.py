"""AdaPrune (Hubara et al. 2021), iterated (Frantar, Kurtic and Alistarh 2021): prune by magnitude, refit, go on.

What stays is fitted to the dense layer's outputs, min ‖WX − ŴX‖² with the pruned weights at zero, by gradient steps
(Adam) as its authors do, or by the least squares that these approximate.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...core.arrays import Bool, Float32
from ...core.level import NM, Block, Sparsity, Unstructured
from ..exact.prune import solve_kept
from ..linalg.inverse import Damped
from ..linalg.threads import RowsDone, one_blas_thread
from .magnitude import magnitude_mask

STEPS = 8  # of sparsity, each with a fraction as many weights as the one before
RATE = 1e-3  # of Adam: how far a weight moves in the first steps, where a layer's weights have the mean square 0.01


def adaprune(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    iterations: int | None = None,
    threads: int | None = None,
    progress: RowsDone | None = None,
) -> tuple[Float32, Bool]:
    """The weights, zero where the mask is False, and the mask; both (groups, rows, columns).

    The sparsity rises in steps; each prunes by the magnitude that the last one's refitted weights have, and starts from
    these. iterations: gradient steps of Adam at each of these; None: least squares.
    progress: called with the rows done, of groups · rows.
    """
    current, rows = weights, weights.shape[0] * weights.shape[1]
    path = list(_path(sparsity))
    mask = np.ones(weights.shape, np.bool_)
    for number, step in enumerate(path, 1):
        mask = magnitude_mask(np.where(mask, current, 0), step)
        if iterations is None:
            current = solve_kept(weights, mask, damped.hessian, damped.inverse, threads)
        else:
            current = refit_by_gradient(weights, np.where(mask, current, 0), mask, damped, iterations)
        if progress is not None:
            progress(rows * number // len(path))
    return current, mask


def refit_by_gradient(weights: Float32, start: Float32, mask: Bool, damped: Damped, iterations: int) -> Float32:
    """The kept weights after so many steps of Adam down ½ tr(ΔHΔᵀ), at a rate that falls to 0 along a line.

    All of the layer's positions are in H, so that a step sees the whole of the data. weights, start, mask, result:
    (groups, rows, columns).
    """
    scale = np.diagonal(damped.hessian, axis1=1, axis2=2).mean(axis=1)[:, None, None]  # Adam asks for no unit
    hessian = (damped.hessian / scale).astype(np.float32)  # (groups, columns, columns)
    moved = np.array(start)
    first, second = np.zeros_like(moved), np.zeros_like(moved)  # Adam's moments
    rate = RATE * 10 * float(np.sqrt(np.mean(weights.astype(np.float64) ** 2)))
    with one_blas_thread():
        for number in range(1, iterations + 1):
            gradient = np.where(mask, (moved - weights) @ hessian, 0)
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            size = np.sqrt(second / np.float32(1 - 0.999**number)) + np.finfo(np.float32).tiny
            now = rate * (1 - (number - 1) / iterations)
            moved -= np.float32(now / (1 - 0.9**number)) * first / size
    return np.where(mask, moved, np.float32(0))


def _path(sparsity: Sparsity) -> Iterator[Sparsity]:
    """The sparsities on the way, the last of which is the one that is wanted."""
    if isinstance(sparsity, NM):
        yield from (NM(n, sparsity.m) for n in range(sparsity.m - 1, sparsity.n - 1, -1))
        return
    for step in range(1, STEPS):
        part = 1 - (1 - sparsity.sparsity) ** (step / STEPS)
        yield Block(sparsity.size, part) if isinstance(sparsity, Block) else Unstructured(part)
    yield sparsity
