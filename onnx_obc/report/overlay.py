"""A report beside the graph, in other people's viewers: node data for Model Explorer, metadata of nodes for Netron.

Model Explorer reads custom node data: a JSON file holds one value and colour for each node of a graph, by the node's
name. Netron reads no such file; it shows the metadata that nodes have in the model file itself, and so does Model
Explorer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError, ReportError
from ..core.files import write_plain
from ..graph.model import read_model
from ..graph.save import save_model
from .plain_report import LayerPart, PlainReport
from .report_figures import level_order, level_shades, shade, span
from .report_words import faster

LOSS_COLOURS = ("#f8ede4", "#f1d5be", "#e8b78f", "#dc9460", "#c66f37", "#a04b1b", "#6f2c0c")
LEVEL_COLOURS = ("#dfeaf3", "#b9d3e6", "#8db8d7", "#5f9ac5", "#377bad", "#1d5c8c", "#0b3d63")
DARK = 4  # the first colour that dark text cannot be read on
FIGURES = ("loss", "level", "bytes", "speed")
PREFIX = "onnx-obc "


def overlay_paths(path: Path, budgets: Sequence[str] = ()) -> list[tuple[Path, ...]]:
    """The files that an overlay may go to, for each run. Raises RecipeError for a name that says no format.

    net.json: net-loss.json, net-level.json, net-bytes.json and, where layers were timed, net-speed.json. net.onnx: that
    file. With several budgets their names come before that.
    """
    if path.suffix not in (".json", ".onnx"):
        raise RecipeError(f"--overlay {path}: name a .json file, for Model Explorer, or an .onnx file, for Netron")
    names = [f"-{budget.replace('=', '-').replace('%', 'pct')}" for budget in budgets] if len(budgets) > 1 else [""]
    if path.suffix == ".onnx":
        return [(path.with_name(f"{path.stem}{name}.onnx"),) for name in names]
    return [tuple(path.with_name(f"{path.stem}{name}-{figure}.json") for figure in FIGURES) for name in names]


def write_overlay(report: PlainReport, paths: Sequence[Path]) -> list[Path]:
    """Write the overlay of one report to what `overlay_paths` says; returns what was written. Raises OutputError.

    Raises ReportError where an .onnx file is asked for and the model of the report is not there, or is another one.
    """
    if paths[0].suffix == ".onnx":
        _write_model(report, paths[0])
        return [paths[0]]
    written = []
    for path, data in zip(paths, _node_data(report).values(), strict=True):
        if data["results"]:
            write_plain(path, data, indent=1)
            written.append(path)
    return written


def _write_model(report: PlainReport, path: Path) -> None:
    """A copy of the compressed model, whose nodes say what became of them."""
    if not report.output:
        raise ReportError(
            "the model of the report was not written: an .onnx overlay is a copy of it; name a .json file"
        )
    model = read_model(Path(report.output))
    nodes = {node.name: node for node in model.graph.all_nodes()}
    found = 0
    for layer in report.layers:
        for name in _nodes(report, layer):
            if (node := nodes.get(name)) is not None:
                node.metadata_props.update({f"{PREFIX}{key}": text for key, text in _in_words(report, layer).items()})
                found += 1
    if report.layers and not found:
        raise ReportError(f"{report.output} has none of the layers of the report; give the report of that model")
    save_model(model, path)


def _in_words(report: PlainReport, layer: LayerPart) -> dict[str, str]:
    said = {
        "level": f"{layer.level}, input {layer.activations}",
        "bytes": f"{layer.bytes_before} to {layer.bytes_after}",
    }
    if layer.loss_relative is not None:
        said["relative loss"] = f"{layer.loss_relative:.4g}"
    if layer.baseline_relative is not None:
        said["relative loss of the baseline"] = f"{layer.baseline_relative:.4g}"
    if (ratio := faster(report, layer)) is not None:
        said["times faster"] = f"{ratio:.3g}"
    return said


def _node_data(report: PlainReport) -> dict[str, dict[str, Any]]:
    """Each figure in Model Explorer's form."""
    low, high = span([layer.loss_relative for layer in report.layers], log=True)
    levels = level_shades(level_order([report]))
    speeds = {layer.name: faster(report, layer) for layer in report.layers}
    slowest, fastest = span(speeds.values())
    most = max((layer.bytes_after for layer in report.layers), default=1)
    results: dict[str, dict[str, Any]] = {figure: {} for figure in FIGURES}
    for layer in report.layers:
        speed = speeds[layer.name]
        shades = {
            "loss": (layer.loss_relative, LOSS_COLOURS, shade(layer.loss_relative, low, high, log=True)),
            "level": (layer.level, LEVEL_COLOURS, levels[layer.level]),
            "bytes": (layer.bytes_after, LOSS_COLOURS, shade(layer.bytes_after, 0, most)),
            "speed": (speed, LEVEL_COLOURS, shade(speed, slowest, fastest)),
        }
        for figure, (value, colours, number) in shades.items():
            if value is not None:
                text = "#ffffff" if number >= DARK else "#000000"
                one = {"value": value, "bgColor": colours[number], "textColor": text}
                results[figure] |= dict.fromkeys(_nodes(report, layer), one)
    titles: Mapping[str, str] = {
        "loss": "onnx-obc: relative layer loss",
        "level": "onnx-obc: level",
        "bytes": "onnx-obc: bytes of the weight",
        "speed": "onnx-obc: times faster than dense",
    }
    return {figure: {"name": titles[figure], "results": results[figure]} for figure in FIGURES}


def _nodes(report: PlainReport, layer: LayerPart) -> tuple[str, ...]:
    weight = report.weights.get(layer.name)
    return weight.nodes if weight is not None and weight.nodes else (layer.name,)
