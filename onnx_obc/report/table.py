"""The report and the layers of a model as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.plural import counted
from .console import PlainConsole

if TYPE_CHECKING:
    from ..graph.cost import Cost
    from ..graph.layers import Layer, LeftOut
    from ..pipeline.attempts import CorrectionReport
    from ..pipeline.layer import EmbeddingReport, LayerReport
    from ..pipeline.report import Report

ATTEMPTS: dict[tuple[str, ...], str] = {
    ("sequential",): "solved in order",
    ("rounding",): "8 bits rounded to nearest",
    ("scale migration",): "scale moved from inputs into weights",
    ("channel permutation",): "channels reordered",
    ("reconstruction",): "parts trained by reconstruction",
}
SLOW = 5  # layers that are named of those that make a file slow
NAME_WIDTH = 40  # what the layers' names get at least, by leaving out other columns


@dataclass(frozen=True)
class Column:
    """A column of a table. Of those that do not fit, the ones with the highest `rank` are left out first."""

    title: str
    cells: Sequence[str]
    rank: int = 0
    left: bool = False

    @property
    def width(self) -> int:
        """The terminal columns that it takes, with the space beside it."""
        return max(len(text) for text in (self.title, *self.cells)) + 3


def layer_table(
    layers: Sequence[Layer],
    costs: Mapping[str, Cost],
    impossible: Mapping[str, Sequence[str]],
    left: Sequence[LeftOut],
    width: int,
) -> RenderableType:
    """What `onnx-obc inspect` shows: every layer with its weight matrix and cost, and what stays as it is."""
    found = [costs[layer.name] for layer in layers]
    free = dict.fromkeys(name for cost in found for name in cost.free)
    flops = ["?" if x.flops is None else f"{x.flops:,}" + ("*" if x.free else "") for x in found]
    table = fitted_table(
        [layer.name for layer in layers],
        [
            Column("op", [layer.op for layer in layers], rank=5, left=True),
            Column("weight matrix", [f"{x.groups} × {x.rows} × {x.columns}" for x in layers]),
            Column("parameters", [f"{cost.parameters:,}" for cost in found], rank=3),
            Column("FLOPs", flops, rank=1),
            Column("cannot be", [_short(impossible[layer.name]) for layer in layers], left=True),
        ],
        width,
    )
    reasons = Counter(reason for layer in layers for reason in impossible[layer.name])
    lines = [Text(f"{reason}: {counted(count, 'layer')}") for reason, count in reasons.items()]
    known = [cost.flops for cost in found if cost.flops is not None]
    parameters = sum(cost.parameters for cost in found)
    part = f" in {counted(len(known), 'layer')}: of the others shapes are not known" if len(known) < len(found) else ""
    lines.append(
        Text(f"{counted(len(layers), 'layer')}, {parameters:,} parameters, {sum(known):,} FLOPs a sample{part}")
    )
    lines.append(Text("a weight matrix is groups × rows × columns"))
    if free:
        sizes = ", ".join(f"{name} = 1" for name in free if name != "?") or "every dimension 1"
        others = ", as any other," if "?" in free and len(free) > 1 else ""
        lines.append(Text(f"* for a sample with {sizes}{others} that the model leaves free"))
    return Group(table, *lines, *_left_out(left))


def report_table(report: Report, width: int) -> RenderableType:
    """What a run shows when it is done: every layer, the outputs, the checks, the sizes."""
    layers, tables = report.layers, report.embeddings
    blank = [""] * len(tables)
    entries: list[LayerReport | EmbeddingReport] = [*layers, *tables]
    table = fitted_table(
        [x.name + (" ¹" if x.notes else "") for x in layers] + [x.name for x in tables],
        [
            Column("op", [x.op for x in layers] + ["Gather"] * len(tables), rank=5, left=True),
            Column("level", [x.level for x in entries], left=True),
            Column("input", [x.activations for x in layers] + blank, rank=2, left=True),
            Column("loss", [f"{x.loss:.3g}" for x in layers] + blank, rank=4),
            Column(
                "relative", [f"{x.loss_relative:.2e}" for x in layers] + [f"{x.error_relative:.2e}" for x in tables]
            ),
            Column("baseline", [f"{x.baseline_relative:.2e}" for x in layers] + blank),
            Column("× bound", [_times(x.loss_measured, x.loss_bound) for x in layers] + blank, rank=4),
            Column("damping", [f"{x.damping:g}" for x in layers] + blank, rank=6),
            Column("seconds", [f"{x.seconds:.2f}" for x in layers] + blank, rank=7),
            Column("bytes", [f"{x.bytes_after:,}" for x in entries], rank=1),
            Column("was", [f"{x.bytes_before:,}" for x in entries], rank=3),
        ],
        width,
    )
    lines = [Text(f"¹ {name}: {note}") for note, name in _by_note(report)]
    totals = report.totals
    if layers:
        mean, simple = totals["mean_loss_relative"], totals["mean_baseline_relative"]
        lines.append(Text(f"mean relative layer loss {mean:.3e}, by rounding or magnitude {simple:.3e}"))
    if report.search is not None:
        costs = ", ".join(f"{name} {share:.3f}" for name, share in report.search["costs"].items())
        lines.append(Text(f"budget {report.search['budget']}: of the dense model's layers {costs}"))
        if timed := report.search["latency"]:
            real = "not measured" if timed["measured"] is None else f"measured {timed['measured']:.2f} x"
            where = f"{timed['runtime']}, batch {timed['batch']}; {timed['machine']}"
            lines.append(Text(f"speed-up: predicted {timed['predicted']:.2f} x, {real} ({where})"))
    for attempt in report.corrections:
        where = "other samples" if report.calibration["held_out"] else "the calibration samples themselves"
        change = f"output loss {attempt.loss_before:.3g} → {attempt.loss_after:.3g} on {where}"
        dropped = "" if attempt.kept else f": dropped{_within_noise(attempt)}"
        what = ATTEMPTS.get(attempt.kinds) or f"corrected {' and '.join(attempt.kinds)}"
        lines.append(Text(f"{what} at {counted(attempt.sites, 'place')}, {change}{dropped}"))
    for output in report.outputs:
        if output.integers:
            lines.append(Text(f"output {output.name}: integers, which do not count in dB"))
            continue
        agreement = "" if output.top1_agreement is None else f", top-1 agreement {100 * output.top1_agreement:.1f} %"
        lines.append(Text(f"output {output.name}: {output.sqnr_db:.1f} dB SQNR against the dense model{agreement}"))
    for check in report.checks:
        mark = Text("✓ ", "green") if check.passed else Text("✗ ", "red")
        lines.append(mark + Text(f"{check.name}: {check.detail}"))
    if (engine := report.engine) is not None and engine["ran"]:
        if engine["quantized"]:
            count = f"{engine['in_integers']} of {engine['quantized']}"
            lines.append(Text(f"{engine['runtime']}: {count} quantized layers run in integers"))
        if engine["integer_weights"]:
            count = f"{engine['in_weight_kernels']} of {engine['integer_weights']}"
            lines.append(
                Text(f"{engine['runtime']}: {count} layers with integer weights alone run in kernels for them")
            )
    if (metric := report.metric) is not None:
        spread = "" if metric.standard_error is None else f" ± {100 * metric.standard_error:.2f}"
        how = "worse" if metric.drop >= 0 else "better"
        worse = f"{100 * abs(metric.drop):.2f}{spread} % {how}"
        told = f"{metric.dense:.5g} → {metric.compressed:.5g}, {worse} on {counted(metric.samples, 'sample')}"
        lines.append(Text(f"{metric.name}: {told}"))
    lines += [Text(f"note: {note}", "yellow") for note in report.notes]
    last = [Text(_sizes(report)), *_speed(report)]
    last += [Text(f"refused: {gate}", "red") for gate in report.gates if not gate.passed]
    return Group(table, *lines, *_left_out(report.left_out), *last)


def show(render: Callable[[int], RenderableType]) -> None:
    """Print what `render` makes for the terminal's width; where there is none, as wide as the content needs."""
    console = PlainConsole()
    if not console.is_terminal:
        console = PlainConsole(width=200)
    console.print(render(console.width))


