"""What `onnx-obc inspect` looks up: the layers of a model, what they cost, and what each cannot become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import RenderableType

from ..core.level import Choice, parse_level
from ..graph.cost import layer_costs
from ..graph.fold import fold
from ..graph.half import widen
from ..graph.layers import Layer, find_layers
from ..graph.model import read_model
from ..graph.scales import unwritable
from ..report.table import layer_table

LEVELS = tuple(parse_level(text) for text in ("2:4", "4:8", "block4-0.50"))
INT8 = Choice(parse_level("int8"))


def inspect_model(path: Path) -> Callable[[int], RenderableType]:
    """The layer table of a model file, for a terminal of so many columns. Raises ModelError."""
    model, _ = fold(widen(read_model(path)))
    layers, left_out = find_layers(model)
    costs = layer_costs(model, layers)
    impossible = {layer.name: impossible_levels(layer) for layer in layers}
    return lambda width: layer_table(layers, costs, impossible, left_out, width)


def impossible_levels(layer: Layer) -> list[str]:
    """Why the layer cannot take the usual patterns, or integers, for each that it cannot."""
    reasons = [layer.impossible(level) for level in LEVELS]
    if (reason := unwritable(layer, INT8)) is not None:
        reasons.append(f"integers: {reason}")
    return [reason for reason in reasons if reason is not None]
