"""Accumulates the Hessian H = 2 X Xᵀ / n of a layer's inputs."""

from __future__ import annotations

import tempfile
from functools import cache
from math import prod

import numpy as np

from ..core.arrays import Array, Float32, Float64
from ..core.errors import CalibrationError

BLOCK = 768  # positions that are multiplied at a time
TILE = 192  # columns of the sum that are added to at a time: stays in cache
SINGLE = 256  # float32 inputs of at least so many columns are multiplied in float32
SAFE = (1e-12, 1e15)  # … if their largest value lies between these: its square is far from float32's limits


class HessianSum:
    """The running sum X Xᵀ of one tap in float64, whatever the size of the batches that it comes in.

    Up to SINGLE columns, and with several groups, products are formed in float64. Above, blocks of BLOCK positions are
    multiplied in float32 and summed in float64, which is twice as fast; `reflect` sees to it that H stays within 1e-6
    of the exact one, relative to its norm, as does each entry H_ij relative to √(H_ii H_jj) (3e-6 where a single
    position makes up the sum). A column that is always zero has exact zeros.

    lower: (groups, columns, columns) float64, what has been added up so far, without the block that is being filled;
    only the lower triangle counts. mapped: keep it in a temporary file, which is gone as soon as nobody refers to it.
    Raises CalibrationError if there is no room for that file.
    """

    def __init__(self, groups: int, columns: int, mapped: bool = False) -> None:
        shape = (groups, columns, columns)
        self.lower: Float64 = mapped_zeros(shape) if mapped else np.zeros(shape)
        self.columns = columns
        self.positions = 0
        self.left_out = 0  # positions that hold NaN or infinity
        self._block: Array | None = None  # (BLOCK, columns), of which `_filled` rows are in use
        self._filled = 0

    def add(self, x: Array) -> None:
        """Add vectors x (groups, n, columns)."""
        groups, n, columns = x.shape
        self.positions += n
        if groups > 1:
            x = x.astype(np.float64, order="C")  # BLAS takes no other
            self.lower += x.transpose(0, 2, 1) @ x  # (groups, columns, columns)
            return
        if self._block is None:
            single = columns >= SINGLE and x.dtype in (np.float16, np.float32)
            self._block = np.empty((BLOCK, columns), np.float32 if single else np.float64)
        start = 0
        while start < n:
            taken = min(n - start, BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = x[0, start : start + taken]
            start, self._filled = start + taken, self._filled + taken
            if self._filled == BLOCK:
                self._fold()

    def mean(self) -> Float64:
        """H = 2 X Xᵀ / n, (groups, columns, columns) float64, symmetric. Made in place: it ends the sum."""
        if self._filled:
            self._fold()
        self._block = None
        h, scale = self.lower, 2 / max(self.positions, 1)
        for start in range(0, self.columns, TILE):
            tile = slice(start, start + TILE)
            h[:, tile, : start + TILE] *= scale
            h[:, :start, tile] = h[:, tile, :start].transpose(0, 2, 1)
            square = h[:, tile, tile]  # (groups, TILE, TILE)
            square[:] = np.tril(square) + np.tril(square, -1).transpose(0, 2, 1)
        return h

    def _fold(self) -> None:
        assert self._block is not None
        self._block[self._filled :] = 0
        self._filled = 0
        x = factor(self._block)  # (BLOCK, columns)
        for start in range(0, self.columns, TILE):
            tile = slice(start, start + TILE)
            part = x[:, tile].T  # (TILE, BLOCK)
            if start:
                self.lower[0, tile, :start] += part @ x[:, :start]
            self.lower[0, tile, tile] += part @ part.T


def held_bytes(groups: int, columns: int) -> int:
    """What a HessianSum takes: the sum, and the block that is being filled."""
    block = BLOCK * columns * (4 if columns >= SINGLE else 8) if groups == 1 else 0
    return 8 * groups * columns**2 + block


def factor(x: Array) -> Array:
    """A matrix with the same xᵀx as x (positions, columns), whose product is accurate. Float32 may be changed in place.

    The positions are a multiple of 32. Float32 is reflected, or turned to float64 if squares could leave its range.
    """
    if x.dtype == np.float32 and SAFE[0] < max(x.max(), -x.min()) < SAFE[1]:
        reflect(x)
        return x
    return x.astype(np.float64, copy=False)


def reflect(x: Float32) -> None:
    """Reflect x (positions, columns) over its positions, in place: x ← x − v vᵀx with |v|² = 2, which changes no xᵀx.

    In float32 the rounding errors of a long sum add up if the values repeat (a constant, zeros and ones): to 4e-6 of
    it for hundreds of terms. v is such that the mean of the positions, weighted at random, goes to the last of them,
    which BLAS adds last, and that all others change a little, each differently: the errors are random then.
    """
    v = _mirror(len(x))  # (positions, 1)
    parts = v.reshape(-1, 1, 32) @ x.reshape(
        -1, 32, x.shape[1]
    )  # (positions / 32, 1, columns): short sums in float32 …
    x -= v * parts.sum(axis=0, dtype=np.float64).astype(np.float32)  # … and of those in float64


@cache
def _mirror(positions: int) -> Float32:
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (positions, 1))
    weights /= np.linalg.norm(weights)
    weights[-1] += 1  # what lies along the weights is reflected to the last position
    v: Float32 = (weights * (np.sqrt(2) / np.linalg.norm(weights))).astype(np.float32)
    return v  # (positions, 1)


def mapped_zeros(shape: tuple[int, ...]) -> Float64:
    """Zeros in a temporary file (of the folder TMPDIR), mapped to memory. The file goes when the array does."""
    size = 8 * prod(shape)
    try:
        file = tempfile.TemporaryFile(prefix="onnx-obc-")  # noqa: SIM115  the map keeps it open
        for start in range(0, size, 2**26):  # written, not left as a hole, so that a full disk shows here
            file.write(bytes(min(2**26, size - start)))
        file.flush()
    except OSError as error:
        raise CalibrationError(
            f"no room for a Hessian of {size / 2**30:.1f} GiB in {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a folder with more, or raise --memory"
        ) from error
    return np.asarray(np.memmap(file, np.float64, "r+", shape=shape))
