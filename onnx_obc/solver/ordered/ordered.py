"""The ordered solver, for layers that the exact greedy would take too long for: exact within blocks of columns only.

The columns are sorted once for all rows, by decreasing diagonal of H, and cut into blocks. The blocks are solved one
after the other by the exact greedy, all rows of the layer at a time; what a block's solution gets wrong, the columns of
later blocks make up for, those of earlier ones no longer. With blocks of one column that is GPTQ (Frantar et al. 2022,
section 3) and SparseGPT (Frantar and Alistarh 2023); with a single block it is OBC.

Neither H⁻¹ nor its Cholesky factor is formed. Let H = T Tᵀ with T upper triangular, columns in order. Then
2 · loss = ‖ΔT‖², and for a block b after the columns s, with Δ = weights − solution,

    (ΔT)_b = (Δ_b + Δ_s T_sb T_bb⁻¹) T_bb

so the best values for b, given what has been decided, are w_b + Δ_s T_sb T_bb⁻¹, and what remains is the same problem
for b alone, with T_bb T_bbᵀ for its Hessian (the Schur complement of H on what comes after). Its losses add up to the
layer's. This is the form of LDLQ (Chee et al. 2023, QuIP, section 3.1).

Memory: besides the arguments and the solution, one float32 Δ, and a float64 factor of H if columns must stay together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.arrays import Bool, Float32, Float64, Int32
from ...core.level import NM, Block, Sparsity, Unstructured
from ...core.solution import Grid
from ..exact.prune import prune, solve_kept
from ..exact.quantize import quantize
from ..linalg.inverse import Damped, Precision, damp, factorise, invert_lower
from ..linalg.loss import layer_loss
from ..linalg.threads import RowsDone, one_blas_thread, over_rows
from .refit import refit

BLOCK = 128  # columns solved exactly; twice as many take three times as long, and lose a few per cent less
TILE = 256  # rows of one product of matrices, whatever the threads


@dataclass(frozen=True)
class _Part:
    """One block as a layer of its own: the best values for its columns (groups, rows, block), their Hessian, and which
    columns of the layer they are (groups, 1, block)."""

    weights: Float32
    damped: Damped
    columns: npt.NDArray[np.intp]


def quantize_ordered(
    weights: Float32,
    damped: Damped,
    grid: Grid,
    mask: Bool | None = None,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
) -> tuple[Int32, float]:
    """`quantize` by the ordered solver: the same arguments, results and conventions.

    Up to `BLOCK` columns the result is that of `quantize`. Where `mask` is False the code is the zero point; the weight
    there may be other than zero, and the loss then includes what that costs. The losses of `prune_ordered` and this one
    add up but for tr(Δ_p H Δ_qᵀ) (`inner_product`), which vanishes only at the exact optimum for the mask.
    """
    if weights.shape[2] <= BLOCK and (mask is None or not weights[~mask].any()):
        whole, losses = quantize(weights, damped, grid, mask, threads, precision, progress)
        return whole, float(losses.sum())
    codes = np.empty(weights.shape, np.int32)

    def solve_block(part: _Part) -> tuple[Float32, float]:
        start, kept, loss = part.weights, None, 0.0
        if mask is not None:
            kept = np.take_along_axis(mask, part.columns, axis=2)  # (groups, rows, block)
            start = solve_kept(start, kept, part.damped.hessian, part.damped.inverse, threads)
            loss = layer_loss(part.weights, start, part.damped.hessian)
        own = grid.take(weights.shape[1], weights.shape[2], part.columns)
        chosen, rounding = quantize(start, part.damped, own, kept, threads, precision)
        np.put_along_axis(codes, part.columns, chosen, axis=2)
        return own.dequantize(chosen), loss + float(rounding.sum())

    with one_blas_thread():
        return codes, _sweep(weights, damped, 1, solve_block, threads, precision, progress)


def prune_ordered(
    weights: Float32,
    damped: Damped,
    sparsity: Sparsity,
    threads: int | None = None,
    precision: Precision = "auto",
    progress: RowsDone | None = None,
) -> tuple[Float32, Bool, float]:
    """`prune` by the ordered solver: the same arguments, results and conventions, the same number of weights pruned.

    Unstructured and Block: every block of columns loses the same share, chosen over all rows of the block by `prune`.
    N:M groups and Blocks stay whole; they are sorted by their mean diagonal. Then conjugate gradients bring the kept
    weights to within about a per cent of their optimum for the mask, and lower the loss by as much as they gain.
    Up to `BLOCK` columns the result is that of `prune`.
    """
    width = unit_width(sparsity)
    if weights.shape[2] <= block_columns(width):
        return prune(weights, damped, sparsity, threads, precision, progress)
    solved, mask = np.empty_like(weights), np.empty(weights.shape, np.bool_)
    rows, parts = weights.shape[0] * weights.shape[1], -(-weights.shape[2] // width)
    done = 0  # parts of a row that have had their turn

    def solve_block(part: _Part) -> tuple[Float32, float]:
        nonlocal done
        here = -(-part.columns.shape[2] // width)
        share = sparsity if isinstance(sparsity, NM) else _share(sparsity, rows, parts, done, here)
        new, kept, loss = part.weights, np.ones(part.weights.shape, np.bool_), 0.0
        if isinstance(share, NM) or share.sparsity > 0:
            new, kept, loss = prune(part.weights, part.damped, share, threads, precision)
        np.put_along_axis(solved, part.columns, new, axis=2)
        np.put_along_axis(mask, part.columns, kept, axis=2)
        done += here
        return new, loss

    with one_blas_thread():
        loss = _sweep(weights, damped, width, solve_block, threads, precision, progress)
    gain = refit(weights, solved, mask, damped, threads, precision, progress)
    return solved, mask, loss - gain


def _share(sparsity: Unstructured | Block, rows: int, parts: int, done: int, here: int) -> Unstructured | Block:
    """What the next `here` of a row's `parts` lose, so that in the end round(sparsity · rows · parts) are gone."""
    before, after = (round(sparsity.sparsity * (rows * count)) for count in (done, done + here))
    fraction = (after - before) / (rows * here)
    return Block(sparsity.size, fraction) if isinstance(sparsity, Block) else Unstructured(fraction)


