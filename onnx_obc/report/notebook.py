"""A result in a notebook: the page of its report, in a frame of its own, so that neither's style meets the other's."""

from __future__ import annotations

from html import escape

from ..pipeline.finish import Result
from .plain_report import checked_reports
from .report_page import report_page

HEIGHT = 720  # pixels


def framed(result: Result) -> str:
    """The page of a result in an <iframe>."""
    page = report_page(checked_reports(result.report.to_dict(), "the report"))
    size = f'width="100%" height="{HEIGHT}" style="border: 0"'
    return f'<iframe title="report of onnx-obc" sandbox="allow-scripts" {size} srcdoc="{escape(page)}"></iframe>'
