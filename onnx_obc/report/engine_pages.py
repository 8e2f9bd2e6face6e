"""What engines do, as pages: the findings of a check, the times of a benchmark."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from ..core.errors import shortened
from ..targets.bench import Benchmark
from ..targets.check import FileCheck
from . import report_words as words
from .engines import by_rule
from .plot import Scale, figure, line, rectangle
from .render import write_page


def write_check_page(found: FileCheck, path: Path) -> None:
    """The page of a check. Raises OutputError."""
    runs = Counter((one.promised, one.kernel or "unknown", one.precision or "unknown") for one in found.executions)
    values = {
        "found": found,
        "name": words.file_name(found.file),
        "groups": by_rule(found),
        "counts": Counter(finding.severity for finding in found.findings),
        "runs": runs.most_common(),
        "words": words,
    }
    write_page("check.html.j2", values, path)


def write_bench_page(found: Benchmark, path: Path) -> None:
    """The page of a benchmark. Raises OutputError."""
    most = max(one.ratio for one in found.files)
    named = Counter(words.file_name(one.file) for one in found.files)

    def name(path: str) -> str:
        short = words.file_name(path)
        return shortened(short if named[short] == 1 else path, 60)

    rows = [
        {
            "name": name(one.file),
            "path": one.file,
            "one": one,
            "bar": _bar(one.ratio, one.low, one.high, most),
            "outputs": "equal" if one.sqnr_db == math.inf else f"{one.sqnr_db:.1f} dB" if _known(one.sqnr_db) else "–",
        }
        for one in found.files
    ]
    best = max(found.files[1:], key=lambda one: one.ratio)
    values = {"found": found, "rows": rows, "best": best, "first": found.files[0], "words": words}
    values |= {"title": f"{name(best.file)} against {name(found.files[0].file)}"}
    write_page("bench.html.j2", values, path)


def _bar(ratio: float, low: float, high: float, most: float) -> str:
    """How many times faster a file is, and the quartiles of that."""
    x = Scale(0, 1.15 * most, 0, 300)
    parts = [rectangle((0, 3), (x(ratio), 13), "now"), line([(x(1), 0), (x(1), 16)], "mark")]
    parts.append(line([(x(low), 8), (x(high), 8)], "spread"))
    return figure(300, 16, f"{ratio:.2f} times as fast", parts, "bench", stretched=True)


def _known(value: float) -> bool:
    return math.isfinite(value)
