"""Pruning and quantizing on a GPU: the functions of `prune`, `quantize` and `inverse` with rows in lockstep, in torch.

Arguments and results are numpy arrays and mean what they mean on the CPU; so do `precision` (float32 without TF32) and
the float64 weights and diagonals. Pivots are the CPU engine's unless two scores lie within rounding of each other: the
order of additions differs. All functions take:
    device:   "cuda", "cuda:1", …, or "cpu", which is for tests: it is much slower than the CPU engine
    memory:   how many bytes the call may use on the device; None asks a GPU what is free, and takes 1 GiB on the CPU
    progress: called with how many rows are finished, or None
and raise RecipeError if torch or the device is missing, or if a single row does not fit its memory. Rows are batched to
fill the memory; a batch that runs out of it is halved and solved again. A row's result does not depend on its batch,
but for the rounding of the matrix products where the library chooses their order by the batch's shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...core.arrays import Bool, Float32, Float64, Int32
from ...core.level import NM, Block, Sparsity
from ...core.solution import Grid
from ..linalg.inverse import Damped, Precision
from ..linalg.threads import RowsDone
from .device import in_batches, send

if TYPE_CHECKING:
    import torch


def prune_order(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    device: str,
    precision: Precision = "auto",
    memory: int | None = None,
    progress: RowsDone | None = None,
) -> tuple[Int32, Float64, int]:
    """Every row's pivots in the order that the exact greedy prunes them, to the end or until N:M holds.

    weights: (groups, rows, columns) float32. Returns (order, losses, width): the pivots, columns or for Block blocks of
    columns, (groups · rows, steps) int32; the loss ½ δᵀHδ that each adds, float64; how many columns a pivot has.
    """
    groups, rows, columns = weights.shape
    base, floor, unit = damped.scaled(precision)
    width = sparsity.size if isinstance(sparsity, Block) else 1
    keep, per = (sparsity.n, sparsity.m) if isinstance(sparsity, NM) else (0, 1)
    base, floor, flat = _whole_blocks(base, floor, weights.reshape(groups * rows, columns), width)
    n = flat.shape[1] // width
    room = np.maximum(np.minimum(per, n - np.arange(0, n, per)) - keep, 0)  # how many each team of `per` may lose
    order = np.empty((groups * rows, room.sum()), np.int32)
    losses = np.empty(order.shape)

    def work(part: np.ndarray) -> None:
        from . import lockstep

        inverse, owner = _send_groups(base, part // rows, device)
        state = lockstep.begin(
            send(flat[part], device).double().view(-1, n, width),
            send(floor[part // rows], device).view(-1, n, width),
            inverse,
            owner,
            index=send(np.arange(n), device).expand(len(part), n),
            gone=send(np.repeat(room == 0, per)[:n], device).repeat(len(part), 1),
            left=send(room, device).repeat(len(part), 1),
        )
        trace = lockstep.eliminate(state, lockstep.prune_rule, per, order.shape[1])
        order[part] = trace.pivot.cpu().numpy()
        losses[part] = trace.losses().cpu().numpy()

    each = _bytes_per_row(flat.shape[1], width, base.itemsize)
    in_batches(work, np.arange(groups * rows), each, device, memory, progress)
    return order, losses * unit.repeat(rows)[:, None], width


def quantize(
    weights: Float32,
    damped: Damped,
    grid: Grid,
    device: str,
    mask: Bool | None = None,
    precision: Precision = "auto",
    memory: int | None = None,
    progress: RowsDone | None = None,
) -> tuple[Int32, Float64]:
    """The integers of the weights by OBQ; where `mask` is False the weight is zero, stays so, and has the zero point.

    weights, mask: (groups, rows, columns). Returns (codes, losses): (groups, rows, columns) int32, and (groups · rows,)
    float64, the ½ δᵀHδ of every row. Rows that hold zeros get their H_KK⁻¹ from the shared inverse by eliminating the
    zeros' columns, as matrix products; they go in the order of how many weights they keep, so that those in a batch
    differ little.
    """
    groups, rows, columns = weights.shape
    base, floor, unit = damped.scaled(precision)
    flat = weights.reshape(groups * rows, columns)
    scale = grid.scale.reshape(-1, 1, 1)
    zero = grid.zero_point.reshape(-1, 1)
    codes = np.repeat(zero, columns, axis=1).astype(np.int32)  # (groups · rows, columns)
    losses = np.empty(groups * rows)
    kept = np.ones(flat.shape, np.bool_) if mask is None else mask.reshape(flat.shape)
    count = kept.sum(axis=1)  # (groups · rows,)

    def work(part: np.ndarray) -> None:
        from . import lockstep
        from .inverse import kept_inverse

        inverse, owner = _send_groups(base, part // rows, device)
        w, low = send(flat[part], device).double(), send(floor[part // rows], device)  # (rows, columns)
        if mask is None:
            index = send(np.arange(columns), device).expand(len(part), columns)
            gone = send(np.zeros((len(part), columns), np.bool_), device)
        else:
            inverse, index, valid = kept_inverse(inverse, owner, send(kept[part], device))
            owner, gone = send(np.arange(len(part)), device), ~valid
            w, low = w.gather(1, index).masked_fill(gone, 0), low.gather(1, index)
        state = lockstep.begin(w[..., None], low[..., None], inverse, owner, index, gone, left=gone[:, :0])
        step, offset = send(scale[part], device), send(zero[part, None].astype(np.float64), device)
        rule = lockstep.quantize_rule(step, offset, grid.qmin, grid.qmax)
        trace = lockstep.eliminate(state, rule, 1, int(count[part].max()))
        pivot, value = trace.pivot.cpu().numpy(), trace.value[..., 0].cpu().numpy()  # (rows, steps)
        r, s = np.nonzero(pivot >= 0)
        codes[part[r], pivot[r, s]] = np.rint(value[r, s] / scale[part[r], 0, 0]) + zero[part[r], 0]
        losses[part] = trace.losses().sum(1).cpu().numpy()

    widest = columns + int(count.max() - count.min())  # what `kept_inverse` begins with, if one batch takes all rows
    each = _bytes_per_row(widest, 1, base.itemsize)
    in_batches(work, np.argsort(count, kind="stable"), each, device, memory, progress)
    return codes.reshape(weights.shape), losses * unit.repeat(rows)


def solve_kept(
    weights: Float32,
    mask: Bool,
    hessian: Float64,
    device: str,
    memory: int | None = None,
    progress: RowsDone | None = None,
) -> Float32:
    """As `prune.solve_kept`: the optimum of the kept weights, in float64, one batched Cholesky factorisation of H_KK.

    weights, mask, result: (groups, rows, columns). hessian: (groups, columns, columns), positive definite.
    """
    groups, rows, columns = weights.shape
    flat, kept = weights.reshape(groups * rows, columns), mask.reshape(groups * rows, columns)
    count = kept.sum(axis=1)
    solved = np.empty_like(flat)

    def work(part: np.ndarray) -> None:
        from .inverse import solve_kept

        h, owner = _send_groups(hessian, part // rows, device)
        w = solve_kept(send(flat[part], device).double(), send(kept[part], device), h, owner)
        solved[part] = w.float().cpu().numpy()

    each = 8 * columns * (5 * columns + 10)
    in_batches(work, np.argsort(count, kind="stable"), each, device, memory, progress)
    return solved.reshape(weights.shape)


def invert(hessian: Float64, device: str, memory: int | None = None) -> Float64:
    """As `inverse.invert`, for all groups at once: (groups, columns, columns), each positive definite.

    Raises numpy's LinAlgError if one of them is singular to rounding.
    """
    inverse = np.empty_like(hessian)

    def work(part: np.ndarray) -> None:
        from .inverse import invert

        inverse[part] = invert(send(hessian[part], device)).cpu().numpy()

    in_batches(work, np.arange(len(hessian)), 48 * hessian.shape[1] ** 2, device, memory, None)
    return inverse


def _whole_blocks(base: np.ndarray, floor: Float64, flat: Float32, width: int) -> tuple[np.ndarray, Float64, Float32]:
    """Columns added until the last block is whole: zero weights on inputs of their own, which change nothing."""
    short = -flat.shape[1] % width
    if short == 0:
        return base, floor, flat
    columns = flat.shape[1]
    padded = np.pad(base, ((0, 0), (0, short), (0, short)))
    padded[:, range(columns, columns + short), range(columns, columns + short)] = 1
    return padded, np.pad(floor, ((0, 0), (0, short)), constant_values=1), np.pad(flat, ((0, 0), (0, short)))


def _send_groups(matrices: np.ndarray, groups: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices of the groups that rows belong to, and for each row the index of its own.

    matrices: (all groups, columns, columns). groups: (rows,) integers.
    """
    used, owner = np.unique(groups, return_inverse=True)
    return send(matrices[used], device), send(owner, device)


def _bytes_per_row(columns: int, width: int, itemsize: int) -> int:
    """The memory that a row takes: three matrices, V and a part of it, vectors and diagonal blocks."""
    return itemsize * columns * (3 * columns + 512) + 8 * columns * (24 + 6 * width)
