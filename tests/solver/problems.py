"""Random layers with the spectra that real ones have."""

from __future__ import annotations

import numpy as np


def layer(groups=1, rows=4, columns=24, samples=100, decay=1.0, seed=0):
    """Weights (groups, rows, columns) float32 and Hessian (groups, columns, columns), inputs' spectrum k^−decay."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((groups, rows, columns)).astype(np.float32)
    mix, _ = np.linalg.qr(random.standard_normal((groups, columns, columns)))
    spectrum = np.arange(1, columns + 1)[:, None] ** -decay
    x = mix @ (spectrum * random.standard_normal((groups, columns, samples)))  # (groups, columns, samples)
    return weights, 2 * x @ x.transpose(0, 2, 1) / samples
