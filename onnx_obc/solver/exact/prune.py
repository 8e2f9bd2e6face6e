"""Prune a layer to a sparsity pattern by the exact greedy, then re-solve what was kept."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from scipy.linalg import lapack

from ...core.arrays import Bool, Float32, Float64, Int32
from ...core.level import NM, Block, Sparsity
from ..gpu import batches
from ..linalg.inverse import Damped, Precision
from ..linalg.threads import RowsDone, over_rows
from .blocks import prune_blocks
from .cut import cut, row_weights
from .elimination import Workspace
from .greedy import prune_rows

Trace: TypeAlias = tuple[Int32, Float64, int]  # order, losses, width: see `greedy_order`


def prune(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
    device: str = "cpu",
) -> tuple[Float32, Bool, float]:
    """Choose what to prune by the exact greedy, row by row, and give the kept weights their optimum.

    Unstructured and Block: every row is pruned to the end; then the whole layer is cut, over all rows of all groups, to
    lose round(sparsity · weights or blocks) in all (OBC section 4; halves round to even); `cut` says where. N:M: every
    row on its own; of a last, shorter group of columns at most `n` are kept.

    Returns (weights, mask, loss): the weights, exactly zero where mask is False and otherwise the minimum of
    ½ tr(ΔHΔᵀ) for that mask, both (groups, rows, columns); and the loss predicted, the sum of the greedy's own
    increments, which does not use the final weights. progress: as `over_rows`, twice over the rows. device: "cpu", or a
    GPU as `gpu.device` names it.
    """
    trace = prune_trace(weights, damped, sparsity, threads, precision, progress, device)
    return cut_trace(weights, damped, sparsity, trace, threads, progress, device)


def prune_trace(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
    device: str = "cpu",
) -> Trace:
    """Every row pruned to the end. One trace serves all fractions of an Unstructured pattern, or of blocks of one size.

    Arguments as for `prune`; progress: once over the rows. See `greedy_order` for what is returned.
    """
    if device == "cpu":
        return greedy_order(weights, damped, sparsity, threads, precision, progress)
    return batches.prune_order(weights, damped, sparsity, device, precision, None, progress)


def cut_trace(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    trace: Trace,
    threads: int | None = None,
    progress: RowsDone | None = None,
    device: str = "cpu",
) -> tuple[Float32, Bool, float]:
    """The layer at one sparsity of a trace: what `prune` returns. progress: once over the rows."""
    mask, loss = mask_of(trace, weights, damped, sparsity)
    if device != "cpu":
        return batches.solve_kept(weights, mask, damped.hessian, device, None, progress), mask, loss
    return solve_kept(weights, mask, damped.hessian, damped.inverse, threads, progress), mask, loss


def mask_of(trace: Trace, weights: Float32, damped: Damped, sparsity: Sparsity) -> tuple[Bool, float]:
    """What is kept at `sparsity`, (groups, rows, columns), and the loss of pruning the rest; see `greedy_order`."""
    order, losses, width = trace
    columns = weights.shape[2]
    depth = np.full(len(order), order.shape[1])
    if not isinstance(sparsity, NM):
        worth = row_weights(weights, damped.hessian)  # (groups · rows,)
        depth = cut(losses, round(sparsity.sparsity * losses.size), worth)
    pruned = np.arange(order.shape[1]) < depth[:, None]  # (groups · rows, steps)
    kept = np.ones((len(order), -(-columns // width)), np.bool_)
    kept[np.nonzero(pruned)[0], order[pruned]] = False
    return np.repeat(kept, width, axis=1)[:, :columns].reshape(weights.shape), float(losses[pruned].sum())


def solve_kept(
    weights: Float32,
    mask: Bool,
    hessian: Float64,
    inverse: Float64 | None = None,
    threads: int | None = None,
    progress: RowsDone | None = None,
) -> Float32:
    """The weights that minimise ½ tr(ΔHΔᵀ) among those that are zero where `mask` is False.

    In float64, by a Cholesky factorisation for every row that lost something: of the Hessian's kept rows and columns,
    or, if the inverse is given and there are fewer of those, of the inverse's lost ones.
    weights, mask, result: (groups, rows, columns). hessian, inverse: (groups, columns, columns), positive definite.
    """
    _, rows, columns = weights.shape
    solved = np.zeros_like(weights)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            g, r = divmod(i, rows)
            kept, lost = np.flatnonzero(mask[g, r]), np.flatnonzero(~mask[g, r])
            w = weights[g, r].astype(np.float64)
            if inverse is not None and 0 < lost.size < kept.size:  # w_K −= G_KL G_LL⁻¹ w_L for G = H⁻¹
                half = inverse[g].take(lost, axis=0)  # (lost, columns)
                w -= _solve_positive(half.take(lost, axis=1), w[lost]) @ half
            elif kept.size and lost.size:  # w_K += H_KK⁻¹ H_KL w_L
                half = hessian[g].take(kept, axis=0)  # (kept, columns)
                w[kept] += _solve_positive(half.take(kept, axis=1), half @ np.where(mask[g, r], 0, w))
            solved[g, r, kept] = w[kept]

    over_rows(work, weights.shape[0] * rows, columns**3 // 6, threads, progress)
    return solved


def _solve_positive(matrix: Float64, right: Float64) -> Float64:
    """The solution of a positive definite system, overwriting it. Raises numpy's LinAlgError if it is not."""
    _, solution, fault = lapack.dposv(matrix.T, right, lower=1, overwrite_a=1)
    if fault:
        raise np.linalg.LinAlgError("not positive definite")
    return np.asarray(solution, np.float64)


def greedy_order(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    threads: int | None,
    precision: Precision,
    progress: RowsDone | None,
) -> tuple[Int32, Float64, int]:
    """Every row's pivots and the loss of each (groups · rows, steps), and how many columns one pivot has."""
    groups, rows, columns = weights.shape
    base, floor, unit = damped.scaled(precision)
    flat = np.array(weights.reshape(groups * rows, columns), order="C")
    keep, per, width = 0, 1, 1
    if isinstance(sparsity, Block):
        width = sparsity.size
    elif isinstance(sparsity, NM):
        keep, per = sparsity.n, sparsity.m
    steps = columns // per * (per - keep) + max(columns % per - keep, 0) if width == 1 else -(-columns // width)
    order = np.empty((groups * rows, steps), np.int32)
    losses = np.empty((groups * rows, steps))

    space = Workspace(columns, base.dtype, width)

    def work(start: int, stop: int) -> None:
        if width > 1:
            prune_blocks(flat, base, floor, width, space.room, space.factor, start, stop, order, losses)
        else:
            prune_rows(flat, base, floor, keep, per, space.room, space.factor, start, stop, order, losses)

    over_rows(work, groups * rows, columns**3 // 6, threads, progress)
    return order, losses * unit.repeat(rows)[:, None], width
