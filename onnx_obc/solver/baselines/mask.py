"""Which weights of a layer stay, by a score for each: the smallest go."""

from __future__ import annotations

import numpy as np

from ...core.arrays import Bool, Float32, Float64
from ...core.level import NM, Block, Sparsity


def width_of(sparsity: Sparsity) -> int:
    """How many consecutive columns go or stay as one."""
    return sparsity.size if isinstance(sparsity, Block) else 1


def in_parts(weights: Float32, width: int) -> Float64:
    """Every `width` consecutive columns of a row, (groups, rows, parts, width); the last filled up with zeros."""
    groups, rows, columns = weights.shape
    padded = np.pad(weights.astype(np.float64), ((0, 0), (0, 0), (0, -columns % width)))
    return padded.reshape(groups, rows, -1, width)


def mask_of_scores(scores: Float64, sparsity: Sparsity, columns: int) -> Bool:
    """True where a weight is kept, (groups, rows, columns).

    scores: not negative, of every weight, (groups, rows, columns); of Block, of every block of a row, the last of which
    may be shorter. Unstructured and Block: the round(sparsity · scores) smallest of the layer go. N:M: of every m
    consecutive columns the n largest stay. Ties: of those that stay the first, of those that go the first.
    """
    if isinstance(sparsity, NM):
        parts = -(-columns // sparsity.m)
        padded = np.pad(scores, ((0, 0), (0, 0), (0, parts * sparsity.m - columns)), constant_values=-1)
        padded = padded.reshape(*scores.shape[:2], parts, sparsity.m)  # (groups, rows, parts, m)
        rank = np.argsort(np.argsort(-padded, axis=3, kind="stable"), axis=3, kind="stable")
        return (rank < sparsity.n).reshape(*scores.shape[:2], -1)[:, :, :columns]
    smallest = np.argsort(scores, axis=None, kind="stable")[: round(sparsity.sparsity * scores.size)]
    kept = np.ones(scores.size, np.bool_)
    kept[smallest] = False
    return kept.reshape(scores.shape).repeat(width_of(sparsity), axis=2)[:, :, :columns]
