"""Magnitude pruning (GMP): the smallest weights go, nothing makes up for them."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ...core.level import Sparsity
from .mask import mask_of_scores, width_of


def magnitude_mask(weights: Float32, sparsity: Sparsity) -> Bool:
    """True where a weight is kept, by the magnitude of single weights or the Euclidean norm of blocks; see
    `mask_of_scores`. (groups, rows, columns)."""
    return mask_of_scores(magnitudes(weights, width_of(sparsity)), sparsity, weights.shape[2])


def magnitudes(weights: Float32, width: int) -> Float64:
    """The norm of every `width` consecutive columns of a row: (groups, rows, parts); the last may be shorter."""
    groups, rows, columns = weights.shape
    parts = -(-columns // width)
    size = np.abs(weights.astype(np.float64))
    size = np.pad(size, ((0, 0), (0, 0), (0, parts * width - columns)))
    return np.asarray(np.linalg.norm(size.reshape(groups, rows, parts, width), axis=3))
