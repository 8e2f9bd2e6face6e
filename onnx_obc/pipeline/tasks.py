"""Tasks that are done elsewhere, and what those are like who do them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..core.errors import ObcError, WorkerError
from ..core.plural import counted

Outcome: TypeAlias = tuple[Any, Exception | None, str]  # a result; or an error that travels, and where it was raised
DEATHS = 3  # of workers on one task, before the task is to blame
LESS = "give fewer --workers, or a machine with more memory"


@dataclass(frozen=True)
class Task:
    """Something to be done elsewhere. name: what it is, in messages. function: of a module, which workers import."""

    name: str
    function: Callable[[Any], Any]
    job: object


class Shared(Protocol):
    """A value that many tasks read, and that travels once; as part of a job it is small."""

    def get(self) -> Any:
        """The value, in a worker."""


class SharedFolder(Protocol):
    """A folder of files, likewise."""

    def place(self) -> Path:
        """Where it lies on a worker's machine."""


class Workers(Protocol):
    """Those who do tasks. threads: how many a task may use."""

    threads: int

    def many(self) -> int:
        """How many tasks are done at a time, as things stand."""

    def share(self, value: object) -> Shared:
        """Make a value known to workers."""

    def share_file(self, path: Path) -> Shared:
        """Make the bytes of a file, which stays, known to workers."""

    def share_folder(self, folder: Path) -> SharedFolder:
        """Make the files of a folder, which stays, known to workers."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """The results as they come, in any order. Tasks are begun in theirs, and asked for shortly before that.

        A task whose worker dies is done again by another. Raises what a task raises, and WorkerError for a task that
        kills its workers.
        """


def outcome_of(function: Callable[[Any], Any], job: object) -> Outcome:
    """In a worker: what comes of a task. Errors that are not ours stay there, but for their text."""
    try:
        return function(job), None, ""
    except Exception as error:
        return None, error if isinstance(error, ObcError | MemoryError) else None, traceback.format_exc()


def result_of(name: str, outcome: Outcome) -> Any:
    """The result of a task. Raises what it raised: RuntimeError with its text, where that is no error of ours."""
    result, error, where = outcome
    if isinstance(error, MemoryError):
        raise out_of_memory(name) from error
    if error is not None:
        raise error
    if where:
        raise RuntimeError(f"{name} failed in a worker:\n{where}")
    return result


def killed(name: str) -> WorkerError:
    """What is to be said of a task that workers die of."""
    return WorkerError(f"{name}: {counted(DEATHS, 'worker')} died of it, most likely out of memory; {LESS}")


def out_of_memory(name: str) -> WorkerError:
    """What is to be said of a task that a worker had no memory for."""
    return WorkerError(f"{name}: a worker is out of memory; {LESS}")
