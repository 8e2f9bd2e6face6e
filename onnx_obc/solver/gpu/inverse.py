"""Inverses and solutions of many rows at once, in torch: what `batches` does outside the lockstep."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .lockstep import depth_of_epoch


def invert(hessian: Tensor) -> Tensor:
    """The inverses L⁻ᵀ L⁻¹ of H = L Lᵀ, exactly symmetric; (groups, d, d) float64. Raises numpy's LinAlgError."""
    lower, failed = torch.linalg.cholesky_ex(hessian)  # (groups, d, d)
    diagonal = lower.diagonal(dim1=1, dim2=2)
    if failed.any() or not (diagonal.square() > 1e-14 * hessian.diagonal(dim1=1, dim2=2)).all():
        raise np.linalg.LinAlgError("singular to rounding")
    identity = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    half = torch.linalg.solve_triangular(lower, identity, upper=False)
    inverse: Tensor = half.mT @ half
    return inverse.tril() + inverse.tril(-1).mT


def submatrix(base: Tensor, owner: Tensor, column: Tensor, valid: Tensor) -> Tensor:
    """Each row's base at its columns, (rows, k, k); the identity where a column is padding.

    column, valid: (rows, k) int64 and bool, False for padding, where `column` is any.
    """
    own = base[owner[:, None, None], column[:, :, None], column[:, None, :]]  # (rows, k, k)
    own.masked_fill_(~(valid[:, :, None] & valid[:, None, :]), 0)
    own.diagonal(dim1=1, dim2=2).masked_fill_(~valid, 1)
    return own


def kept_inverse(base: Tensor, owner: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's H_KK⁻¹ for its kept columns K: H⁻¹ with the others eliminated, many at once; no weight changes.

    mask: (rows, d) bool, True where kept. Returns (inverse, column, valid): (rows, k, k), k the most columns that a row
    keeps; and those columns, ascending, with padding after them, (rows, k), as `submatrix` takes them.
    """
    d = mask.shape[1]
    lost = d - mask.sum(1, keepdim=True)  # (rows, 1)
    most_lost, most_kept = int(lost.max()), d - int(lost.min())
    order = mask.byte().argsort(dim=1, stable=True)  # (rows, d): the lost columns, then the kept
    # positions: padding, the lost columns up to most_lost, the kept columns, padding
    slot = torch.arange(most_lost + most_kept, device=mask.device) - (most_lost - lost)  # (rows, lost + kept)
    valid = (slot >= 0) & (slot < d)
    column = order.gather(1, slot.clamp(0, d - 1))
    own = submatrix(base, owner, column, valid)
    for start in range(0, most_lost, depth_of_epoch(d)):
        t = min(depth_of_epoch(d), most_lost - start)
        lower = torch.linalg.cholesky(own[:, :t, :t])  # (rows, t, t)
        half = torch.linalg.solve_triangular(lower, own[:, :t, t:], upper=False)  # (rows, t, rest)
        own = torch.baddbmm(own[:, t:, t:], half.mT, half, alpha=-1)  # (rows, rest, rest)
    return own, column[:, most_lost:], valid[:, most_lost:]


def solve_kept(w: Tensor, mask: Tensor, hessian: Tensor, owner: Tensor) -> Tensor:
    """The minimum of ½ ΔHΔᵀ for each row's mask, by a Cholesky factorisation of its H_KK.

    w, mask: (rows, d) float64 and bool. hessian: (bases, d, d) float64, that of a row at `owner`, (rows,) int64.
    """
    k = int(mask.sum(1).max())
    column = mask.byte().argsort(dim=1, descending=True, stable=True)[:, :k]  # (rows, k): kept, then padding
    valid = mask.gather(1, column)
    lower = torch.linalg.cholesky(submatrix(hessian, owner, column, valid))  # (rows, k, k)
    pull = hessian[owner[:, None], column] @ w.masked_fill(mask, 0)[..., None]  # H_K,lost w_lost: (rows, k, 1)
    shift = torch.cholesky_solve(pull, lower)  # padding is on its own in H_KK, and lost in the end
    return w.scatter_add(1, column, shift[..., 0]).masked_fill(~mask, 0)
