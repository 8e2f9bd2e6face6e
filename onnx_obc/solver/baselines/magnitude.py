"""Magnitude pruning: the smallest weights go, nothing makes up for them."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32
from ...core.level import NM, Block, Sparsity


def magnitude_mask(weights: Float32, sparsity: Sparsity) -> Bool:
    """True where a weight is kept. (groups, rows, columns).

    Unstructured: the round(sparsity · weights) smallest magnitudes of the layer go. Block: the blocks with the
    smallest Euclidean norm. N:M: of every m consecutive columns the n largest magnitudes stay.
    """
    columns = weights.shape[2]
    width = {NM: getattr(sparsity, "m", 1), Block: getattr(sparsity, "size", 1)}.get(type(sparsity), 1)
    parts = -(-columns // width)
    size = np.abs(weights.astype(np.float64))
    size = np.pad(size, ((0, 0), (0, 0), (0, parts * width - columns)))
    size = size.reshape(*weights.shape[:2], parts, width)  # (groups, rows, parts, width)
    if isinstance(sparsity, NM):
        rank = np.argsort(np.argsort(-size, axis=3, kind="stable"), axis=3, kind="stable")
        kept = rank < sparsity.n
    else:
        norms = np.linalg.norm(size, axis=3)  # (groups, rows, parts)
        smallest = np.argsort(norms, axis=None, kind="stable")[: round(sparsity.sparsity * norms.size)]
        kept = np.ones(norms.size, np.bool_)
        kept[smallest] = False
        kept = kept.reshape(norms.shape)[..., None].repeat(width, axis=3)
    return kept.reshape(*weights.shape[:2], parts * width)[:, :, :columns]
