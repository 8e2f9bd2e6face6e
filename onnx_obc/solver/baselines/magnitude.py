"""Magnitude pruning (GMP): the smallest weights go, nothing makes up for them."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32
from ...core.level import Sparsity
from .mask import in_parts, mask_of_scores, width_of


def magnitude_mask(weights: Float32, sparsity: Sparsity) -> Bool:
    """True where a weight is kept, by the magnitude of single weights or the Euclidean norm of blocks; see
    `mask_of_scores`. (groups, rows, columns)."""
    norms = np.linalg.norm(in_parts(weights, width_of(sparsity)), axis=3)  # (groups, rows, parts)
    return mask_of_scores(norms, sparsity, weights.shape[2])
