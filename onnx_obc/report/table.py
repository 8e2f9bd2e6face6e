"""The report and the layers of a model as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..graph.cost import Cost
from ..graph.layers import Layer, LeftOut
from .report import Report


def layer_table(
    layers: Sequence[Layer], costs: Mapping[str, Cost], impossible: Mapping[str, Sequence[str]], left: Sequence[LeftOut]
) -> RenderableType:
    """What `onnx-obc inspect` shows: every layer with its weight matrix and cost, and what stays as it is."""
    table = Table()
    _columns(table, ("layer", "op"), ("groups × rows × columns", "parameters", "FLOPs"))
    table.add_column("impossible levels")
    free: dict[str, None] = {}
    for layer in layers:
        cost = costs[layer.name]
        free |= dict.fromkeys(cost.free)
        table.add_row(
            Text(layer.name),
            layer.op,
            f"{layer.groups} × {layer.rows} × {layer.columns}",
            f"{cost.parameters:,}",
            "?" if cost.flops is None else f"{cost.flops:,}" + ("*" if cost.free else ""),
            Text("; ".join(impossible[layer.name])),
        )
    known = [cost.flops for cost in costs.values() if cost.flops is not None]
    parameters = sum(cost.parameters for cost in costs.values())
    notes = [Text(f"{len(layers)} layers, {parameters:,} parameters, {sum(known):,} FLOPs a sample")]
    if free:
        sizes = ", ".join(f"{name} = 1" for name in free)
        notes.append(Text(f"* for a sample with {sizes}, which the model leaves free"))
    return Group(table, *notes, *_left_out(left))


def report_table(report: Report) -> RenderableType:
    """What a run shows when it is done: every layer, the outputs, the checks, the sizes."""
    table = Table()
    figures = ("loss", "relative", "baseline", "damping", "seconds", "bytes", "was")
    _columns(table, ("layer", "op", "level", "input"), figures)
    for x in report.layers:
        table.add_row(
            Text(x.name + (" ¹" if x.notes else "")),
            x.op,
            x.level,
            x.activations,
            f"{x.loss:.3g}",
            f"{x.loss_relative:.2e}",
            f"{x.baseline_relative:.2e}",
            f"{x.damping:g}",
            f"{x.seconds:.2f}",
            f"{x.bytes_after:,}",
            f"{x.bytes_before:,}",
        )
    for e in report.embeddings:
        row = (f"{e.error_relative:.2e}", "", "", "", f"{e.bytes_after:,}", f"{e.bytes_before:,}")
        table.add_row(Text(e.name), "Gather", e.level, "", "", *row)
    lines = [Text(f"¹ {name}: {note}") for note, name in _by_note(report)]
    totals = report.totals
    lines.append(
        Text(
            f"mean relative layer loss {totals['mean_loss_relative']:.3e}, by rounding or magnitude "
            f"{totals['mean_baseline_relative']:.3e}"
        )
    )
    for output in report.outputs:
        agreement = "" if output.top1_agreement is None else f", top-1 agreement {100 * output.top1_agreement:.1f} %"
        lines.append(Text(f"output {output.name}: {output.sqnr_db:.1f} dB SQNR against the dense model{agreement}"))
    for check in report.checks:
        mark = Text("✓ ", "green") if check.passed else Text("✗ ", "red")
        lines.append(mark + Text(f"{check.name}: {check.detail}"))
    lines += [Text(f"note: {note}", "yellow") for note in report.notes]
    return Group(table, *lines, *_left_out(report.left_out), Text(_sizes(report)))


def show(renderable: RenderableType) -> None:
    """Print to the terminal; where there is none, as wide as the content needs."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(renderable)


def _columns(table: Table, left: Sequence[str], right: Sequence[str]) -> None:
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)


def _by_note(report: Report) -> list[tuple[str, str]]:
    """Every note on layers once, with the layer it is about, or how many it is about."""
    counts = Counter(note for layer in report.layers for note in layer.notes)
    names = {note: layer.name for layer in report.layers for note in layer.notes}
    return [(note, names[note] if count == 1 else f"{count} layers") for note, count in counts.items()]


def _left_out(left: Sequence[LeftOut]) -> list[Text]:
    """What stays as it is, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for entry in left:
        by_reason.setdefault(entry.reason, []).append(entry.name)
    lines = []
    for reason, names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(Text(f"left as it is: {shown}: {reason}", "yellow"))
    return lines


def _sizes(report: Report) -> str:
    before, after = report.file_bytes_before, report.file_bytes_after
    sizes = f"{after:,} bytes"
    if before is not None:
        sizes = f"{before:,} → {sizes}, {after / before:.2f} of the original"
    return f"{report.output or 'result'}: {sizes}; {report.seconds['total']:.1f} s"
