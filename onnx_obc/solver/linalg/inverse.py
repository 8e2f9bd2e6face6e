"""Damp a layer's Hessian, factorise it, and invert it where that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from ...core.arrays import Float64
from ...core.errors import CalibrationError, RecipeError
from .threads import one_blas_thread, over_rows

Precision: TypeAlias = Literal["auto", "float32", "float64"]

_LEAST = 1e-6  # the relative damping to begin with where the one asked for leaves the Hessian singular
_SHRINKS = 1000  # predicted losses were within 3e-5 in float32 up to here, within 1e-3 at six times as much
_NOTHING = 1e-200  # a mean diagonal below this is zero: its inverse would overflow
_PANEL = 512  # columns factorised at a time, and rows of a tile


@dataclass(frozen=True)
class Damped:
    """A Hessian that can be inverted: 24 bytes · groups · columns² with its inverse, 16 until that is asked for.

    hessian: (groups, columns, columns) float64, damped.
    lower:   (groups, columns, columns) float64, the Cholesky factor L of the Hessian with its columns in the reverse of
             `order`; zero above the diagonal.
    order:   (groups, columns), the columns by decreasing diagonal; ties by the lowest column.
    damping: (groups,) float64, what was added to the diagonal, as a fraction of the group's mean diagonal (of the
             layer's mean diagonal for a group whose Hessian is all zero).
    dead:    how many columns, of all groups, have a zero on the undamped diagonal: inputs that were always zero.
    """

    hessian: Float64
    lower: Float64
    order: npt.NDArray[np.intp]
    damping: Float64
    dead: int

    @cached_property
    def inverse(self) -> Float64:
        """(groups, columns, columns) float64, exactly symmetric; made on first use."""
        inverse = np.empty_like(self.hessian)
        with one_blas_thread():
            for g, order in enumerate(self.order):
                place = len(order) - 1 - np.argsort(order)  # where each column is in the factor
                half = invert_lower(self.lower[g])
                permuted(half.T @ half, place, inverse[g])
        return inverse

    def group(self, g: int) -> Damped:
        """The Hessian of one group, (1, columns, columns); its `dead` is the layer's."""
        part = slice(g, g + 1)
        one = Damped(self.hessian[part], self.lower[part], self.order[part], self.damping[part], self.dead)
        if "inverse" in self.__dict__:
            one.__dict__["inverse"] = self.inverse[part]
        return one

    def dtype(self, precision: Precision) -> np.dtype[Any]:
        """Of the kernels' arithmetic at this precision.

        `auto` is float32 unless the inverse's diagonal shrinks more than 1000-fold while columns are eliminated,
        H_jj · (H⁻¹)_jj > 1000 for some column: float32 then loses the digits that the losses need. With 1 % damping it
        is seldom reached; below about 0.3 % it is.
        """
        if precision == "auto":
            diagonals = np.diagonal(self.hessian, axis1=1, axis2=2)  # (groups, columns)
            shrinks = diagonals * np.diagonal(self.inverse, axis1=1, axis2=2)
            precision = "float32" if shrinks.max() <= _SHRINKS else "float64"
        return np.dtype(precision)

    def scaled(self, precision: Precision) -> tuple[np.ndarray, Float64, Float64]:
        """The arguments of the kernels, in units in which each group's mean diagonal is about 1.

        precision: see `dtype`.

        Returns (base, floor, unit): base (groups, columns, columns) float32 or float64, the inverse; floor (groups,
        columns) float64, 1 / diagonal of the Hessian; unit (groups,) float64, the loss that 1 stands for.
        """
        diagonals = np.diagonal(self.hessian, axis1=1, axis2=2)  # (groups, columns)
        unit = units(self.hessian)
        base = np.empty(self.inverse.shape, self.dtype(precision))
        for g in range(len(base)):
            np.multiply(self.inverse[g], unit[g], out=base[g], casting="same_kind")
        return base, unit[:, None] / diagonals, unit


def units(hessian: Float64) -> Float64:
    """The power of two next to each group's mean diagonal: scaling by it rounds nothing. (groups,)

    hessian: (groups, columns, columns), no mean diagonal zero.
    """
    means = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    return np.asarray(np.exp2(np.rint(np.log2(means))), np.float64)


