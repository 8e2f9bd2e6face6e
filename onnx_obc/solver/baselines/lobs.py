"""L-OBS (Dong, Chen and Pan 2017): every weight is scored once, and the lowest scores go at once.

The score of a weight is what it costs to lose it alone, w²/(2 [H⁻¹]pp), and what its loss changes elsewhere is
−(w / [H⁻¹]pp) H⁻¹ e_p (equation 5 there). Neither knows that others go as well: the changes are simply added up, and
what was to be zero is set to zero again.
"""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ...core.level import Sparsity
from .mask import mask_of_scores, width_of


def prune_lobs(weights: Float32, inverse: Float64, sparsity: Sparsity) -> tuple[Float32, Bool]:
    """The weights, zero where the mask is False, and the mask; both (groups, rows, columns).

    weights: (groups, rows, columns). inverse: of the damped Hessian, (groups, columns, columns).
    """
    changes, scores = _alone(weights, inverse, width_of(sparsity))
    mask = mask_of_scores(scores, sparsity, weights.shape[2])
    moved = weights - np.where(mask, 0, changes) @ inverse  # (groups, rows, columns) float64
    return np.where(mask, moved, 0).astype(np.float32), mask


def lobs_scores(weights: Float32, inverse: Float64, width: int = 1) -> Float64:
    """What it costs to lose every `width` consecutive columns of a row, and no others: ½ w_P [H⁻¹]_PP⁻¹ w_Pᵀ.

    (groups, rows, parts), in units of the layer loss; the last part may be shorter. Arguments as for `prune_lobs`.
    """
    return _alone(weights, inverse, width)[1]


def _alone(weights: Float32, inverse: Float64, width: int) -> tuple[Float64, Float64]:
    """[H⁻¹]_PP⁻¹ w_P of every part P of a row, (groups, rows, columns), and the scores, (groups, rows, parts)."""
    groups, rows, columns = weights.shape
    parts = -(-columns // width)
    room = parts * width - columns
    w = np.pad(weights.astype(np.float64), ((0, 0), (0, 0), (0, room)))
    w = w.reshape(groups, rows, parts, width)
    blocks = np.tile(np.eye(width), (groups, parts, 1, 1))  # (groups, parts, width, width)
    for part in range(parts):
        here = slice(part * width, min((part + 1) * width, columns))
        size = here.stop - here.start
        blocks[:, part, :size, :size] = inverse[:, here, here]
    changes = np.linalg.solve(blocks[:, None], w[..., None])[..., 0]  # (groups, rows, parts, width)
    scores: Float64 = 0.5 * np.einsum("grpw,grpw->grp", w, changes)
    return np.asarray(changes.reshape(groups, rows, -1)[:, :, :columns]), scores
