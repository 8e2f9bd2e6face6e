"""Small layer problems, the degenerate ones among them, and their optimum by trying everything."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from onnx_obc.study.exact.problem import Rounding

KINDS = ("plain", "decaying", "deficient", "dead", "duplicate", "on-grid", "ties", "clipped", "zero", "fixed", "wide")


def hessian_of(random, n, kind):
    """(n, n), positive semidefinite; singular where the kind says so."""
    if kind == "zero":
        return np.zeros((n, n))
    if kind == "ties":
        return np.eye(n) + (random.random() < 0.5)
    samples = int(random.integers(1, max(n, 2))) if kind == "deficient" else n + 6
    x = random.standard_normal((n, n)) @ random.standard_normal((n, samples))
    if kind == "decaying":
        q, _ = np.linalg.qr(random.standard_normal((n, n)))
        x = q @ (10.0 ** -np.linspace(0, 3, n)[:, None] * random.standard_normal((n, samples)))
    if kind == "dead":
        x[random.random(n) < 0.4] = 0
    if kind == "duplicate":
        x[random.integers(0, n)] = x[random.integers(0, n)]
    return 2 * x @ x.T / samples


def rounding(seed):
    """A problem of up to 14 columns with at most 2^14 solutions."""
    random = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    codes = int(random.choice([2, 3, 4, 8, 16, 64]))
    n = int(random.integers(1, int(np.log(2**14) / np.log(codes)) + 1))
    low = -(codes // 2) if random.random() < 0.6 else 0
    high, zero = low + codes - 1, int(random.integers(0, codes)) if low == 0 else 0
    scale = 10.0 ** random.uniform(-3, 1)
    weight = random.standard_normal(n) * scale * codes / {"clipped": 1.5, "wide": 40.0}.get(kind, 5.0)
    if kind == "on-grid":
        weight = (random.integers(low, high + 1, n) - zero) * scale
    if kind == "ties":
        weight = (random.integers(2 * low, 2 * high + 1, n) / 2 - zero) * scale
    if kind == "zero" and random.random() < 0.5:
        weight = np.zeros(n)
    hessian = hessian_of(random, n, kind) * 10.0 ** random.uniform(-3, 3)
    if kind == "fixed":
        lows = np.where(random.random(n) < 0.4, high, low)
        scales = scale * random.uniform(0.5, 2, n)
        return Rounding(weight, hessian, scales, lows, np.full(n, high), np.full(n, zero))
    return Rounding(weight, hessian, scale, low, high, zero)


def least_rounding(problem):
    """The least loss over all codes."""
    n = len(problem.weight)
    low, high = (np.broadcast_to(x, (n,)) for x in (problem.low, problem.high))
    grids = np.meshgrid(*[np.arange(a, b + 1) for a, b in zip(low, high, strict=True)], indexing="ij")
    codes = np.stack([g.ravel() for g in grids], axis=1)  # (solutions, n)
    delta = problem.weight - (codes - np.asarray(problem.zero_point)) * np.asarray(problem.scale)
    return max(0.5 * float(((delta @ problem.hessian) * delta).sum(axis=1).min()), 0.0)


def row(seed, columns=None):
    """Weights and a positive definite Hessian of up to 14 columns, or of so many."""
    random = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    n = columns or int(random.integers(1, 15))
    weight = random.standard_normal(n) * 10.0 ** random.uniform(-4, 2)
    if kind == "on-grid":
        weight[random.random(n) < 0.4] = 0
    if kind == "ties":
        weight = random.choice([-1.0, 1.0, 2.0], n)
    if kind == "zero":
        weight = np.zeros(n)
    hessian = hessian_of(random, n, "plain" if kind == "zero" else kind) * 10.0 ** random.uniform(-3, 3)
    return weight, hessian + random.choice([1e-2, 1e-4]) * (hessian.diagonal().mean() or 1.0) * np.eye(n)


def least_mask(weight, hessian, gone):
    """The least loss over pruned sets. gone: (sets, pruned), the columns of each."""
    n = len(weight)
    if not gone.shape[1]:
        return 0.0
    kept = np.array([np.setdiff1d(np.arange(n), each) for each in gone], int).reshape(len(gone), -1)
    delta = np.zeros((len(gone), n))
    np.put_along_axis(delta, gone, weight[gone], axis=1)
    if kept.shape[1]:
        pull = (hessian[kept[:, :, None], gone[:, None, :]] @ weight[gone][:, :, None])[:, :, 0]
        shift = np.linalg.solve(hessian[kept[:, :, None], kept[:, None, :]], pull[:, :, None])[:, :, 0]
        np.put_along_axis(delta, kept, -shift, axis=1)
    return 0.5 * float(((delta @ hessian) * delta).sum(axis=1).min())


def subsets(n, count):
    """All sets of `count` of n, (sets, count)."""
    found = list(combinations(range(n), count))
    return np.array(found, int).reshape(len(found), count)
