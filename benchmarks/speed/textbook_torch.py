"""The published scheme of Optimal Brain Compression in torch, as the paper gives it: what the engine is timed against.

A batch of rows, each with its own full copy of H⁻¹, in lockstep. A step scores all weights, takes the best of every
row, shifts the row's other weights, and downdates its inverse. Nothing ever gets smaller, so all steps cost the same.

weights: (rows, columns). inverse: (columns, columns). Both of the dtype to compute in. Every function yields, step by
step, which columns (or blocks) the rows eliminate: (rows,) int64. Ties go to the lowest column. in_place: subtract the
outer products where they are formed, in one pass; otherwise form them, then subtract, as one would write it down.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def prune(weights: Tensor, inverse: Tensor, keep: int = 0, per: int = 1, in_place: bool = False) -> Iterator[Tensor]:
    """OBC Algorithm 1 to the end; of every `per` columns, which divides their number, `keep` are kept."""
    w, inverses = weights.clone(), inverse.repeat(len(weights), 1, 1)  # (rows, columns), (rows, columns, columns)
    rows, columns = w.shape
    every = torch.arange(rows)
    closed = torch.zeros(rows, columns, dtype=torch.bool)
    left = torch.full((rows, columns // per), per - keep)  # how many columns a group still loses
    for _ in range(columns // per * (per - keep)):
        diagonal = inverses.diagonal(dim1=1, dim2=2)  # (rows, columns)
        p = (w**2 / diagonal).masked_fill_(closed, torch.inf).argmin(dim=1)  # (rows,)
        yield p
        _eliminate(w, inverses, p, w[every, p], in_place)
        w[every, p] = 0
        closed[every, p] = True
        if keep:
            left[every, p // per] -= 1
            full = left[every, p // per] == 0  # (rows,)
            closed.view(rows, -1, per)[every, p // per] |= full[:, None]


def prune_blocks(weights: Tensor, inverse: Tensor, size: int, in_place: bool = False) -> Iterator[Tensor]:
    """OBC equation 5 to the end, in blocks of `size` columns, which divides their number."""
    w, inverses = weights.clone(), inverse.repeat(len(weights), 1, 1)  # (rows, columns), (rows, columns, columns)
    rows, columns = w.shape
    every, blocks = torch.arange(rows), columns // size
    gone = torch.zeros(rows, blocks, dtype=torch.bool)
    identity = torch.eye(size, dtype=w.dtype)
    for _ in range(blocks):
        tiled = inverses.view(rows, blocks, size, blocks, size)
        own = tiled.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (rows, blocks, size, size)
        inner = torch.linalg.inv(torch.where(gone[:, :, None, None], identity, own))  # (rows, blocks, size, size)
        parts = w.view(rows, blocks, size)
        pulls = (inner @ parts[..., None])[..., 0]  # (rows, blocks, size)
        b = (parts * pulls).sum(dim=2).masked_fill_(gone, torch.inf).argmin(dim=1)  # (rows,)
        yield b
        slab = tiled[every, b].reshape(rows, size, columns)  # the blocks' rows of the inverse
        gain = slab.transpose(1, 2) @ inner[every, b]  # (rows, columns, size)
        w -= (gain @ parts[every, b][..., None])[..., 0]
        parts[every, b] = 0
        gone[every, b] = True
        if in_place:
            inverses.baddbmm_(gain, slab, alpha=-1)
        else:
            inverses -= gain @ slab


def quantize(
    weights: Tensor, inverse: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int, codes: Tensor,
    in_place: bool = False,
) -> Iterator[Tensor]:  # fmt: skip
    """OBC Algorithm 3 with the outlier rule. scale, zero: (rows,) float32, int32. codes: (rows, columns), written."""
    w, inverses = weights.clone(), inverse.repeat(len(weights), 1, 1)  # (rows, columns), (rows, columns, columns)
    rows, columns = w.shape
    every = torch.arange(rows)
    done = torch.zeros(rows, columns, dtype=torch.bool)
    step, origin = scale[:, None], zero[:, None]  # (rows, 1)
    half = step.to(w.dtype) / 2
    for _ in range(columns):
        code = ((w / step).round_() + origin).clamp_(qmin, qmax)  # (rows, columns)
        error = (w - (code - origin).float() * step).masked_fill_(done, 0)
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        cheapest = (error**2 / diagonal).masked_fill_(done, torch.inf).argmin(dim=1)  # (rows,)
        largest, farthest = error.abs().max(dim=1)
        p = torch.where(largest > half[:, 0], farthest, cheapest)
        yield p
        codes[every, p] = code[every, p].to(codes.dtype)
        _eliminate(w, inverses, p, error[every, p], in_place)
        done[every, p] = True


def _eliminate(w: Tensor, inverses: Tensor, p: Tensor, error: Tensor, in_place: bool) -> None:
    """Take `error` (rows,) off weight p of each row, shift the others, and remove p from the inverses (equation 3)."""
    every = torch.arange(len(p))
    column = inverses[every, p]  # (rows, columns)
    pivot = column[every, p]  # (rows,)
    w -= column * (error / pivot)[:, None]
    column /= pivot.sqrt()[:, None]
    if in_place:
        inverses.addcmul_(column[:, :, None], column[:, None, :], value=-1)
    else:
        inverses -= column[:, :, None] @ column[:, None, :]
