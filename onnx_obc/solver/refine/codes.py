"""Better integers than the greedy's: tabu search over single codes, and the row's scale fitted between the rounds.

In units of the scale a row's loss is ½ s² yᵀHy with y = w/s − x, x = code − zero point. With γ = Hy at hand, raising
code j by one changes ½ yᵀHy by ½H_jj − γ_j and lowering it by ½H_jj + γ_j; the move itself takes row j of H from γ. So
a move costs one pass over a row of H, and what it gains is known exactly.

Descent stops where no single move gains. Tabu search (Glover 1989) goes on: it always takes the best move, uphill
where there is no other, and takes none back for a while. What counts is the best state that it meets.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.arrays import Bool, Float32, Float64, Int32
from ...core.solution import Grid
from ..linalg.compiled import compiled_finite
from ..linalg.inverse import units
from ..linalg.loss import row_losses
from ..linalg.threads import RowsDone, over_rows

LANES = 32  # rows of H are padded to a multiple of it: the best move is looked for in so many lanes at once
TENURE = 12  # how many moves later a move may be taken back
ROUND = 2  # sweeps between two fits of the scale
STARTS = np.array([1, 0.95, 1.05, 0.9, 1.1, 0.8, 1.25])  # times the scale given; the fewer columns, the more are tried
_SMALLEST = float(np.finfo(np.float32).tiny)  # as a scale; many runtimes flush smaller ones to zero
_NEVER = np.float32(1e30)


def refine_codes(
    weights: Float32,
    hessian: Float64,
    codes: Int32,
    grid: Grid,
    mask: Bool | None = None,
    sweeps: int = 8,
    threads: int | None = None,
    progress: RowsDone | None = None,
) -> tuple[Int32, Grid, float]:
    """Codes and scales whose layer loss is lower than that of the given ones, row by row, or else the given ones.

    weights: (groups, rows, columns) float32, those of the dense layer. hessian: (groups, columns, columns) float64,
    damped. codes: (groups, rows, columns) int32, on `grid`. mask: where it is False a code is the zero point and stays
    it. sweeps: how many moves a row takes from a start, in columns; every `ROUND` sweeps the scale becomes the one that
    is optimal for the codes, wᵀHx / xᵀHx. Zero points stay. Rows of up to 64 columns are searched from seven starts,
    of up to 256 from three: other scales, and the codes that match them.

    Returns (codes, grid, loss); loss is ½ tr(ΔHΔᵀ) for Δ = weights − dequantized codes, computed from those in float64.
    No row's loss exceeds that of the given codes. The result does not depend on `threads`.
    """
    groups, rows, columns = weights.shape
    total = groups * rows
    width = -(-columns // LANES) * LANES
    starts = STARTS[: 7 if columns <= 64 else 3 if columns <= 256 else 1]
    padded = np.zeros((groups, columns, width), np.float32)
    for g, unit in enumerate(units(hessian)):
        np.multiply(hessian[g], 1 / unit, out=padded[g, :, :columns], casting="same_kind")
    flat = np.array(weights.reshape(total, columns), order="C")  # (groups · rows, columns)
    found = np.array(codes.reshape(total, columns), order="C")
    steps, zeros = grid.spread(rows, columns)
    step_of, zero = steps.reshape(total, columns).copy(), zeros.reshape(total, columns).copy()
    scale = np.ones(total, np.float32)  # of blocks: the factor that all of them change by
    if grid.block is None:
        scale = grid.scale.reshape(total).copy()
    free = np.ones((total, columns), np.bool_) if mask is None else mask.reshape(total, columns)

    def work(start: int, stop: int) -> None:
        if grid.block is None:
            _search(flat, padded, free, zero, grid.qmin, grid.qmax, sweeps, starts, start, stop, found, scale)
            return
        for i in range(start, stop):  # in units of each weight's step, w/s and S H S, a row has the step 1 throughout
            step, one = step_of[i].astype(np.float64), slice(i, i + 1)
            own = np.zeros((1, columns, width), np.float32)
            own[0, :, :columns] = padded[i // rows, :, :columns] * step[:, None] * (step / np.square(step).mean())
            row = (flat[one] / step).astype(np.float32)
            _search(row, own, free[one], zero[one], grid.qmin, grid.qmax, sweeps, starts, 0, 1, found[one], scale[one])

    over_rows(work, total, 2 * starts.size * (sweeps + 2) * columns**2, threads, progress)
    blocks = 1 if grid.block is None else columns // grid.block
    moved = scale if grid.block is None else grid.scale.reshape(-1) * scale.repeat(blocks)
    refined = replace(grid, scale=moved.astype(np.float32).reshape(grid.scale.shape))
    before = row_losses(weights, grid.dequantize(codes), hessian)  # (groups, rows)
    after = row_losses(weights, refined.dequantize(found.reshape(codes.shape)), hessian)
    better = after < before
    return (
        np.where(better[:, :, None], found.reshape(codes.shape), codes),
        replace(grid, scale=np.where(better.repeat(blocks, axis=1), refined.scale, grid.scale)),
        float(np.where(better, after, before).sum()),
    )


@compiled_finite
def _search(
    weights: Float32,
    hessian: Float32,
    free: Bool,
    zero_point: Int32,
    qmin: int,
    qmax: int,
    sweeps: int,
    starts: Float64,
    start: int,
    stop: int,
    codes: Int32,
    scale: Float32,
) -> None:
    """Refine the rows start … stop − 1 in place, each from several starts: `starts` times its scale, codes to match.

    hessian: (groups, columns, width) float32, zero from `columns` on. free: the codes that may change.
    """
    columns, width = weights.shape[1], hessian.shape[2]
    rows = weights.shape[0] // hessian.shape[0]
    half = np.zeros(width, np.float32)  # ½ diagonal
    code = np.empty(columns, np.int32)
    first = np.empty(columns, np.int32)
    room = np.empty((5, width), np.float32)
    trail = np.empty(ROUND * columns, np.int64)
    for i in range(start, stop):
        h, zero = hessian[i // rows], zero_point[i]  # zero: (columns,)
        hw = _times(h, weights[i].astype(np.float64))  # (width,) float64
        for j in range(columns):
            half[j] = 0.5 * h[j, j]
            first[j] = codes[i, j]
        least, original = np.inf, np.float64(scale[i])
        for factor in starts:
            step = original * factor
            for j in range(columns):
                raw = np.rint((first[j] - zero[j]) / factor) + zero[j] if free[i, j] else np.float64(first[j])
                code[j] = np.int32(min(max(raw, qmin), qmax))
            done = 0
            while True:
                hx = _times(h, (code - zero).astype(np.float64))
                cross, square = 0.0, 0.0  # wᵀHx, xᵀHx
                for j in range(columns):
                    cross += (code[j] - zero[j]) * hw[j]
                    square += (code[j] - zero[j]) * hx[j]
                if cross > 0 and square > 0 and (done > 0 or factor == 1):
                    step = np.float64(np.float32(max(cross / square, _SMALLEST)))
                value = step * (0.5 * step * square - cross)  # the loss, less that of x = 0
                if value < least:
                    least = value
                    codes[i] = code
                    scale[i] = step
                if done >= sweeps:
                    break
                span = min(ROUND, sweeps - done) * columns
                done += ROUND
                for j in range(width):
                    room[0, j] = hw[j] / step - hx[j]
                if not _walk(h, half, room, code, free[i], qmin, qmax, trail[:span]):
                    break


@compiled_finite
def _walk(
    h: Float32,
    half: Float32,
    room: Float32,
    code: Int32,
    free: Bool,
    qmin: int,
    qmax: int,
    trail: np.ndarray,
) -> bool:
    """Take as many moves as `trail` has room for, then go back to the best state met. Returns whether it is a new one.

    room: (5, width); room[0] is γ, the rest scratch. code: (columns,), changed in place.
    """
    columns = code.size
    up, down = room[1], room[2]  # 0 where the code may be raised or lowered, _NEVER where not
    gamma, score, lanes = room[0], room[3], room[4, :LANES]
    up[:] = _NEVER
    down[:] = _NEVER
    for j in range(columns):
        if free[j]:
            up[j] = 0 if code[j] < qmax else _NEVER
            down[j] = 0 if code[j] > qmin else _NEVER
    tenure = min(TENURE, columns // 3 + 1)
    now, best, kept, length = 0.0, 0.0, 0, 0  # costs so far; of the trail `kept` moves led to the best
    k = _move(h[0], 0, gamma, half, up, down, score, lanes)
    while length < trail.size and score[k] < _NEVER / 2:
        t = 1 if up[k] - gamma[k] < down[k] + gamma[k] else -1
        now += score[k]
        code[k] += t
        trail[length] = t * (k + 1)
        if length >= tenure:
            old = abs(trail[length - tenure]) - 1
            up[old] = 0 if code[old] < qmax else _NEVER
            down[old] = 0 if code[old] > qmin else _NEVER
        length += 1
        up[k] = _NEVER if t < 0 or code[k] == qmax else 0
        down[k] = _NEVER if t > 0 or code[k] == qmin else 0
        if now < best - 1e-6:
            best, kept = now, length
        k = _move(h[k], t, gamma, half, up, down, score, lanes)
    for m in range(kept, length):
        code[abs(trail[m]) - 1] -= 1 if trail[m] > 0 else -1
    return kept > 0


@compiled_finite
def _move(
    row: Float32,
    t: int,
    gamma: Float32,
    half: Float32,
    up: Float32,
    down: Float32,
    score: Float32,
    lanes: Float32,
) -> int:
    """Take t times a row of H from γ; returns the column whose move then costs least, its cost in `score`."""
    width = gamma.size
    sign = np.float32(t)
    for j in range(width):
        x = gamma[j] - sign * row[j]
        gamma[j] = x
        p, q = up[j] - x, down[j] + x
        score[j] = half[j] + (p if p < q else q)
    lanes[:] = score[:LANES]
    for first in range(LANES, width, LANES):
        for j in range(LANES):
            x, y = score[first + j], lanes[j]
            lanes[j] = x if x < y else y
    lane = 0
    for j in range(1, LANES):
        if lanes[j] < lanes[lane]:
            lane = j
    k = lane
    while score[k] != lanes[lane] and k + LANES < width:
        k += LANES
    return k


@compiled_finite
def _times(h: Float32, x: Float64) -> Float64:
    """Hx, (width,) float64. h: (columns, width) float32."""
    out = np.zeros(h.shape[1])
    for j in range(x.size):
        if x[j] != 0:
            for k in range(out.size):
                out[k] += x[j] * h[j, k]
    return out