def damp(hessian: Float64, damping: float = 0.01, threads: int | None = None) -> Damped:
    """Add `damping` times the mean diagonal to the diagonal of each group's Hessian, and factorise it.

    Where the Hessian is still singular the damping grows tenfold until it is not, beginning at 1e-6. A group that is
    zero throughout takes the layer's mean diagonal instead and becomes a multiple of the identity: there pruning is
    by magnitude and quantization is rounding, at the small cost that any dead input has. If all groups are zero they
    become the identity.

    hessian: (groups, columns, columns) float64, symmetric positive semidefinite, possibly memory-mapped; left as it is
    and read a few rows at a time. threads: for the factorisation of large ones; the result does not depend on it.
    Raises CalibrationError if it holds NaN or infinity or a negative diagonal, RecipeError if `damping` is negative.
    """
    if not (np.isfinite(damping) and damping >= 0):
        raise RecipeError(f"damping {damping}: it must be a number not below 0; write e.g. 0.01")
    groups, columns, _ = hessian.shape
    diagonals = np.array(np.diagonal(hessian, axis1=1, axis2=2))  # (groups, columns)
    damped, lower = np.empty(hessian.shape), np.empty(hessian.shape)
    finite = True
    for g, i in np.ndindex(groups, -(-columns // _PANEL)):
        rows = slice(i * _PANEL, (i + 1) * _PANEL)
        damped[g, rows] = hessian[g, rows]
        finite = finite and bool(np.isfinite(damped[g, rows]).all())
    if not finite or (diagonals < 0).any():
        raise CalibrationError(
            "the Hessian holds NaN, infinity or a negative diagonal: the layer's inputs do; check the calibration data"
        )
    order = np.argsort(-diagonals, axis=1, kind="stable")  # (groups, columns)
    used = np.empty(groups)
    means = diagonals.mean(axis=1)  # (groups,)
    means[means < _NOTHING] = 0
    layer_mean = float(means.mean())
    with one_blas_thread():
        for g in range(groups):
            diagonal = np.einsum("ii->i", damped[g])  # a view
            if means[g] == 0:
                used[g] = max(damping, _LEAST) if layer_mean > 0 else 1.0
                damped[g], lower[g] = 0.0, 0.0
                diagonal[:] = used[g] * (layer_mean or 1.0)
                np.einsum("ii->i", lower[g])[:] = np.sqrt(diagonal)
                continue
            used[g] = damping
            while True:
                diagonal[:] = diagonals[g] + used[g] * means[g]
                try:
                    factorise(damped[g], order[g], lower[g], threads)
                    break
                except np.linalg.LinAlgError:
                    used[g] = max(used[g] * 10, _LEAST)
    return Damped(damped, lower, order, used, int((diagonals == 0).sum()))


def factorise(
    hessian: Float64, order: npt.NDArray[np.intp], lower: Float64 | None = None, threads: int | None = None
) -> Float64:
    """The Cholesky factor L of a positive definite Hessian with its columns in the reverse of `order`.

    Turned by half a circle it is upper triangular, T = L[::-1, ::-1], and H = T Tᵀ with the columns in `order`:
    1 / T_jj² is the diagonal of the inverse when the columns before j are gone, which is what the ordered solver needs.
    By panels from the left, tiles of rows over the threads. lower: where it is written, (columns, columns) float64.
    Raises numpy's LinAlgError if the matrix is singular to rounding.
    """
    columns = len(hessian)
    lower = permuted(hessian, order[::-1], lower)
    diagonal = np.diagonal(lower).copy()
    for first in range(0, columns, _PANEL):
        panel = slice(first, min(first + _PANEL, columns))
        known = lower[panel, :first]  # (panel, first)
        lower[panel, panel] -= known @ known.T
        lower[panel, panel] = np.linalg.cholesky(lower[panel, panel])
        lower[panel, panel.stop :] = 0
        if panel.stop < columns:
            _fill_below(lower, panel, invert_lower(lower[panel, panel]).T, threads)
    if not (np.diagonal(lower) ** 2 > 1e-14 * diagonal).all():
        raise np.linalg.LinAlgError("singular to rounding")
    return lower


def _fill_below(lower: Float64, panel: slice, upper: Float64, threads: int | None) -> None:
    """L[i, panel] = (H[i, panel] − L[i, :first] L[panel, :first]ᵀ) L[panel, panel]⁻ᵀ, for the tiles i below."""
    known = lower[panel, : panel.start].T  # (first, panel)

    def work(start: int, stop: int) -> None:
        for i in range(start, stop):
            tile = slice(panel.stop + i * _PANEL, panel.stop + (i + 1) * _PANEL)
            lower[tile, panel] = (lower[tile, panel] - lower[tile, : panel.start] @ known) @ upper

    over_rows(work, -(-(len(lower) - panel.stop) // _PANEL), 2**28, threads)


def permuted(matrix: Float64, order: npt.NDArray[np.intp], out: Float64 | None = None) -> Float64:
    """matrix[order][:, order], without a second copy of the whole."""
    out = np.empty_like(matrix) if out is None else out
    for start in range(0, len(order), _PANEL):
        rows = slice(start, start + _PANEL)
        np.take(matrix[order[rows]], order, axis=1, out=out[rows])
    return out


def invert(hessian: Float64) -> Float64:
    """The inverse of a positive definite matrix (columns, columns), exactly symmetric, through H = L Lᵀ.

    The inverse is formed as L⁻ᵀ L⁻¹, so that its error is that of a nearby Hessian; a general inverse is off by
    enough to matter after many eliminations. Runs without the GIL. Raises numpy's LinAlgError if the matrix is singular
    to rounding.
    """
    lower = np.asarray(np.linalg.cholesky(hessian), np.float64)
    if not (np.diagonal(lower) ** 2 > 1e-14 * np.diagonal(hessian)).all():
        raise np.linalg.LinAlgError("singular to rounding")
    half = invert_lower(lower)
    return half.T @ half


def invert_lower(lower: Float64, inverse: Float64 | None = None) -> Float64:
    """The inverse of a lower triangular matrix, by halves. inverse: zeros to write it to."""
    inverse = np.zeros_like(lower) if inverse is None else inverse
    n = len(lower)
    if n <= 128:
        inverse[:] = lapack.dtrtri(lower, lower=1)[0]
        return inverse
    h = n // 2
    invert_lower(lower[:h, :h], inverse[:h, :h])
    invert_lower(lower[h:, h:], inverse[h:, h:])
    np.matmul(inverse[h:, h:], lower[h:, :h] @ inverse[:h, :h], out=inverse[h:, :h])
    inverse[h:, :h] *= -1
    return inverse
