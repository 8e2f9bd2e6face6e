"""Terminal tables of what engines do: findings, times, comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..core.level import FLOAT, Choice
from ..core.plural import counted
from ..search.latency.table import Timings
from ..targets.bench import Benchmark
from ..targets.check import FileCheck

COLOURS = {"error": "red", "slow": "yellow", "note": "cyan"}
SHOWN = 5  # nodes that are named of all that a finding is about


def examination_table(found: FileCheck, width: int) -> RenderableType:
    """Every rule that is broken once, with the nodes that break it, and what the engine runs."""
    lines: list[RenderableType] = []
    for (severity, rule, message, remedy), nodes in by_rule(found).items():
        named = [node for node in nodes if node]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        where = f" {', '.join(named[:SHOWN])}{more}:" if named else ""
        advice = f" → {remedy}" if remedy else ""
        lines.append(Text.assemble((f"{severity} [{rule}]", COLOURS[severity]), f"{where} {message}{advice}"))
    if found.ran:
        runs = Counter((entry.promised, entry.kernel or "?", entry.precision or "?") for entry in found.executions)
        for (form, kernel, precision), count in runs.most_common():
            lines.append(Text(f"{count} × {form} in the file: {found.target} runs {kernel} in {precision}"))
        (kept, products), (fused, alone) = found.count("int8"), found.weights
        said = [f"{kept} of {products} quantized products run in integers"] if products or not alone else []
        said += [f"{fused} of {alone} with integer weights alone run in kernels for them"] if alone else []
        lines.append(Text(f"{found.engine}: {', '.join(said)}"))
        if found.supported is not None:
            lines.append(Text(f"{100 * found.supported:.1f} % of its operations run in the engine itself"))
    else:
        lines.append(Text(f"not run: {found.engine}", "yellow"))
    errors = sum(finding.severity == "error" for finding in found.findings)
    slow = sum(finding.severity == "slow" for finding in found.findings)
    costly = counted(slow, "finding that costs speed", "findings that cost speed")
    lines.append(Text(f"{found.file} for {found.target}: {counted(errors, 'error')}, {costly}"))
    return Group(*lines)


def by_rule(found: FileCheck) -> dict[tuple[str, str, str, str], list[str]]:
    """The nodes of each severity, rule, message and remedy, the most severe first."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in sorted(found.findings, key=lambda finding: list(COLOURS).index(finding.severity)):
        groups.setdefault((finding.severity, finding.rule, finding.message, finding.remedy), []).append(finding.node)
    return groups


NOISE = "outputs are of random numbers, on which integer activations look worse than they are; give --calib DATA"


def bench_table(found: Benchmark) -> RenderableType:
    """The files with their times, and how many times faster each is than the first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("file", overflow="fold")
    for title in ("ms", "× faster", "quartiles", "outputs", "top-1", "bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for entry in found.files:
        table.add_row(
            entry.file,
            f"{1e3 * entry.seconds:.3g}",
            f"{entry.ratio:.2f}",
            f"{entry.low:.2f} … {entry.high:.2f}",
            "equal" if entry.sqnr_db == math.inf else f"{entry.sqnr_db:.1f} dB",
            "" if entry.top1 is None else f"{100 * entry.top1:.0f} %",
            f"{entry.bytes:,}",
        )
    turns = f"{counted(found.threads, 'thread')}, {counted(found.rounds, 'round')} in turn"
    about = f"{found.runtime}, batch {found.batch}, {turns}; {found.machine}"
    return Group(table, Text(about), *([Text(NOISE)] if found.synthetic else []))


def timing_table(found: Timings, choices: Sequence[Choice]) -> RenderableType:
    """The whole model at each choice, layers that cannot have it in float."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("level")
    for title in ("layers", "ms", "× faster"):
        table.add_column(title, justify="right")
    dense = found.rest + sum(row[str(FLOAT)] for row in found.layers.values())
    for choice in map(str, choices):
        having = sum(choice in row for row in found.layers.values())
        total = found.rest + sum(row.get(choice, row[str(FLOAT)]) for row in found.layers.values())
        mark = " °" if choice in found.interpolated else ""
        table.add_row(f"{choice}{mark}", str(having), f"{1e3 * total:.3g}", f"{dense / total:.2f}")
    about = f"{found.runtime}, batch {found.batch}, {counted(found.threads, 'thread')}; {found.machine}"
    lines = [Text(f"{1e3 * found.rest:.3g} ms belong to no layer"), Text(about)]
    if found.interpolated:
        lines.insert(0, Text("° interpolated between the sparsities that were timed"))
    return Group(table, *lines)
