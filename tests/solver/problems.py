"""Random layers with the spectra that real ones have."""

from __future__ import annotations

import numpy as np

from onnx_obc.core.level import Block, Unstructured


def layer(groups=1, rows=4, columns=24, samples=100, decay=1.0, seed=0):
    """Weights (groups, rows, columns) float32 and Hessian (groups, columns, columns), inputs' spectrum k^−decay."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((groups, rows, columns)).astype(np.float32)
    mix, _ = np.linalg.qr(random.standard_normal((groups, columns, columns)))
    spectrum = np.arange(1, columns + 1)[:, None] ** -decay
    x = mix @ (spectrum * random.standard_normal((groups, columns, samples)))  # (groups, columns, samples)
    return weights, 2 * x @ x.transpose(0, 2, 1) / samples


def check_pattern(mask, sparsity):
    """What a mask (groups, rows, columns) of exactly this pattern holds: its parts, and how many are pruned."""
    groups, rows, columns = mask.shape
    if isinstance(sparsity, Unstructured):
        assert (~mask).sum() == round(sparsity.sparsity * mask.size)
    elif isinstance(sparsity, Block):
        parts = [mask[..., c : c + sparsity.size] for c in range(0, columns, sparsity.size)]
        assert all((p.all(axis=2) | ~p.any(axis=2)).all() for p in parts)
        assert sum((~p[..., 0]).sum() for p in parts) == round(sparsity.sparsity * len(parts) * groups * rows)
    else:
        parts = [mask[..., c : c + sparsity.m] for c in range(0, columns, sparsity.m)]
        assert all((p.sum(axis=2) == min(sparsity.n, p.shape[2])).all() for p in parts)