def fitted_table(names: Sequence[str], columns: Sequence[Column], width: int, title: str = "layer") -> Table:
    """A table of layers, or of what else the title says.

    Columns are left out until the names have room; then long names go over several lines.
    """
    shown = list(columns)
    room = min(NAME_WIDTH, max(map(len, names), default=0))
    for column in sorted(columns, key=lambda column: -column.rank):
        if room + sum(other.width for other in shown) <= width or column.rank == 0:
            break
        shown.remove(column)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for column in shown:
        table.add_column(column.title, justify="left" if column.left else "right", no_wrap=True)
    for row in zip(names, *(column.cells for column in shown), strict=True):
        table.add_row(*(Text(text) for text in row))
    return table


def _short(reasons: Sequence[str]) -> str:
    """Only the levels of reasons such as `2:4: C/groups = 1 is not a multiple of 4`."""
    return ", ".join(reason.split(": ")[0] for reason in reasons)


def _times(loss: float, bound: float | None) -> str:
    """The loss as a multiple of its lower bound: how far from the optimum it is at most."""
    if loss <= 0:
        return "1"
    return f"{loss / bound:.2f}" if bound else ""


def _by_note(report: Report) -> list[tuple[str, str]]:
    """Every note on layers once, with the layer it is about, or how many it is about."""
    counts = Counter(note for layer in report.layers for note in layer.notes)
    names = {note: layer.name for layer in report.layers for note in layer.notes}
    return [(note, names[note] if count == 1 else f"{count} layers") for note, count in counts.items()]


