"""Reports as files, pages and overlays: what runs write beside the model, and the command that makes a page later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import OutputError, plain
from .options import Output, Overlay
from .results import check_results, typed

if TYPE_CHECKING:
    from ..pipeline.report import Report
    from ..report.plain_report import PlainReport
    from ..search.budget import Budget


@dataclass(frozen=True)
class Beside:
    """What a run writes beside its models."""

    report: Path | None = None
    html: Path | None = None
    overlay: Path | None = None


def check_beside(outputs: Sequence[Path], beside: Beside, budgets: Sequence[Budget], source: Path | None) -> list[Path]:
    """All files that a run will write. Raises an error for those that cannot be written."""
    overlays: list[Path] = []
    if beside.overlay is not None:
        from ..report.overlay import overlay_paths

        overlays = [path for paths in overlay_paths(beside.overlay, [str(one) for one in budgets]) for path in paths]
    check_results([beside.report, beside.html, *overlays], outputs, source)
    return [path for path in (*outputs, beside.report, beside.html, *overlays) if path is not None]


def write_beside(made: Sequence[Report], beside: Beside) -> None:
    """Write the reports of one or several budgets, with the command that was typed, as what is asked for."""
    from ..report.as_json import write_json
    from ..report.plain_report import checked_reports
    from ..report.report_page import write_report_page

    reports = [replace(report, command=typed.get()) for report in made]
    if beside.report is not None:
        write_json(reports if len(reports) > 1 else reports[0], beside.report)
    if beside.html is None and beside.overlay is None:
        return
    plain_reports = checked_reports([report.to_dict() for report in reports], "the report")
    if beside.html is not None:
        write_report_page(plain_reports, beside.html)
    if beside.overlay is not None:
        write_overlays(plain_reports, beside.overlay, [])


def report_command(source: Path, /, output: Output, *, overlay: Overlay = None) -> None:
    """Make the page of a report: what --html of the run itself writes.

    Parameters
    ----------
    source
        The report that --report wrote, as JSON; a list of reports, as several budgets give, makes one page.
    output
        Where to write the page.
    overlay
        Write the layers' figures for a graph viewer too: a .json file for Model Explorer, an .onnx file for Netron.
    """
    from ..report.plain_report import read_reports
    from ..report.report_page import write_report_page

    check_results([output], [], None)
    if output.resolve() == source.resolve():
        raise OutputError(f"cannot write {output}: it is the report itself; name another file")
    reports = read_reports(source)
    written = [output]
    if overlay is not None:
        written += write_overlays(reports, overlay, [output, source])
    write_report_page(reports, output)
    print(plain(f"written: {', '.join(map(str, written))}"))


def write_overlays(reports: Sequence[PlainReport], overlay: Path, taken: Sequence[Path]) -> list[Path]:
    """Write the overlays of reports; returns what was written. taken: files that none may replace."""
    from ..report.overlay import overlay_paths, write_overlay

    budgets = [one.search.budget if one.search is not None else str(i) for i, one in enumerate(reports, 1)]
    paths = overlay_paths(overlay, budgets)
    models = [Path(report.output) for report in reports if report.output]
    check_results([path for each in paths for path in each], [*taken, *models], None)
    return [path for report, each in zip(reports, paths, strict=True) for path in write_overlay(report, each)]
