"""The exact greedy in lockstep: every row of a batch eliminates one pivot, then all take the next step together.

The arithmetic is that of `greedy`: column p of a row's current inverse = A[:, p] − Vᵀ V[:, p]. A pivot is one column,
or a block of c neighbouring ones (OBC equation 5), whose columns go one after the other. A step is a fixed sequence of
tensor operations on buffers that stay where they are, with its counters on the device: on CUDA it is captured once per
epoch as a graph and replayed, on the CPU the same operations run one by one.

The first epoch works on the shared H⁻¹. Each epoch ends with a rebase: A ← A[stay, stay] − V[:, stay]ᵀ V[:, stay] for
every row, V ← empty. It costs a row 2d² numbers of memory, and pays because a GPU waits for its memory: without it the
steps read all of V, d³/6 numbers a row, for one multiply-add each. With a rebase every b columns they read b d²/2 (V
with its empty part) and the rebases move 4d³/3b, their d³/3 multiply-adds at the rate of matrix products. The sum is
least at b = √(8d/3), where it is b d²: 0.42 of d³/6 at 576 columns, 0.21 at 2304, 0.15 at 4608.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

# (w, near, floor) as in `Rows` -> what each pivot costs (rows, n), and by how much each weight is off (rows, n, c)
Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rows:
    """A batch of rows in the middle of the elimination, at n positions of c columns each; ascending.

    base:   (bases, n · c, n · c), the inverse that the epoch began with; a row's own, or shared by several
    owner:  (rows,) int64, each row's base
    w:      (rows, n, c) float64, the weights
    near:   (rows, n, c, c) float64, the diagonal blocks of the current inverse
    floor:  (rows, n, c) float64, what the diagonal never falls below
    index:  (rows, n) int64, the column or block at each position
    gone:   (rows, n) bool, True where it cannot be chosen any more
    left:   (rows, teams) int64, how many may still go of every `per` consecutive ones
    """

    base: Tensor
    owner: Tensor
    w: Tensor
    near: Tensor
    floor: Tensor
    index: Tensor
    gone: Tensor
    left: Tensor


@dataclass(frozen=True)
class Trace:
    """What the steps did. Steps that a row with fewer pivots than others did not need: pivot −1, shift 0.

    pivot:  (rows, steps) int64. done: (1,) int64, the steps so far.
    shift:  (rows, steps, c) float64, the error of each weight over the root of its pivot: the loss is ½ shift².
    value:  (rows, steps, c) float64, what the weights were set to.
    """

    pivot: Tensor
    shift: Tensor
    value: Tensor
    done: Tensor

    def losses(self) -> Tensor:
        """What each step adds to the row's loss, (rows, steps)."""
        return self.shift.square().sum(2) / 2


def depth_of_epoch(columns: int) -> int:
    """How many columns are eliminated between two rebases: the power of two next to √(8d/3), from 32."""
    return int(2 ** round(math.log2(max(8 * columns / 3, 32**2)) / 2))


def begin(w: Tensor, floor: Tensor, base: Tensor, owner: Tensor, index: Tensor, gone: Tensor, left: Tensor) -> Rows:
    """The rows before the first step; arguments as in `Rows`, and w and gone are overwritten later."""
    _, n, c = w.shape
    blocks = base.view(len(base), n, c, n, c).diagonal(dim1=1, dim2=3)  # (bases, c, c, n)
    near = blocks.movedim(-1, 1)[owner].double()  # (rows, n, c, c)
    return Rows(base, owner, w, near, floor, index, gone, left)


