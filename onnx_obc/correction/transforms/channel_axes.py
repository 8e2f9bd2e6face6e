"""Axes of values and constants that have one order of channels: what is tied, and what has to stay as it is.

An axis is a sequence of pieces. Reordering a piece on all axes that hold it changes nothing that is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...core.arrays import Int64

UNKNOWN = -1  # the size of an axis that is not known


class Pieces:
    """A union-find over pieces of axes, in which a piece can be split in two. `sizes`: the channels of each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._parent: list[int] = []
        self._halves: dict[int, tuple[int, int]] = {}
        self._fixed: list[bool] = []

    def new(self, size: int) -> int:
        """A piece of its own."""
        self.sizes.append(size)
        self._parent.append(len(self._parent))
        self._fixed.append(size == UNKNOWN)
        return self._parent[-1]

    def of(self, axis: Iterable[int]) -> list[int]:
        """The pieces that an axis consists of by now."""
        found = []
        pending = list(axis)[::-1]
        while pending:
            piece = self._root(pending.pop())
            if piece in self._halves:
                pending.extend(self._halves[piece][::-1])
            else:
                found.append(piece)
        return found

    def is_fixed(self, piece: int) -> bool:
        """Whether a piece, as `of` gives it, has to stay in order."""
        return self._fixed[piece]

    def fix(self, axis: Iterable[int]) -> None:
        """Let an axis stay in order."""
        for piece in self.of(axis):
            self._fixed[piece] = True

    def tie(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Let two axes have one order; both are fixed if their sizes differ."""
        first, second = self.of(one)[::-1], self.of(other)[::-1]
        sizes = [[self.sizes[piece] for piece in pieces] for pieces in (first, second)]
        if UNKNOWN in (*sizes[0], *sizes[1]) or sum(sizes[0]) != sum(sizes[1]):
            self.fix((*one, *other))
            return
        while first:
            a, b = self.of([first.pop()]), self.of([second.pop()])
            first.extend(a[:0:-1])
            second.extend(b[:0:-1])
            self._join(a[0], b[0], first, second)

    def _join(self, a: int, b: int, first: list[int], second: list[int]) -> None:
        """Tie the heads of two axes, and put back what the longer one has left."""
        if self.sizes[a] > self.sizes[b]:
            a, rest = self._split(a, self.sizes[b])
            first.append(rest)
        elif self.sizes[a] < self.sizes[b]:
            b, rest = self._split(b, self.sizes[a])
            second.append(rest)
        self._parent[a] = b
        if a != b:
            self._fixed[b] |= self._fixed[a]

    def _split(self, piece: int, size: int) -> tuple[int, int]:
        halves = self.new(size), self.new(self.sizes[piece] - size)
        for half in halves:
            self._fixed[half] = self._fixed[piece]
        self._halves[piece] = halves
        return halves

    def _root(self, piece: int) -> int:
        while self._parent[piece] != piece:
            self._parent[piece] = self._parent[self._parent[piece]]
            piece = self._parent[piece]
        return piece


class Channels:
    """The axes of a graph's values, and the pieces that they consist of."""

    def __init__(self) -> None:
        self._pieces = Pieces()
        self._axes: dict[ir.Value, list[list[int]] | None] = {}

    def pieces(self, value: ir.Value, axis: int) -> list[tuple[int, int]]:
        """The pieces of an axis, from its start, and how many channels each has; none if nothing is known of it."""
        axes = self._axes.get(value)
        if axes is None or not -len(axes) <= axis < len(axes):
            return []
        return [(piece, self._pieces.sizes[piece]) for piece in self._pieces.of(axes[axis])]

    def is_fixed(self, piece: int) -> bool:
        """Whether a piece has to stay in order."""
        return self._pieces.is_fixed(piece)

    def order(self, value: ir.Value, axis: int, orders: Mapping[int, Int64]) -> Int64 | None:
        """Where each channel of an axis comes from, (channels,), if pieces have these orders; None: from its place."""
        found, start, moved = [], 0, False
        for piece, size in self.pieces(value, axis):
            if size == UNKNOWN:
                return None
            moved |= piece in orders
            found.append(start + orders.get(piece, np.arange(size)))
            start += size
        return np.concatenate(found) if moved else None

    def axes(self, value: ir.Value | None) -> list[list[int]] | None:
        """The axes of a value, made when it is first seen; None if not even their number is known."""
        if value is None:
            return None
        if value not in self._axes:
            sizes = _sizes(value)
            self._axes[value] = None if sizes is None else [[self._pieces.new(size)] for size in sizes]
        return self._axes[value]

    def fix(self, value: ir.Value | None, but: Sequence[int] = ()) -> None:
        """Fix the axes of a value, except some."""
        for axis, pieces in enumerate(self.axes(value) or ()):
            if axis not in but:
                self._pieces.fix(pieces)

    def tie(self, *axes: Sequence[int]) -> None:
        """Let all these axes have one order."""
        for axis in axes[1:]:
            self._pieces.tie(axes[0], axis)

    def spread(self, value: ir.Value | None, over: Sequence[Sequence[int]]) -> bool:
        """Tie the axes of a value that is broadcast over these; whether what is known allows to."""
        axes = self.axes(value)
        if axes is None or len(axes) > len(over):
            return value is None
        for own, other in zip(axes[::-1], over[::-1], strict=False):
            if self.size(own) != 1:
                self.tie(own, other)
        return True

    def size(self, axis: Sequence[int]) -> int:
        """The channels of an axis."""
        sizes = [self._pieces.sizes[piece] for piece in axis]
        return UNKNOWN if UNKNOWN in sizes else sum(sizes)

    def free(self, size: int) -> list[int]:
        """An axis that is tied with nothing."""
        return [self._pieces.new(size)]


def _sizes(value: ir.Value) -> list[int] | None:
    """The size of each axis of a value, where its shape or the weight of a product that reads it says so."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else UNKNOWN for size in value.shape]
    for use in value.uses():
        weight = use.node.inputs[1] if use.node.op_type in ("Gemm", "MatMul") and use.idx == 0 else None
        if weight is None or weight.const_value is None or len(weight.const_value.shape) < 2 or not sizes:
            continue
        turned = {key: use.node.attributes.get_int(key, 0) for key in ("transA", "transB")}
        inner = weight.const_value.shape[-1 if turned["transB"] else -2]
        if sizes[-2 if turned["transA"] else -1] == UNKNOWN and isinstance(inner, int):
            sizes[-2 if turned["transA"] else -1] = inner
    return sizes
