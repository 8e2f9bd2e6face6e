"""The tables and figures of OBC, on models that run here, with its baselines in the same rows; makes docs/results.md.

    python -m benchmarks.evidence                                     # everything: days on two cores
    python -m benchmarks.evidence --only ResNet-20 --part bits
    python -m benchmarks.evidence --quick                             # one cell of each table, in minutes

A finished cell is kept at once in benchmarks/results/evidence.jsonl and not run again, but with --again. The page is
made of all rows, of those of the other benchmarks where they show what a table of OBC does, and of the peers'.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common.evaluation import cifar_top1
from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.subjects import Subject, find_subjects, subset
from benchmarks.evidence import budgets, first_layers, methods
from benchmarks.evidence.page import PAGE, page
from benchmarks.evidence.tables import in_short

PARTS = ("figure 2", "budgets", *methods.TABLES)


def run(subject: Subject, parts: tuple[str, ...], rows: Rows, databases: Path, seeds: int) -> None:
    """Run what is missing of one model."""
    if "figure 2" in parts and subject.name in first_layers.LAYER:
        first_layers.curves(subject, rows)
    for part in parts:
        if part in methods.TABLES:
            for _ in methods.cells(subject, part, rows, seeds):
                print(in_short(rows.rows[-1]), flush=True)
    if "budgets" in parts:
        for _ in budgets.cells(subject, databases, rows):
            print(in_short(rows.rows[-1]), flush=True)


def quick(subject: Subject, scratch: Path) -> Rows:
    """One seed of each table, at its last level, on a part of the data and with a tenth of the steps."""
    test = subset(subject.held_out, scratch / "test.zip", lambda number: number % 5 == 0)
    small = replace(
        subject,
        options=replace(subject.options, samples=256),
        score=lambda file, dense: cifar_top1(file, test, dense),
    )
    rows = Rows(None, methods.KEY)
    first_layers.curves(small, rows, sparsities=(0.5, 0.9), samples=256)
    for name in methods.TABLES:
        for _ in methods.cells(small, name, rows, seeds=1, scale=0.1, last=True):
            print(in_short(rows.rows[-1]), flush=True)
    for _ in budgets.cells(small, scratch / "databases", rows, budgets=("3x",)):
        print(in_short(rows.rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this table; may be given again")
    parser.add_argument("--seeds", type=int, default=methods.SEEDS)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 on a part of the data, one level of each table")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), ("ResNet-20",)):
                quick(subject, Path(scratch))
        return
    parts = tuple(options.part or PARTS)
    measure(
        "evidence",
        methods.KEY,
        options,
        lambda subject, rows, _: run(subject, parts, rows, options.databases, options.seeds),
        page,
        lambda row: row["table"] in parts,
        PAGE,
    )


if __name__ == "__main__":
    main()