def _within_noise(attempt: CorrectionReport) -> str:
    """Why an attempt was dropped that lowered the loss, if it was for that."""
    error = attempt.standard_error
    chance = error is not None and 0 < attempt.loss_before - attempt.loss_after <= error
    return f", as the gain is within its standard error of {error:.2g}" if chance else ""


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


def _speed(report: Report) -> list[Text]:
    """How fast the file is; where it is slower than the dense model, the layers that cost most."""
    if (speed := report.speed) is None:
        return []
    where = f"{speed.runtime}, batch {speed.batch}, {counted(speed.threads, 'thread')}"
    ratio = f"{speed.ratio:.2f} ({speed.low:.2f} … {speed.high:.2f})"
    if not speed.slower:
        return [Text(f"speed: {ratio} times the dense model's in {where}")]
    layers = speed.layers or {}
    compressed = {layer.name for layer in report.layers}
    slow = [name for name in speed.slow_layers if name in compressed][:SLOW]
    costly = ", ".join(f"{name} (+{1e3 * (layers[name][1] - layers[name][0]):.2g} ms)" for name in slow)
    remedy = "" if report.recipe.get("fix_slow") else "; --fix-slow returns such layers to float"
    who = f"; the layers that cost most: {costly}{remedy}" if costly else ""
    return [Text(f"slower than the dense model: {ratio} times its speed in {where}{who}", "yellow")]


def _sizes(report: Report) -> str:
    before, after = report.file_bytes_before, report.file_bytes_after
    sizes = f"{after:,} bytes"
    if before is not None:
        sizes = f"{before:,} → {sizes}, {after / before:.2f} of the original"
    took = f"{report.seconds['total']:.1f} s, {report.peak_memory_bytes / 2**30:.1f} GiB of memory"
    return f"{report.output or 'result'}: {sizes}; {took}"
