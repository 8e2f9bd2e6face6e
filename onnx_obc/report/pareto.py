"""Several budgets side by side: a table and a plot of what each reached."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..core.files import write_file
from ..pipeline.finish import Result


@dataclass(frozen=True)
class Point:
    """One model. bops, obc_bops, flops, size: its cost relative to the dense model's, None where it is not known.
    loss: the output loss on held-out samples. bytes: of the file."""

    budget: str
    file: str
    bops: float | None
    obc_bops: float | None
    flops: float | None
    size: float | None
    latency: float | None
    loss: float
    bytes: int


def write_pareto(points: Sequence[Point], path: Path) -> tuple[Path, Path]:
    """Write `path`.csv and `path`.svg of one or more points, each under a temporary name first. Raises OutputError.

    The plot is of the first budget's kind; a point whose loss is not known, or infinite, is in the table only.
    """
    names = [field.name for field in fields(Point)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(point, name) for name in names] for point in points])
    files = path.with_name(f"{path.name}.csv"), path.with_name(f"{path.name}.svg")
    for file, data in zip(files, (text.getvalue().encode(), _plot(points)), strict=True):
        write_file(file, data)
    return files


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points (times smaller, loss) that no other one beats in both, by their index, from the largest model on.

    A point without a finite loss is never among them.
    """
    order = sorted(
        (i for i, (_, loss) in enumerate(points) if math.isfinite(loss)), key=lambda i: (-points[i][0], points[i][1])
    )
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] < points[kept[-1]][1]:
            kept.append(i)
    return kept[::-1]


def _plot(points: Sequence[Point]) -> bytes:
    import matplotlib

    kind = points[0].budget.partition("=")[0].replace("-", "_")
    kind = kind if kind in ("bops", "obc_bops", "flops", "latency") else "size"
    shares = [getattr(point, kind) for point in points]
    if any(not share for share in shares):
        kind, shares = "size", [point.size or 1.0 for point in points]
    where = [(1 / share, point.loss) for share, point in zip(shares, points, strict=True)]
    with matplotlib.rc_context({"svg.hashsalt": "onnx-obc", "svg.fonttype": "none"}):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        best = [where[i] for i in front(where)]
        axes.plot(*zip(*best, strict=True), "-", color="tab:blue", linewidth=1)
        axes.plot(*zip(*where, strict=True), "o", color="tab:blue")
        for (x, y), point in zip(where, points, strict=True):
            axes.annotate(point.budget, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axes.set_xlabel(f"{kind.replace('_', '-')}, times less than the dense model")
        axes.set_ylabel("output loss on held-out samples")
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        canvas, data = FigureCanvasSVG(figure), io.BytesIO()
        canvas.print_svg(data, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return data.getvalue()


def pareto_points(results: Sequence[Result]) -> list[Point]:
    """What several models reached, for `write_pareto`."""
    points = []
    for result in results:
        report, search = result.report, result.report.search or {}
        costs = search.get("costs", {})
        points.append(
            Point(
                budget=str(search.get("budget", "")),
                file=report.output,
                bops=costs.get("bops"),
                obc_bops=costs.get("obc-bops"),
                flops=costs.get("flops"),
                size=costs.get("size"),
                latency=costs.get("latency"),
                loss=report.output_loss if report.output_loss is not None else float("nan"),
                bytes=report.file_bytes_after,
            )
        )
    return points