def eliminate(rows: Rows, rule: Rule, per: int, steps: int) -> Trace:
    """Take `steps` steps; each row's next pivot is the one that `rule` calls cheapest, ties to the lowest.

    per: of how many consecutive pivots `rows.left` counts what may still go.
    """
    count, n, c = rows.w.shape
    device = rows.w.device
    shift = torch.zeros(count, steps, c, dtype=torch.float64, device=device)
    pivot = torch.empty(count, steps, dtype=torch.int64, device=device)
    trace = Trace(pivot, shift, torch.zeros_like(shift), torch.zeros(1, dtype=torch.int64, device=device))
    epoch = max(1, depth_of_epoch(n * c) // c)  # steps
    graph: torch.cuda.CUDAGraph | None = None
    for start in range(0, steps, epoch):
        times = min(epoch, steps - start)
        factor, graph = _epoch(rows, trace, rule, per, times, graph)
        if start + times < steps:
            rows = _rebase(rows, factor)
    return trace


def prune_rule(w: Tensor, near: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """A pivot's weights become zero; that costs wᵀ D⁻¹ w, D its diagonal block (OBC equations 1 and 5)."""
    cost, y, block = torch.zeros_like(w[..., 0]), w, near
    for r in range(w.shape[2]):  # eliminate the block's columns within the block
        pivot = torch.maximum(block[..., 0, 0], floor[..., r])  # (rows, n)
        cost = cost + y[..., 0].square() / pivot
        gain = block[..., 1:, 0] / pivot[..., None]  # (rows, n, c − r − 1)
        y = y[..., 1:] - gain * y[..., :1]
        block = block[..., 1:, 1:] - gain[..., None] * block[..., :1, 1:]
    return cost, w


def quantize_rule(scale: Tensor, zero: Tensor, qmin: int, qmax: int) -> Rule:
    """A weight goes to the nearest value of its row's grid; one outside the grid's range first, the farthest first.

    scale: (rows, 1, 1) float32. zero: (rows, 1, 1) float64.
    """
    half = scale.double() / 2

    def rule(w: Tensor, near: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        code = ((w / scale.double()).round() + zero).clamp(qmin, qmax)
        error = w - ((code - zero).float() * scale).double()
        off = error.abs()
        return torch.where(off > half, -off, error.square() / near[..., 0])[..., 0], error

    return rule


def _epoch(
    rows: Rows, trace: Trace, rule: Rule, per: int, times: int, before: torch.cuda.CUDAGraph | None
) -> tuple[Tensor, torch.cuda.CUDAGraph | None]:
    """Take `times` steps, updating `rows` and `trace` in place.

    Returns V, (rows, times · c, n · c), and the graph of the step, to be passed to the next epoch as `before`.
    """
    count, n, c = rows.w.shape
    factor = rows.base.new_zeros(count, times * c, n * c)  # V
    within = torch.arange(c, device=factor.device)
    each = torch.arange(count, device=factor.device)
    slot = within.clone()  # where V takes the next columns

    def step() -> None:  # asks the device for no number, so that it can be captured
        cost, error = rule(rows.w, rows.near, rows.floor)  # (rows, n), (rows, n, c)
        best, q = cost.masked_fill(rows.gone, math.inf).min(1)  # (rows,): the lowest position among equals
        finished = best.isinf()[:, None]  # (rows, 1)
        p = q[:, None] * c + within  # (rows, c)
        column = rows.base[rows.owner[:, None], p]  # (rows, c, n · c)
        picked = factor.gather(2, p[:, None].expand(-1, times * c, -1))  # V[:, p]: (rows, times · c, c)
        column.baddbmm_(picked.mT, factor, alpha=-1)
        off = error[each, q].masked_fill(finished, 0)  # (rows, c)
        trace.value.index_copy_(1, trace.done, (rows.w[each, q] - off)[:, None])
        shifts = torch.empty_like(off)
        diagonal = rows.near.diagonal(dim1=2, dim2=3)  # (rows, n, c), a view
        for r in range(c):
            root = diagonal[each, q, r].sqrt()[:, None]  # (rows, 1)
            v = column[:, r]  # (rows, n · c), a view
            torch.div(v, root, out=v)
            at_p = v.gather(1, p)  # (rows, c)
            shift = off[:, r, None] / root  # (rows, 1)
            shifts[:, r, None] = shift
            off = off - shift * at_p
            column[:, r + 1 :].addcmul_(at_p[:, r + 1 :, None], v[:, None], value=-1)
            change = v.view(count, n, c).double()
            rows.w.addcmul_(shift[..., None], change, value=-1)
            rows.near.addcmul_(change[..., None], change[..., None, :], value=-1)
            diagonal.clamp_(min=rows.floor)
        factor.index_copy_(1, slot, column)
        trace.shift.index_copy_(1, trace.done, shifts[:, None])
        pivot = rows.index.gather(1, q[:, None]).masked_fill(finished, -1)  # (rows, 1)
        trace.pivot.index_copy_(1, trace.done, pivot)
        rows.gone.scatter_(1, q[:, None], True)
        if per > 1:  # a team that has lost enough is closed
            rows.left.scatter_add_(1, pivot // per, -torch.ones_like(pivot))
            rows.gone.logical_or_(rows.left.gather(1, rows.index // per) <= 0)
        slot.add_(c)
        trace.done.add_(1)

    step()  # loads what it needs, which a capture may not
    if not factor.is_cuda or times == 1:
        for _ in range(times - 1):
            step()
        return factor, before
    graph = torch.cuda.CUDAGraph()  # with the memory of the graph before it, which must live until now
    graph.capture_begin(before.pool() if before else None, capture_error_mode="thread_local")
    try:
        step()  # recorded, not taken
    finally:
        graph.capture_end()
    for _ in range(times - 1):
        graph.replay()
    return factor, graph


def _rebase(rows: Rows, factor: Tensor) -> Rows:
    """Drop the positions that are gone; each row's base becomes its current inverse.

    All rows keep as many positions as the one with most; those that have fewer keep some that are gone, at the end.
    """
    count, _, c = rows.w.shape
    n = int((~rows.gone).sum(1).max())
    stay = rows.gone.byte().argsort(dim=1, stable=True)[:, :n]  # (rows, n)
    p = (stay[:, :, None] * c + torch.arange(c, device=stay.device)).flatten(1)  # (rows, n · c)
    base = rows.base[rows.owner[:, None, None], p[:, :, None], p[:, None, :]]  # (rows, n · c, n · c)
    factor = factor.gather(2, p[:, None].expand(-1, factor.shape[1], -1))  # (rows, depth, n · c)
    base.baddbmm_(factor.mT, factor, alpha=-1)
    each = torch.arange(count, device=stay.device)
    row = each[:, None]
    return replace(
        rows,
        base=base,
        owner=each,
        w=rows.w[row, stay],
        near=rows.near[row, stay],
        floor=rows.floor[row, stay],
        index=rows.index[row, stay],
        gone=rows.gone[row, stay],
    )
