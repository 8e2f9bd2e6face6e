"""The study of pruning against quantization on four models: their pages in docs/study, and what they found in a table.

    python -m benchmarks.study.pages                       # ten minutes on two cores, and the time for proofs
    python -m benchmarks.study.pages --only ResNet-20 --prove 60

For each model `onnx-obc study` with its calibration data: budgets of 2, 3, 4 and 8 bits, equal size in bytes of the
compressed file, and proofs on chunks for --prove seconds. A finished model is kept in benchmarks/results/study.jsonl.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.subjects import NAMES, Subject
from benchmarks.common.tables import machine, markdown
from onnx_obc.report.study_page import write_study_page
from onnx_obc.report.study_words import counts
from onnx_obc.study.levels import Size
from onnx_obc.study.record import Study
from onnx_obc.study.study import StudyOptions, study_model

PAGES = Path(__file__).parents[2] / "docs" / "study"
KINDS = ("quantize", "prune", "both")


def run(subject: Subject, rows: Rows, options: argparse.Namespace) -> None:
    """Study one model, unless it was."""
    if (subject.name,) in rows:
        return
    found = study_model(subject.path, subject.calibration, StudyOptions(prove=options.prove), data=subject.options)
    PAGES.mkdir(exist_ok=True)
    found = replace(found, model=subject.path.name)  # wherever it lies here
    write_study_page(found, PAGES / f"{subject.name.lower()}.html")
    rows.add({"model": subject.name, "prove": options.prove, "layers": len(found.layers), "budgets": summary(found)})
    print(f"{subject.name}: {len(found.layers)} layers, {len(found.chunks)} chunks", flush=True)


def summary(found: Study) -> list[dict[str, Any]]:
    """For each budget: verdicts by convention, [winners, of them proven]; and what became of the chunks."""
    made = []
    for bits in found.bits:
        verdicts = {}
        for size in get_args(Size):
            here = counts(found, bits, size)
            if here is not None:
                verdicts[size] = {kind: [here.won.get(kind, 0), here.proven.get(kind, 0)] for kind in KINDS}
        chunks = [row for row in found.chunks if row.bits == bits]
        exact = {kind: [row.exact[kind] and row.seconds[kind] <= 0.5 for row in chunks] for kind in KINDS[:2]}
        made.append(
            {
                "bits": bits,
                "verdicts": verdicts,
                "chunks": len(chunks),
                "proven": dict(Counter(row.proven or "open" for row in chunks)),
                "exact": {kind: float(np.mean(values)) if values else None for kind, values in exact.items()},
                "margin": float(np.median([row.best["quantize"] - row.best["prune"] for row in chunks]))
                if chunks
                else None,
            }
        )
    return made


def page(rows: Sequence[Row]) -> str:
    verdicts, chunks = [], []
    for row in sorted(rows, key=lambda row: NAMES.index(row["model"])):
        for budget in row["budgets"]:
            cells = []
            for size in get_args(Size):
                found = budget["verdicts"][size]
                cells.append(" / ".join(f"{found[kind][0]} ({found[kind][1]})" for kind in KINDS))
            verdicts.append((row["model"], f"{budget['bits']}", *cells))
            if budget["chunks"]:
                proven, count = budget["proven"], budget["chunks"]
                exact = [f"{100 * budget['exact'][kind]:.1f} %" for kind in KINDS[:2]]
                shares = [f"{100 * proven.get(kind, 0) / count:.1f} %" for kind in (*KINDS[:2], "open")]
                chunks.append(
                    (row["model"], f"{budget['bits']}", str(count), *shares, f"{budget['margin']:.1f}", *exact)
                )
    return f"""# Prune or quantize

`python -m benchmarks.study.pages`, on {machine()}. The pages: docs/study.

Layers to quantize / prune / do both at equal size, as solved by this tool; in brackets how many are proven: no solution
of the other kind could match it, by the lower bound of the whole layer, all rows of which were solved. Of layers of
more than about 64 rows a part was solved; proofs about these alone are on the pages. *paper*: 16 bits for each kept
weight, the mask free; *bitmap*: a bit for each weight; *entropy*: its entropy; *bytes*: of the file after deflate. Both
at once was tried by *bytes* alone.

{markdown(("model", "bits", *get_args(Size)), verdicts, left=1)}

Chunks of up to 36 columns of a row, equal size by *bytes*: how many are proven to be better quantized, better pruned,
and open; the median of quantized minus pruned SNR of the best solutions, in dB; and the share whose optimum of codes
and of masks was proven within half a second each.

{markdown(("model", "bits", "chunks", "quantize", "prune", "open", "margin, dB", "codes exact", "masks exact"), chunks)}
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prove", type=float, default=120.0, help="seconds of proofs for each model")
    options = parser.parse_args()
    measure("study", ("model",), options, lambda subject, rows, _: run(subject, rows, options), page)


if __name__ == "__main__":
    main()
