"""What `onnx-obc inspect` looks up: the layers of a model, what they cost, and what each cannot become."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType

from .graph.cost import layer_costs
from .graph.fold import fold
from .graph.layers import Layer, find_layers
from .graph.model import read_model
from .level import parse_level
from .report.table import layer_table

LEVELS = tuple(parse_level(text) for text in ("2:4", "4:8", "block4-0.50"))


def inspect_model(path: Path) -> RenderableType:
    """The layer table of a model file. Raises ModelError."""
    model, _ = fold(read_model(path))
    layers, left_out = find_layers(model)
    return layer_table(layers, layer_costs(model, layers), {x.name: impossible_levels(x) for x in layers}, left_out)


def impossible_levels(layer: Layer) -> list[str]:
    """Why the layer cannot take the usual patterns, for each that it cannot."""
    return [reason for level in LEVELS if (reason := layer.impossible(level)) is not None]
