"""What a command promises about its results: they replace nothing that is read, and an interrupt says what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..calibration.options import DataOptions
from ..core.errors import OutputError, RecipeError

typed: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)  # the arguments of the command line


@contextmanager
def told_what_was_written(results: Sequence[Path], database: Path | None = None) -> Iterator[None]:
    """On an interrupt, say which of the results had been written, and what there is of a database."""
    before = {path: _stamp(path) for path in results}
    try:
        yield
    except KeyboardInterrupt:
        written = [str(path) for path in results if _stamp(path) != before[path]]
        if database is not None and database.exists():
            written.append(f"a part of {database}; the same command goes on from there")
        raise KeyboardInterrupt(*written) from None


def check_results(results: Sequence[Path | None], outputs: Sequence[Path], source: Path | None) -> None:
    """Raise an error for what cannot be written beside the models: reports, pages and what else has a file of its own.

    outputs: the models that are written, or what else is not to be replaced; source: the model that is read.
    """
    named = [path for path in results if path is not None]
    for number, path in enumerate(named):
        check_report(path, outputs, source)
        if path.resolve() in [other.resolve() for other in named[:number]]:
            raise RecipeError(f"{path} is named twice; give every result a file of its own")


def check_report(report: Path | None, outputs: Sequence[Path], source: Path | None) -> None:
    """Raise OutputError if the report cannot be written, or would replace a model that was read or is written."""
    if report is None:
        return
    taken = {
        path.with_name(path.name + end).resolve()
        for path in outputs
        for end in ("", ".data", ".rejected", ".rejected.data")
    }
    if report.resolve() in taken:
        raise OutputError(f"cannot write the report to {report}: the model goes there; name another file")
    from ..graph.save import check_output

    check_output(report, source)


def check_not_read(results: Sequence[Path], read: Mapping[str, str | Path | None]) -> None:
    """Raise OutputError if a result would replace a file that an option names to be read, `file.py:function` too."""
    for option, name in read.items():
        file = None if name is None else Path(re.sub(r"(\.py):\w+$", r"\1", str(name))).resolve()
        for path in results:
            if path.resolve() == file:
                raise OutputError(f"cannot write {path}: {option} reads it; name another file")


def files_of(data: DataOptions) -> dict[str, str | None]:
    """The files beside the calibration data that these options name to be read."""
    return {"--tokenizer": data.tokenizer, "--encoder": data.encoder}


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
