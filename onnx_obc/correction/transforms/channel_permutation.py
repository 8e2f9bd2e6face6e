"""Reorders channels so that patterns cost the weights that read them less (Pool and Yu 2021).

A layer's loss under N:M, blocks of zeros or blocks that share a scale depends on which columns lie in a group, and the
order of the columns is that of the channels of its input: any order will do, if whatever makes these channels has it
too. It is found by exchanges of two channels, the best ones first, until none lowers the cost of all readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
import onnx_ir as ir

from ...core.arrays import Float64, Int64
from ...core.level import NM, Block, Level
from ...graph.layers import Layer, Window
from .channel_axes import Channels
from .channel_groups import find_channels
from .group_costs import Cost, cost_of

ROUNDS = 100  # of exchanges; they end by themselves after twenty or so
WINDOW = 1536  # channels among which exchanges are looked for at a time
WORK = 3e8  # channels² · rows; of a weight that takes more, some rows are drawn
LEAST = 1e-5  # of the mean cost of a group, that an exchange has to gain: less may be rounding


@dataclass(frozen=True)
class Reader:
    """A layer whose columns lie in groups, and which of its input's channels a piece is."""

    layer: Layer
    level: Level
    part: slice


def group_size(level: Level) -> int | None:
    """How many consecutive columns a level treats as one group; None where it has none."""
    match level.sparsity:
        case NM(m=size) | Block(size=size):
            return size
    return level.block


def find_readers(model: ir.Model, layers: Sequence[Layer], levels: Mapping[str, Level]) -> dict[int, list[Reader]]:
    """The pieces of axes that can be reordered, with the layers that gain by it.

    layers: all of this model. levels: those of the layers that get one, by name. Left out are pieces that a layer's
    groups do not end with, and layers of several groups of channels.
    """
    channels = find_channels(model.graph)
    found: dict[int, list[Reader]] = {}
    unfit: set[int] = set()
    for layer in layers:
        size = group_size(levels[layer.name]) if layer.name in levels else None
        if size is None or layer.groups > 1:
            continue
        start = 0
        for piece, length in _input_pieces(layer, channels):
            if channels.is_fixed(piece) or length <= size:
                unfit.add(piece)
            if start % size or length % size:
                unfit.add(piece)
            found.setdefault(piece, []).append(Reader(layer, levels[layer.name], slice(start, start + length)))
            start += length
    return {piece: readers for piece, readers in found.items() if piece not in unfit}


def _input_pieces(layer: Layer, channels: Channels) -> list[tuple[int, int]]:
    """The pieces of the axis that a layer's weight sums over."""
    use = layer.uses[0]
    value, unfold = use.node.inputs[1 - use.index if layer.op in ("MatMul", "Gemm") else 0], use.tap.unfold
    if value is None or value.shape is None:
        return []
    return channels.pieces(value, 1 if isinstance(unfold, Window) else unfold.along(len(value.shape)))


def costs_of(readers: Sequence[Reader], importance: Mapping[str, Float64], seed: int) -> list[Cost]:
    """The costs that an order of a piece's channels has for its readers, each relative to its layer.

    importance: of each layer's columns, (columns,). Of large weights some rows are drawn.
    """
    random, costs = np.random.default_rng(seed), []
    for reader in readers:
        layer = reader.layer
        weight = layer.matrix()[0].astype(np.float64).reshape(layer.rows, -1, layer.channels)
        length = reader.part.stop - reader.part.start
        most = max(1, int(WORK / min(length, WINDOW) / length / weight.shape[1]))
        if len(weight) > most:
            weight = weight[np.sort(random.permutation(len(weight))[:most])]
        cost = cost_of(reader.level, weight, importance[layer.name].reshape(-1, layer.channels), reader.part)
        assert cost is not None, "the layers that are readers have groups"
        costs.append(cost)
    return costs


def best_order(costs: Sequence[Cost], seed: int, threads: int | None = None) -> tuple[Int64, float]:
    """Where each channel comes from, (channels,), and what of the costs is left, relative to the given order's.

    The order is the given one where none is better.
    """
    length = costs[0].channels
    size = lcm(*(cost.size for cost in costs))
    order = np.arange(length)
    for window in _windows(length, size, seed):
        order[window] = window[_exchange([cost.take(window) for cost in costs], len(window), size, threads)]
    before, after = (sum(_total(cost, each) for cost in costs) for each in (np.arange(length), order))
    return (order, after / before) if after < before else (np.arange(length), 1.0)


