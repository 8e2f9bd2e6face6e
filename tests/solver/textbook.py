"""The paper's algorithms as written, in float64 with an explicit inverse: what the engine is held to. One row each."""

from __future__ import annotations

import numpy as np


def eliminate(w, inverse, p, change):
    """Shift weight p by `change`, the others optimally, and remove p from the inverse; in place (OBC eq. 3, 4)."""
    w += change / inverse[p, p] * inverse[:, p]
    inverse -= np.outer(inverse[:, p], inverse[p]) / inverse[p, p]


def prune(w, inverse, keep=0, per=1):
    """OBC Algorithm 1 to the end; of every `per` columns `keep` are kept. Returns the order and the losses."""
    w, inverse, d = w.astype(float), inverse.copy(), len(w)
    alive, order, losses = list(range(d)), [], []
    room = {g: min(per, d - g * per) - keep for g in range(-(-d // per))}
    while candidates := [j for j in alive if room[j // per] > 0]:
        scores = [0.5 * w[j] ** 2 / inverse[j, j] for j in candidates]
        p = candidates[int(np.argmin(scores))]
        order.append(p), losses.append(min(scores)), alive.remove(p)
        room[p // per] -= 1
        eliminate(w, inverse, p, -w[p])
    return order, losses


def prune_blocks(w, inverse, size):
    """OBC equation 5 to the end. Returns the order of the blocks and the losses."""
    w, inverse, d = w.astype(float), inverse.copy(), len(w)
    blocks, order, losses = {b: np.arange(b * size, min(d, (b + 1) * size)) for b in range(-(-d // size))}, [], []
    while blocks:
        scores = {b: 0.5 * w[P] @ np.linalg.solve(inverse[np.ix_(P, P)], w[P]) for b, P in blocks.items()}
        b = min(scores, key=scores.__getitem__)
        order.append(b), losses.append(scores[b])
        P = blocks.pop(b)
        gain = np.linalg.solve(inverse[np.ix_(P, P)], inverse[P]).T  # (d, block)
        w -= gain @ w[P]
        inverse -= gain @ inverse[P]
    return order, losses


def quantize(w, inverse, scale, zero, qmin, qmax):
    """OBC Algorithm 3 with the outlier rule. Returns the codes, the order and the losses."""
    w, inverse = w.astype(float), inverse.copy()
    scale, zero = (np.broadcast_to(x, w.shape) for x in (np.float32(scale), zero))  # of the row, or of each weight
    alive, codes, order, losses = list(range(len(w))), np.zeros(len(w), int), [], []
    while alive:
        code = np.clip(np.rint(w / scale.astype(float)) + zero, qmin, qmax)
        error = w - (np.float32(code - zero) * scale).astype(float)
        out = [j for j in alive if abs(error[j]) > float(scale[j]) / 2]
        p = max(out, key=lambda j: abs(error[j])) if out else min(alive, key=lambda j: error[j] ** 2 / inverse[j, j])
        codes[p] = code[p]
        order.append(p), losses.append(0.5 * error[p] ** 2 / inverse[p, p]), alive.remove(p)
        eliminate(w, inverse, p, -error[p])
    return codes, order, losses


def cut(losses, count):
    """The least that `count` steps in all can lose, each row's taken from its first on: by dynamic programming."""
    least = np.r_[0.0, np.full(count, np.inf)]
    for row in losses:
        sums = np.r_[0.0, np.cumsum(row)]
        ways = [[least[n - k] + sums[k] for k in range(min(n, len(row)) + 1)] for n in range(count + 1)]
        least = np.array([min(x) for x in ways])
    return least[count]
