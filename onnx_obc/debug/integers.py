"""Weights of few bits as `MatMulNBits` of onnxruntime packs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.arrays import Array, Float32


def unpacked(
    packed: Array, scales: Array, zeros: Array | None, sizes: Mapping[str, int]
) -> tuple[Array, Array, Float32]:
    """The codes (K, N) and the zero points and scales (blocks, N) of a weight: codes lie in bytes, the lowest bits
    first, in N rows of K / block_size blocks. sizes: K, N, bits, block_size."""
    k, n, bits, size = (sizes[name] for name in ("K", "N", "bits", "block_size"))
    blocks = -(-k // size)
    codes = _bits(packed.reshape(n, -1), bits)[:, : blocks * size][:, :k]  # (N, K)
    scale = np.asarray(scales, np.float32).reshape(n, blocks)
    if zeros is None:
        zero = np.full((n, blocks), 2 ** (bits - 1), np.uint8)
    elif zeros.dtype == np.uint8:
        zero = _bits(zeros.reshape(n, -1), bits)[:, :blocks]
    else:  # zero points of another type are numbers as they are
        zero = np.rint(zeros.reshape(n, blocks)).astype(np.uint8)
    return np.ascontiguousarray(codes.T), np.ascontiguousarray(zero.T), np.ascontiguousarray(scale.T)


def _bits(rows: Array, bits: int) -> Array:
    """The codes of rows of bytes, (rows, bytes · 8 / bits) uint8."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: Array = (rows.astype(np.uint8)[:, :, None] >> shifts) & (2**bits - 1)
    return codes.reshape(len(rows), -1)
