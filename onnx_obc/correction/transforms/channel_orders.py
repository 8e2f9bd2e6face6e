"""What a file says of the order that its channels were given, so that it can be compared with the dense model."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ...core.arrays import Int64
from ...core.errors import ModelError
from ...graph.fold import fold
from .channel_groups import find_channels
from .channel_permutation import reorder

ORDERS = "onnx_obc.channel_orders"  # metadata: a list of [value, axis, first channel, where each channel comes from]


def note_orders(model: ir.Model, orders: Mapping[int, Int64], dense: ir.Model) -> None:
    """Write the orders of pieces into a reordered model's metadata, each at a value that the dense model has too."""
    known = {value.name for node in dense.graph for value in node.outputs}
    channels = find_channels(model.graph)
    places: dict[int, tuple[str, int, int]] = {}
    for node in model.graph:
        for value in node.outputs:
            if value.name is None or value.name not in known or value.shape is None:
                continue
            for axis in range(len(value.shape)):
                start = 0
                for piece, size in channels.pieces(value, axis):
                    places.setdefault(piece, (value.name, axis, start))
                    start += size
    noted = [[*places[piece], order.tolist()] for piece, order in orders.items() if piece in places]
    model.metadata_props[ORDERS] = json.dumps(noted, separators=(",", ":"))


def in_same_order(dense: ir.Model, compressed: ir.Model) -> ir.Model:
    """The dense model with the channels of its values in the order of the compressed one's.

    Raises ModelError if they were not made from each other.
    """
    noted = compressed.metadata_props.get(ORDERS)
    if noted is None:
        return dense
    model, _ = fold(dense, fuse=False)
    channels = find_channels(model.graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    orders: dict[int, Int64] = {}
    for name, axis, first, order in json.loads(noted):
        start, found = 0, False
        for piece, size in channels.pieces(values[name], axis) if name in values else ():
            if (start, size) == (first, len(order)) and not channels.is_fixed(piece):
                orders[piece], found = np.array(order), True
            start += size
        if not found:
            raise ModelError(
                f"the channels of {name!r} were reordered when the file was made, and the dense model has no such "
                "channels: name the model that the file was made from"
            )
    reorder(model, orders)
    return model
