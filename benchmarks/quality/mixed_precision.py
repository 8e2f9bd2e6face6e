"""Mixed precision by itself: how many layers return to float for a few decibels more than 8 bits keep.

    python -m benchmarks.quality.text_detector
    python -m benchmarks.quality.mixed_precision [--zoo]

Weights are rounded to 8 bits and inputs quantized to 8 on ranges of calibration data. Writes the section "Mixed
precision" of benchmarks/results/beyond.md, from rows in mixed_precision.jsonl that are run once.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import RESULTS, Rows, arguments
from benchmarks.common.subjects import find_subjects
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.options import DataOptions
from onnx_obc.core.errors import GateError, ObcError
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.finish import Result
from onnx_obc.pipeline.options import Activations
from onnx_obc.pipeline.recipe import Recipe

TITLE = "## Mixed precision"
MORE = (5,)  # decibels above what 8 bits keep that are asked for
SAMPLES, ZOO_DB = 160, 25
NAMES = ("text detector", "EfficientNet-Lite0", "MiniLM")
FIELDS = ("model", "asked")


def main() -> None:
    parser = arguments(__doc__, NAMES)
    parser.add_argument("--zoo", action="store_true", help="the graphs that tests run on, too")
    options = parser.parse_args()
    rows = Rows(RESULTS / "mixed_precision.jsonl", FIELDS)
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            for name, model, data, how in _subjects(options.models, options.shared, Path(scratch)):
                if not options.only or name in options.only:
                    _subject(rows, name, model, data, how)
        if options.zoo:
            _zoo(rows)
    _write(rows)


def _subjects(models: Path, shared: Path, scratch: Path) -> list[tuple[str, Path, object, DataOptions]]:
    found: list[tuple[str, Path, object, DataOptions]] = []
    if (detector := models / "text-detector.onnx").exists():
        from benchmarks.quality.text_detector import drawn, photographs

        pixels = drawn(photographs(shared)[: 4 * SAMPLES : 4], 7)[0]
        found.append(("text detector", detector, {"image": pixels}, DataOptions()))
    for subject in find_subjects(models, shared, scratch, ("EfficientNet-Lite0", "MiniLM")):
        found.append((subject.name, subject.path, subject.calibration, replace(subject.options, samples=SAMPLES)))
    return found


def _subject(rows: Rows, name: str, model: Path, data: object, how: DataOptions) -> None:
    planned = {}
    kinds: tuple[Activations, ...] = ("none", "int8")
    for kind in kinds:
        if (name, kind) not in rows:
            rows.add({"model": name, "asked": kind, **_figures(_run(model, data, how, kind, None))})
        planned[kind] = next(r["reached"] for r in rows.rows if (r["model"], r["asked"]) == (name, kind))
    for more in MORE:
        asked = f"{planned['int8'] + more:.0f}dB"
        if (name, asked) not in rows:
            began = time.monotonic()
            result = _run(model, data, how, "int8", asked)
            rows.add({"model": name, "asked": asked, **_figures(result), "all_seconds": time.monotonic() - began})
            print(rows.rows[-1], flush=True)


def _run(model: Path, data: object, how: DataOptions, kind: Activations, asked: str | None) -> Result:
    recipe = Recipe(
        solver="baseline", effort="fast", activations=kind, min_quality=asked, measure_speed=False, device="cpu"
    )
    try:
        return compress(model, data, recipe, data=how)
    except GateError as error:
        result: Result = error.results[0]
        return result


def _figures(result: Result) -> dict[str, Any]:
    report = result.report
    worst = min((x for x in report.outputs if not x.integers), key=lambda x: x.sqnr_db, default=None)
    note = next((x for x in report.notes if x.startswith("mixed precision") or "out of reach" in x), "")
    counts = re.search(r"with (\d+) of (\d+) layers? in float", note)
    return {
        "reached": None if worst is None else worst.sqnr_db,
        "output": None if worst is None else worst.name,
        "passed": all(gate.passed for gate in report.gates),
        "layers": len(report.layers) if counts is None else int(counts[2]),
        "in_float": 0 if counts is None else int(counts[1]),
        "seconds": dict(report.seconds).get("mix", 0.0),
        "note": note,
    }


def _zoo(rows: Rows) -> None:
    """Each graph at int8, and where an output is below ZOO_DB with that asked for."""
    sys.path.insert(0, "tests")
    from zoo.builders import CASES

    for case in CASES:
        key = f"zoo: {case.name}"
        if (key, "int8") in rows:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = Path(folder) / "dense.onnx"
            try:
                case.build(path)
                data, how = case.feeds(np.random.default_rng(1)), DataOptions()
                plain = _figures(_run(path, data, how, "int8", None))
                if plain["reached"] is not None and plain["reached"] < ZOO_DB:
                    asked = f"{ZOO_DB}dB"
                    rows.add({"model": key, "asked": asked, **_figures(_run(path, data, how, "int8", asked))})
            except ObcError as error:
                plain = {"reached": None, "note": str(error)}
        rows.add({"model": key, "asked": "int8", **plain})


def _write(rows: Rows) -> None:
    page = RESULTS / "beyond.md"
    text = page.read_text(encoding="utf-8") if page.exists() else "# Beyond the layer\n"
    before, _, rest = text.partition(f"{TITLE}\n")
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    page.write_text(f"{before.rstrip()}\n\n{_section(rows)}\n{after}", encoding="utf-8")


def _section(rows: Rows) -> str:
    found = {(row["model"], row["asked"]): row for row in rows.rows}
    cells = []
    for name in NAMES:
        for row in (row for row in rows.rows if row["model"] == name and str(row["asked"]).endswith("dB")):
            none, planned = found[name, "none"]["reached"], found[name, "int8"]["reached"]
            first = ", ".join(re.findall(r"(\S+) \((?:its input|all of it)\)", row["note"])[:2])
            count = f"{row['in_float']} of {row['layers']}" if row["passed"] else "refused"
            figures = (f"{none:.1f}", f"{planned:.1f}", row["asked"], f"{row['reached']:.1f}", count)
            cells.append((name, *figures, f"{row['seconds']:.0f}", first))
    header = ("model", "8w", "8w8a", "asked", "reached", "layers in float", "seconds", "the first of them")
    zoo = [row for row in rows.rows if str(row["model"]).startswith("zoo: ")]
    return (
        f"{TITLE}\n\n`python -m benchmarks.quality.mixed_precision --zoo`. The worst output, in dB, on samples that "
        f"were held out of {SAMPLES}; weights rounded to 8 bits, with float inputs (8w) and inputs of 8 bits "
        "(8w8a), statistics not corrected; then with `--min-quality` 5 dB above that. Seconds: measuring layers alone "
        f"and judging drafts, on {machine()}, which was busy.\n\n{markdown(header, cells, 1)}\n\n{_of_zoo(zoo)}\n"
    )


def _of_zoo(rows: list[Mapping[str, Any]]) -> str:
    planned = {row["model"]: row for row in rows if row["asked"] == "int8" and row["reached"] is not None}
    mixed = {row["model"]: row for row in rows if row["asked"] != "int8"}
    if not planned:
        return "The graphs of tests/zoo were not run."
    worst = min(planned.values(), key=lambda row: row["reached"])
    reached = [row for row in mixed.values() if row["passed"]]
    said = (
        f"Of {len(planned)} graphs of tests/zoo, {len(planned) - len(mixed)} keep {ZOO_DB} dB at 8w8a; the worst, "
        f"{worst['model'][5:]}, keeps {worst['reached']:.1f}."
    )
    if not mixed:
        return said
    said += f" With `--min-quality {ZOO_DB}dB` {len(reached)} of the other {len(mixed)} reach it:"
    cells = [
        (
            name[5:],
            f"{planned[name]['reached']:.1f}",
            f"{row['reached']:.1f}" if row["passed"] else "refused",
            f"{row['in_float']} of {row['layers']}",
        )
        for name, row in mixed.items()
    ]
    return f"{said}\n\n{markdown(('graph', '8w8a', 'mixed', 'layers in float'), cells)}"


if __name__ == "__main__":
    main()
