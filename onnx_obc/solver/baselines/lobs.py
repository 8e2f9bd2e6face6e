"""L-OBS (Dong, Chen and Pan 2017): every weight is scored once, and the lowest scores of a layer go.

The score of a weight is what it costs to lose it alone, w²/(2 [H⁻¹]pp), and what its loss changes elsewhere is
−(w / [H⁻¹]pp) H⁻¹ e_p (equation 5 there). As in its authors' code, weights go in the order of their scores, each with
what it has become by then, but with the inverse that all started from: what is gone moves again, and is set to zero in
the end.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ...core.level import Sparsity
from .mask import in_parts, mask_of_scores, width_of


def prune_lobs(weights: Float32, inverse: Float64, sparsity: Sparsity) -> tuple[Float32, Bool]:
    """The weights, zero where the mask is False, and the mask; both (groups, rows, columns).

    weights: (groups, rows, columns). inverse: of the damped Hessian, (groups, columns, columns).
    """
    groups, rows, columns = weights.shape
    width, room = width_of(sparsity), -columns % width_of(sparsity)
    blocks, parts = _blocks(inverse, width), in_parts(weights, width)
    scores = _scores(parts, blocks)
    mask = mask_of_scores(scores, sparsity, columns)
    moved = parts.reshape(groups, rows, -1)  # (groups, rows, parts · width)
    for g in range(groups):
        padded = np.pad(inverse[g], ((0, room), (0, room)))
        _remove(moved[g], padded, blocks[g], scores[g], ~mask[g, :, ::width])
    return np.where(mask, moved[:, :, :columns], 0).astype(np.float32), mask


def lobs_scores(weights: Float32, inverse: Float64, width: int = 1) -> Float64:
    """What it costs to lose every `width` consecutive columns of a row, and no others: ½ w_P [H⁻¹]_PP⁻¹ w_Pᵀ.

    (groups, rows, parts), in units of the layer loss; the last part may be shorter. Arguments as for `prune_lobs`.
    """
    return _scores(in_parts(weights, width), _blocks(inverse, width))


def _scores(parts: Float64, blocks: Float64) -> Float64:
    """½ w_P [H⁻¹]_PP⁻¹ w_Pᵀ, (groups, rows, parts). parts: (groups, rows, parts, width); blocks: see `_blocks`."""
    return np.asarray(0.5 * np.einsum("grpi,gpij,grpj->grp", parts, np.linalg.inv(blocks), parts))


def _remove(w: Float64, inverse: Float64, blocks: Float64, scores: Float64, gone: Bool) -> None:
    """Take the parts that go out of all rows, in place, each row's lowest score first.

    w: (rows, parts · width). inverse: (parts · width, parts · width). blocks: (parts, width, width). scores, gone:
    (rows, parts).
    """
    width = blocks.shape[1]
    order = np.argsort(np.where(gone, scores, np.inf), axis=1, kind="stable")  # (rows, parts), those that go in front
    counts = gone.sum(axis=1)
    within = np.arange(width)
    for step in range(int(counts.max(initial=0))):
        rows = np.flatnonzero(counts > step)
        parts = order[rows, step]
        columns = parts[:, None] * width + within  # (rows, width)
        values = np.take_along_axis(w[rows], columns, axis=1)  # (rows, width)
        changes = np.linalg.solve(blocks[parts], values[:, :, None])  # (rows, width, 1)
        w[rows] -= (changes.transpose(0, 2, 1) @ inverse[columns])[:, 0]


def _blocks(inverse: Float64, width: int) -> Float64:
    """The inverse among every `width` consecutive columns, (groups, parts, width, width); the unit matrix beyond."""
    groups, columns = inverse.shape[:2]
    parts = -(-columns // width)
    blocks = np.tile(np.eye(width), (groups, parts, 1, 1))
    for part in range(parts):
        here = slice(part * width, min((part + 1) * width, columns))
        size = here.stop - here.start
        blocks[:, part, :size, :size] = inverse[:, here, here]
    return blocks