def unit_width(sparsity: Sparsity) -> int:
    """How many consecutive columns the pattern keeps together."""
    if isinstance(sparsity, NM):
        return sparsity.m
    return sparsity.size if isinstance(sparsity, Block) else 1


def block_columns(width: int) -> int:
    """How many columns a block has if every `width` of them stay together."""
    return max(1, BLOCK // width) * width


def _sweep(
    weights: Float32,
    damped: Damped,
    width: int,
    solve_block: Callable[[_Part], tuple[Float32, float]],
    threads: int | None,
    precision: Precision,
    progress: RowsDone | None,
) -> float:
    """Solve block after block; `solve_block` gives a part's solution and loss. Returns the sum of the losses.

    width: how many consecutive columns stay together.
    """
    groups, rows, columns = weights.shape
    order, lower = damped.order, damped.lower
    if width > 1:
        order = np.stack([_order_of_units(np.diagonal(h), width) for h in damped.hessian])  # (groups, columns)
        lower = np.empty_like(damped.hessian)
        for g in range(groups):
            factorise(damped.hessian[g], order[g], lower[g], threads)
    factor = lower[:, ::-1, ::-1]  # T: (groups, columns, columns), upper triangular
    dtype = np.float64 if precision == "float64" else np.float32
    delta = np.empty(weights.shape, dtype)  # Δ, columns in order
    total = 0.0
    for start in range(0, columns, block := block_columns(width)):
        stop = min(start + block, columns)
        own = factor[:, start:stop, start:stop]  # T_bb: (groups, block, block)
        hessian = own @ own.transpose(0, 2, 1)  # (groups, block, block)
        picked = order[:, None, start:stop]  # (groups, 1, block)
        before = np.take_along_axis(weights, picked, axis=2)  # (groups, rows, block)
        best = before.copy()
        if start:
            inverse = np.stack([invert_lower(t[::-1, ::-1]) for t in own])[:, ::-1, ::-1]  # T_bb⁻¹
            panel = (factor[:, :start, start:stop] @ inverse).astype(dtype)  # (groups, start, block)
            _add_products(best, delta[:, :, :start], panel, threads)
        after, loss = solve_block(_Part(best, damp((hessian + hessian.transpose(0, 2, 1)) / 2, 0.0), picked))
        np.subtract(before, after, out=delta[:, :, start:stop], dtype=dtype)
        total += loss
        if progress is not None:
            progress(groups * rows * stop // columns)
    return total


def _add_products(best: Float32, delta: np.ndarray, panel: np.ndarray, threads: int | None) -> None:
    """best += delta @ panel, by tiles of rows: (groups, rows, block) += (groups, rows, s) @ (groups, s, block)."""
    groups, rows, _ = best.shape
    tiles = -(-rows // TILE)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            g, tile = i // tiles, slice(i % tiles * TILE, (i % tiles + 1) * TILE)
            best[g, tile] += delta[g, tile] @ panel[g]

    over_rows(work, groups * tiles, TILE * panel.shape[1] * panel.shape[2], threads)


def _order_of_units(diagonal: Float64, width: int) -> npt.NDArray[np.intp]:
    """The columns, every `width` together, by decreasing mean diagonal; a last, shorter unit comes last."""
    whole = len(diagonal) // width
    means = diagonal[: whole * width].reshape(whole, width).mean(axis=1)  # (whole,)
    first = np.argsort(-means, kind="stable") * width  # (whole,)
    units = (first[:, None] + np.arange(width)).reshape(-1)
    return np.concatenate([units, np.arange(whole * width, len(diagonal))])
