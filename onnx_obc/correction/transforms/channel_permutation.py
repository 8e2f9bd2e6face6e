"""Reorders channels so that patterns cost the weights that read them less (Pool and Yu 2021).

A layer's loss under N:M, blocks of zeros or blocks that share a scale depends on which columns lie in a group, and the
order of the columns is that of the channels of its input: any order will do, if whatever makes these channels has it
too. It is looked for by exchanges of two channels, the best ones first, until none lowers the cost to all readers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import lcm

import numpy as np
import onnx_ir as ir

from ...core.arrays import Float32, Float64, Int64
from ...core.level import FLOAT, NM, Block, Level
from ...graph.layers import Layer, Window
from .channel_axes import Channels
from .channel_groups import find_channels
from .group_costs import Cost, cost_of

ROUNDS = 100  # of exchanges; they end by themselves after twenty or so
AT_ONCE = 8  # channels of a group for each exchange that it takes part in at a time
ESCAPES, SHUFFLED = 10, 8  # how often one in so many groups is shuffled: the cost falls by 1 to 4 % more
ESCAPE_WORK = 1e6  # channels² · times; where there are many channels an order is good, and a time takes long
WINDOW = 1536  # channels among which exchanges are looked for at a time
WORK, ROWS = 3e8, 8  # channels² · rows of all readers; where it is more, some rows of each are drawn, at least so many
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


def find_readers(
    model: ir.Model, layers: Sequence[Layer], levels: Mapping[str, Level], tables: Mapping[str, str]
) -> dict[int, list[Reader]]:
    """The pieces of axes that can be reordered, with the layers that gain by it.

    layers: all of this model. levels: those of the layers that get one, by name. tables: the initializers that share
    the integers of layers, by the layer: their rows have to go along. Left out are pieces that a layer's groups do not
    end with, and layers of several groups of channels.
    """
    channels = find_channels(model.graph)
    found: dict[int, list[Reader]] = {}
    unfit: set[int] = set()
    for layer in layers:
        pieces, size = _input_pieces(layer, channels), group_size(levels.get(layer.name, FLOAT))
        if layer.name in tables and channels.pieces(model.graph.initializers[tables[layer.name]], 1) != pieces:
            unfit |= {piece for piece, _ in pieces}
        if size is None or layer.groups > 1:
            continue
        start = 0
        for piece, length in pieces:
            if channels.is_fixed(piece) or length <= size or start % size or length % size:
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
        most = max(ROWS, int(WORK / min(length, WINDOW) / length / weight.shape[1] / len(readers)))
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
    length, random = costs[0].channels, np.random.default_rng(seed)
    order = np.arange(length)
    for window in _windows(length, lcm(*(cost.size for cost in costs)), random):
        order[window] = window[_exchange([cost.take(window) for cost in costs], random, threads)]
    before, after = (sum(_total(cost, each) for cost in costs) for each in (np.arange(length), order))
    return (order, after / before) if after < before else (np.arange(length), 1.0)


def _windows(length: int, size: int, random: np.random.Generator) -> Iterator[Int64]:
    """The positions of channels in windows of whole groups, drawn at random where there is more than one."""
    groups = np.arange(length).reshape(-1, size)
    count = -(-length // WINDOW)
    if count > 1:
        groups = random.permutation(groups)
    for part in np.array_split(groups, count):
        yield part.reshape(-1)


class _State:
    """An order of channels, and what exchanges cost all readers.

    Readers count together by the size of their groups. of: the cost of each group of positions, (groups,); tables:
    (positions, positions), of the group that a position lies in with the channel there replaced by that of another
    position. size: a multiple of all sizes.
    """

    def __init__(self, costs: Sequence[Cost], threads: int | None) -> None:
        self._costs = {size: [cost for cost in costs if cost.size == size] for size in {cost.size for cost in costs}}
        self._threads, length = threads, costs[0].channels
        self.size = lcm(*self._costs)
        self.order = np.arange(length)
        self._of = {size: np.zeros(length // size) for size in self._costs}
        self._tables = {size: np.zeros((length, length), np.float32) for size in self._costs}
        self.move(self.order.copy(), np.arange(length // self.size))
        self.least = LEAST * sum(float(np.abs(each).mean()) for each in self._of.values())

    @property
    def total(self) -> float:
        """The cost of the order, to all readers."""
        return float(sum(each.sum() for each in self._of.values()))

    def cost(self, order: Int64) -> float:
        """The cost of another order."""
        return sum(_total(cost, order) for costs in self._costs.values() for cost in costs)

    def copy(self) -> _State:
        """One that moves on its own."""
        other = copy(self)
        other._of = {size: of.copy() for size, of in self._of.items()}
        other._tables = {size: table.copy() for size, table in self._tables.items()}
        return other

    def move(self, order: Int64, groups: Sequence[int] | Int64) -> None:
        """Take another order, which differs in these groups of `size`."""
        positions = np.arange(len(order)).reshape(-1, self.size)[groups].reshape(-1)
        source = np.argsort(self.order)[order[positions]]  # where the channels were
        for size, costs in self._costs.items():
            of, table = self._of[size], self._tables[size]
            table[:, positions] = table[:, source]
            own = np.unique(positions // size)
            members = order.reshape(-1, size)[own]  # (count, size)
            of[own] = np.sum([cost.of(members) for cost in costs], axis=0)
            rows = table.reshape(-1, size, len(order))
            rows[own] = 0
            for cost in costs:
                rows[own] += cost.exchanged(members, self._threads)[:, :, order]
        self.order = order

    def gains(self) -> Float32:
        """What an exchange of the channels at two positions gains, (positions, positions); nothing within a group."""
        gains = np.zeros((len(self.order), len(self.order)), np.float32)
        for size, table in self._tables.items():
            before = self._of[size].astype(np.float32).repeat(size)
            found = before[:, None] + before - table - table.T
            every = np.arange(len(found) // size)
            found.reshape(len(every), size, len(every), size)[every, :, every] = 0
            gains += found
        return gains


def _exchange(costs: Sequence[Cost], random: np.random.Generator, threads: int | None) -> Int64:
    """An order that no exchange makes better; then some groups are shuffled, and the search goes on from there, a few
    times."""
    best = _State(costs, threads)
    _settle(best)
    groups = len(best.order) // best.size
    for _ in range(min(ESCAPES, int(ESCAPE_WORK / len(best.order) ** 2))):
        state, chosen = best.copy(), random.permutation(groups)[: max(2, groups // SHUFFLED)]
        positions = np.arange(len(state.order)).reshape(groups, -1)[chosen].reshape(-1)
        order = state.order.copy()
        order[positions] = order[random.permutation(positions)]
        state.move(order, chosen)
        _settle(state)
        if state.total < best.total:
            best = state
    return best.order


def _settle(state: _State) -> None:
    """Exchange channels until nothing is gained, in rounds: in each the best exchange of any two groups, a group in one
    at most, so that their gains add up. Of large groups several at a time, as long as that lowers the cost."""
    most = max(1, state.size // AT_ONCE)
    for _ in range(ROUNDS):
        order, touched = _exchanged(state, most)
        if most > 1 and state.cost(order) >= state.total:
            most = 1
            order, touched = _exchanged(state, most)
        if not touched:
            return
        state.move(order, touched)


def _exchanged(state: _State, most: int) -> tuple[Int64, list[int]]:
    """The order after a round of exchanges, of which a group takes part in so many, and the groups that did."""
    gains, size, order = state.gains(), state.size, state.order.copy()
    pairs = gains.reshape(len(gains) // size, size, -1, size).max(axis=(1, 3))  # (groups, groups)
    times, moved = np.zeros(len(pairs), np.int64), np.zeros(len(order), np.bool_)
    ones, others = np.nonzero(np.triu(pairs, 1) > state.least)
    for index in np.argsort(-pairs[ones, others], kind="stable"):
        one, other = int(ones[index]), int(others[index])
        if max(times[one], times[other]) == most:
            continue
        a, b = divmod(int(gains[one * size : (one + 1) * size, other * size : (other + 1) * size].argmax()), size)
        a, b = one * size + a, other * size + b
        if not moved[a] and not moved[b]:
            order[[a, b]] = order[[b, a]]
            moved[[a, b]] = True
            times[[one, other]] += 1
    return order, [int(group) for group in np.nonzero(times)[0]]


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
