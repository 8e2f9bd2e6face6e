"""Damp a layer's Hessian and invert it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.linalg import lapack

from ..errors import CalibrationError, RecipeError
from ..level import Float64
from .threads import one_blas_thread

Precision: TypeAlias = Literal["auto", "float32", "float64"]

_LEAST = 1e-6  # the relative damping to begin with where the one asked for leaves the Hessian singular
_SHRINKS = 1000  # predicted losses were within 3e-5 in float32 up to here, within 1e-3 at six times as much
_NOTHING = 1e-200  # a mean diagonal below this is zero: its inverse would overflow


@dataclass(frozen=True)
class Damped:
    """A Hessian that can be inverted, and its inverse.

    hessian: (groups, columns, columns) float64, damped.
    inverse: (groups, columns, columns) float64, its inverse, exactly symmetric.
    damping: (groups,) float64, what was added to the diagonal, as a fraction of the group's mean diagonal (of the
             layer's mean diagonal for a group whose Hessian is all zero).
    dead:    how many columns, of all groups, have a zero on the undamped diagonal: inputs that were always zero.
    """

    hessian: Float64
    inverse: Float64
    damping: Float64
    dead: int

    def scaled(self, precision: Precision) -> tuple[np.ndarray, Float64, Float64]:
        """The arguments of the kernels, in units in which each group's mean diagonal is about 1.

        precision: `auto` is float32 unless the inverse's diagonal shrinks more than 1000-fold while columns are
        eliminated, H_jj · (H⁻¹)_jj > 1000 for some column: float32 then loses the digits that the losses need. With 1 %
        damping it is seldom reached; below about 0.3 % it is.

        Returns (base, floor, unit): base (groups, columns, columns) float32 or float64, the inverse; floor (groups,
        columns) float64, 1 / diagonal of the Hessian; unit (groups,) float64, the loss that 1 stands for.
        """
        diagonals = np.diagonal(self.hessian, axis1=1, axis2=2)  # (groups, columns)
        if precision == "auto":
            shrinks = diagonals * np.diagonal(self.inverse, axis1=1, axis2=2)
            precision = "float32" if shrinks.max() <= _SHRINKS else "float64"
        unit = np.exp2(np.rint(np.log2(diagonals.mean(axis=1))))  # powers of two: scaling rounds nothing
        return (self.inverse * unit[:, None, None]).astype(precision), unit[:, None] / diagonals, unit


def damp(hessian: Float64, damping: float = 0.01) -> Damped:
    """Add `damping` times the mean diagonal to the diagonal of each group's Hessian, and invert it.

    Where the Hessian is still singular the damping grows tenfold until it is not, beginning at 1e-6. A group that is
    zero throughout takes the layer's mean diagonal instead and becomes a multiple of the identity: there pruning is
    by magnitude and quantization is rounding, at the small cost that any dead input has. If all groups are zero they
    become the identity.

    hessian: (groups, columns, columns) float64, symmetric positive semidefinite; left as it is.
    Raises CalibrationError if it holds NaN or infinity or a negative diagonal, RecipeError if `damping` is negative.
    """
    if not (np.isfinite(damping) and damping >= 0):
        raise RecipeError(f"damping {damping}: it must be a number not below 0; write e.g. 0.01")
    groups, columns, _ = hessian.shape
    diagonals = np.diagonal(hessian, axis1=1, axis2=2)  # (groups, columns)
    if not np.isfinite(hessian).all() or (diagonals < 0).any():
        raise CalibrationError(
            "the Hessian holds NaN, infinity or a negative diagonal: the layer's inputs do; check the calibration data"
        )
    damped = np.array(hessian, np.float64)
    inverse = np.empty_like(damped)
    used = np.empty(groups)
    means = diagonals.mean(axis=1)  # (groups,)
    means[means < _NOTHING] = 0
    layer_mean = float(means.mean())
    with one_blas_thread():
        for g in range(groups):
            if means[g] == 0:
                used[g] = max(damping, _LEAST) if layer_mean > 0 else 1.0
                value = used[g] * (layer_mean or 1.0)
                damped[g], inverse[g] = np.eye(columns) * value, np.eye(columns) / value
                continue
            used[g], identity = damping, np.eye(columns)
            while True:
                damped[g] = hessian[g] + used[g] * means[g] * identity
                try:
                    inverse[g] = invert(damped[g])
                    break
                except np.linalg.LinAlgError:
                    used[g] = max(used[g] * 10, _LEAST)
    return Damped(damped, inverse, used, int((diagonals == 0).sum()))


def invert(hessian: Float64) -> Float64:
    """The inverse of a positive definite matrix (columns, columns), exactly symmetric, through H = L Lᵀ.

    The inverse is formed as L⁻ᵀ L⁻¹, so that its error is that of a nearby Hessian; a general inverse is off by
    enough to matter after many eliminations. Runs without the GIL. Raises numpy's LinAlgError if the matrix is singular
    to rounding.
    """
    lower = np.asarray(np.linalg.cholesky(hessian), np.float64)
    if not (np.diagonal(lower) ** 2 > 1e-14 * np.diagonal(hessian)).all():
        raise np.linalg.LinAlgError("singular to rounding")
    half = _invert_lower(lower)
    return half.T @ half


def _invert_lower(lower: Float64) -> Float64:
    """The inverse of a lower triangular matrix, by halves."""
    n = len(lower)
    if n <= 128:
        return np.ascontiguousarray(lapack.dtrtri(lower, lower=1)[0])
    h = n // 2
    inverse = np.zeros_like(lower)
    inverse[:h, :h] = _invert_lower(lower[:h, :h])
    inverse[h:, h:] = _invert_lower(lower[h:, h:])
    inverse[h:, :h] = -inverse[h:, h:] @ (lower[h:, :h] @ inverse[:h, :h])
    return inverse
