"""Where the order lies that channels were given, by names: so a database has it, and so a file says what it was."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...core.arrays import Int64
from ...core.errors import ModelError
from ...graph.fold import fold
from .channel_groups import find_channels
from .channel_permutation import reorder

ORDERS = "onnx_obc.channel_orders"  # metadata: a list of [value, axis, first channel, where each channel comes from]


@dataclass(frozen=True)
class Order:
    """The order of some channels: of so many along this axis of a value, from `first` on. order: where each comes from,
    (channels,) int64."""

    value: str
    axis: int
    first: int
    order: Int64


def orders_at(model: ir.Model, orders: Mapping[int, Int64], known: Container[str] | None = None) -> list[Order]:
    """The orders of a model's pieces at values of these names, if they have any; None: at any value."""
    channels = find_channels(model.graph)
    found: dict[int, Order] = {}
    for node in model.graph:
        for value in node.outputs:
            if not value.name or (known is not None and value.name not in known) or value.shape is None:
                continue
            for axis in range(len(value.shape)):
                first = 0
                for piece, size in channels.pieces(value, axis):
                    if piece in orders and piece not in found:
                        found[piece] = Order(value.name, axis, first, orders[piece])
                    first += size
    return [found[piece] for piece in orders if piece in found]


def pieces_of(model: ir.Model, orders: Iterable[Order]) -> dict[int, Int64]:
    """The orders by the piece of this model that each is of. Raises ModelError if it has no such channels."""
    channels = find_channels(model.graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    pieces: dict[int, Int64] = {}
    for one in orders:
        start, fits = 0, False
        for piece, size in channels.pieces(values[one.value], one.axis) if one.value in values else ():
            if (start, size) == (one.first, len(one.order)) and not channels.is_fixed(piece):
                pieces[piece], fits = one.order, True
            start += size
        if not fits:
            raise ModelError(
                f"the channels of {one.value!r} were reordered when the file was made, and the dense model has no such "
                "channels: name the model that the file was made from"
            )
    return pieces


def note_orders(model: ir.Model, orders: Mapping[int, Int64], dense: ir.Model) -> None:
    """Write the orders of pieces into a reordered model's metadata, each at a value that the dense model has too."""
    known = {value.name for node in dense.graph for value in node.outputs if value.name}
    noted = [[one.value, one.axis, one.first, one.order.tolist()] for one in orders_at(model, orders, known)]
    model.metadata_props[ORDERS] = json.dumps(noted, separators=(",", ":"))


def in_same_order(dense: ir.Model, compressed: ir.Model) -> ir.Model:
    """The dense model with the channels of its values in the order of the compressed one's.

    Raises ModelError if they were not made from each other.
    """
    noted = compressed.metadata_props.get(ORDERS)
    if noted is None:
        return dense
    model, _ = fold(dense, fuse=False)
    orders = [Order(value, axis, first, np.array(order)) for value, axis, first, order in json.loads(noted)]
    reorder(model, pieces_of(model, orders))
    return model