def _windows(length: int, size: int, seed: int) -> Iterator[Int64]:
    """The positions of channels in windows of whole groups, drawn at random where there is more than one."""
    groups = np.arange(length).reshape(-1, size)
    count = -(-length // WINDOW)
    if count > 1:
        groups = np.random.default_rng(seed).permutation(groups)
    for part in np.array_split(groups, count):
        yield part.reshape(-1)


def _exchange(costs: Sequence[Cost], length: int, size: int, threads: int | None) -> Int64:
    """Exchange channels of different groups of `size` until nothing is gained, in rounds: in each the best exchange of
    any two groups, a group in one at most, so that their gains add up."""
    order, place = np.arange(length), np.arange(length)
    states = [_State(cost, order, threads) for cost in costs]
    least = LEAST * sum(state.mean for state in states)
    for _ in range(ROUNDS):
        gains = np.sum([state.gains(order) for state in states], axis=0)  # (positions, positions)
        pairs = gains.reshape(length // size, size, -1, size).transpose(0, 2, 1, 3)
        pairs = np.triu(pairs.reshape(*pairs.shape[:2], -1).max(axis=2), 1)  # (groups, groups)
        taken, touched = np.zeros(len(pairs), np.bool_), []
        for flat in np.argsort(-pairs, axis=None, kind="stable"):
            one, other = divmod(int(flat), len(pairs))
            if pairs[one, other] <= least:
                break
            if taken[one] or taken[other]:
                continue
            taken[[one, other]] = True
            block = gains[one * size : (one + 1) * size, other * size : (other + 1) * size]
            a, b = divmod(int(block.argmax()), size)
            a, b = one * size + a, other * size + b
            order[[a, b]] = order[[b, a]]
            touched += [one, other]
        if not touched:
            break
        moved = place.reshape(-1, size)[touched].reshape(-1)
        for state in states:
            state.update(order, np.unique(moved // state.cost.size))
    return order


class _State:
    """What exchanges cost one reader. groups: of each group of positions; table: (positions, channels), of the group
    that a position lies in with the channel there replaced by another one."""

    def __init__(self, cost: Cost, order: Int64, threads: int | None) -> None:
        self.cost, self._threads = cost, threads
        self._groups = np.zeros(len(order) // cost.size)
        self._table = np.zeros((len(self._groups), cost.size, len(order)))
        self.update(order, np.arange(len(self._groups)))
        self.mean = float(np.abs(self._groups).mean())

    def update(self, order: Int64, groups: Int64) -> None:
        """See to groups whose members are others now."""
        members = order.reshape(-1, self.cost.size)[groups]  # (count, size)
        self._groups[groups] = self.cost.of(members)
        self._table[groups] = self.cost.exchanged(members, self._threads)

    def gains(self, order: Int64) -> Float64:
        """What an exchange of the channels at two positions gains, (positions, positions); nothing within a group."""
        new = self._table.reshape(len(order), -1)[:, order]
        own = self._groups.repeat(self.cost.size)
        gains: Float64 = own[:, None] + own[None] - new - new.T
        inside = gains.reshape(*self._table.shape[:2], *self._table.shape[:2])
        every = np.arange(len(self._groups))
        inside[every, :, every] = 0
        return gains


def _total(cost: Cost, order: Int64) -> float:
    return float(cost.of(order.reshape(-1, cost.size)).sum())


def reorder(model: ir.Model, orders: Mapping[int, Int64]) -> None:
    """Give pieces of a model's axes these orders, in place, by its constants; what is computed stays.

    orders: by the piece, as `find_readers` names it in this model or a clone; where each channel comes from.
    """
    channels = find_channels(model.graph)
    for value in model.graph.initializers.values():
        if value.const_value is None or value.shape is None:
            continue
        array = value.const_value.numpy()
        moved = False
        for axis in range(array.ndim):
            if (order := channels.order(value, axis, orders)) is not None:
                array, moved = array.take(order, axis=axis), True
        if moved:
            value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
