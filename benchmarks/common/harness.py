"""The frame of benchmarks that run for long: a finished row is kept at once and not run again, and a page shows all."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.subjects import NAMES, Subject, find_subjects

RESULTS = Path(__file__).parents[1] / "results"
Row = Mapping[str, Any]


class Rows:
    """The rows of a benchmark, one JSON object a line of `file` (None: kept in memory).

    key: the fields that tell rows apart.
    """

    def __init__(self, file: Path | None, key: Sequence[str]) -> None:
        self._file, self._key = file, tuple(key)
        text = file.read_text(encoding="utf-8") if file is not None and file.exists() else ""
        self.rows: list[Row] = [json.loads(line) for line in text.splitlines()]

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return any(tuple(row.get(name) for name in self._key) == key for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep a row, on disk before this returns; it replaces the row of the same key."""
        key = [row.get(name) for name in self._key]
        self.rows = [x for x in self.rows if [x.get(name) for name in self._key] != key] + [row]
        self._save()

    def drop(self, chosen: Callable[[Row], bool]) -> None:
        """Forget rows, which are then run again."""
        self.rows = [row for row in self.rows if not chosen(row)]
        self._save()

    def _save(self) -> None:
        if self._file is not None:
            scratch = self._file.with_name(f".{self._file.name}.tmp")
            scratch.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            scratch.replace(self._file)


def arguments(doc: str | None, names: Sequence[str] = NAMES) -> argparse.ArgumentParser:
    """A parser with the options that these benchmarks share. names: of the models that there are to choose from."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--databases", type=Path, default=Path("work-models/databases"), help="where databases are")
    parser.add_argument("--only", choices=names, action="append", help="only this model; may be given again")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page again")
    parser.add_argument("--again", action="store_true", help="run finished rows of the chosen models again")
    parser.add_argument("--json", type=Path, help="keep rows in this file, not beside the page, and write no page")
    parser.set_defaults(names=tuple(names))
    return parser


def measure(
    name: str,
    key: Sequence[str],
    options: argparse.Namespace,
    work: Callable[[Subject, Rows, Path], None],
    page: Callable[[Sequence[Row]], str],
    part: Callable[[Row], bool] = lambda row: True,
    path: Path | None = None,
) -> Rows:
    """Run what is missing of every chosen model, and write the page.

    key: the fields that tell rows apart. work(subject, rows, scratch folder): runs and adds rows. part: which rows this
    run is about, where it is not about all. path: of the page; None: `results/NAME.md`.
    """
    rows = Rows(options.json or RESULTS / f"{name}.jsonl", key)
    names = tuple(options.only or options.names)
    if not options.table:
        if options.again:
            rows.drop(lambda row: row["model"] in names and part(row))
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), names):
                work(subject, rows, Path(scratch))
    if not rows.rows:
        sys.exit("there is nothing to report")
    if options.json is None:
        (path or RESULTS / f"{name}.md").write_text(page(rows.rows), encoding="utf-8")
    return rows
