"""Tasks that are done elsewhere, and what those are like who do them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import WorkerError
from ..core.plural import counted

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


def killed(name: str) -> WorkerError:
    """What is to be said of a task that workers die of."""
    return WorkerError(f"{name}: {counted(DEATHS, 'worker')} died of it, most likely out of memory; {LESS}")


def out_of_memory(name: str) -> WorkerError:
    """What is to be said of a task that a worker had no memory for."""
    return WorkerError(f"{name}: a worker is out of memory; {LESS}")
