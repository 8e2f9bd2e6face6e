"""Where tasks are done: by processes of this machine, or by the machines of a Ray cluster, through one interface."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from ..core.errors import RecipeError, WorkerError
from ..core.machine import workers as usable
from ..runtime.session import Device
from ..solver.gpu.device import devices
from ..solver.linalg.threads import one_blas_thread
from .tasks import DEATHS, Shared, SharedFolder, Task, Workers, killed, outcome_of, result_of


@contextmanager
def open_workers(text: str, device: Device, threads: int | None) -> Iterator[Workers]:
    """Workers as the user names them, for as long as the block lasts.

    text: a number of processes on this machine; `auto`, one for each GPU, or else each core; `ray`, the cluster that
    this machine is part of, or else this machine; or `ray://host:port`. threads: of all processes of this machine
    together, or of a task in a cluster. Raises RecipeError or WorkerError.
    """
    if text == "ray" or text.startswith("ray://"):
        from .workers_ray import open_ray

        with open_ray(text, device, threads) as cluster:
            yield cluster
        return
    gpus = () if device == "cpu" else gpu_numbers(devices(), os.environ)
    if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise RecipeError(f"--workers {text}: give a number of processes, auto, ray, or ray://host:port of a cluster")
    count = int(text) if text != "auto" else len(gpus) or usable(threads)
    with LocalWorkers(count, max(1, usable(threads) // count), gpus) as processes:
        yield processes


def gpu_numbers(names: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES has to say for each GPU that torch sees as "cuda:0", …, where it says something now."""
    given = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return tuple(given[: len(names)] if given else map(str, range(len(names))))


@dataclass(frozen=True)
class _Pickled:
    path: Path

    def get(self) -> Any:
        return pickle.loads(self.path.read_bytes())


@dataclass(frozen=True)
class _File:
    path: Path

    def get(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True)
class _Folder:
    path: Path

    def place(self) -> Path:
        return self.path


class LocalWorkers:
    """Processes of this machine, each with its share of the cores, and with one of the GPUs if there are any.

    What is shared goes through files of the folder TMPDIR. Use it in a `with` block: its end is theirs.
    """

    def __init__(self, count: int, threads: int = 1, gpus: Sequence[str] = ()) -> None:
        self.threads = threads
        self._processes = [_Process(threads, gpus[i % len(gpus)] if gpus else None) for i in range(count)]
        self._shared = 0
        self._folder = tempfile.TemporaryDirectory(prefix="onnx-obc-")

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._folder.cleanup()

    def many(self) -> int:
        """See `Workers`."""
        return len(self._processes)

    def share(self, value: object) -> Shared:
        """See `Workers`."""
        self._shared += 1
        path = Path(self._folder.name) / f"{self._shared}.pickle"
        try:
            path.write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise WorkerError(
                f"no room for what workers share in {tempfile.gettempdir()} ({error.strerror}); "
                "set TMPDIR to a folder with more"
            ) from error
        return _Pickled(path)

    def share_file(self, path: Path) -> Shared:
        """See `Workers`."""
        return _File(path.absolute())

    def share_folder(self, folder: Path) -> SharedFolder:
        """See `Workers`."""
        return _Folder(folder.absolute())

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """See `Workers`."""
        coming, waiting = iter(tasks), deque[tuple[Task, int]]()  # with the workers that each has cost
        idle, busy = list(self._processes), dict[Any, tuple[_Process, Task, int]]()

        def ahead() -> bool:
            """Whether a task waits, now that the next has been asked for if none did."""
            if not waiting and (task := next(coming, None)) is not None:
                waiting.append((task, 0))
            return bool(waiting)

        while True:
            while idle and ahead():
                process, (task, deaths) = idle.pop(), waiting.popleft()
                busy[process.send(task)] = process, task, deaths
            if not busy:
                return
            ahead()  # what comes next is made ready while the workers work
            for pipe in connection.wait(list(busy)):
                process, task, deaths = busy.pop(pipe)
                try:
                    result = process.receive(task.name)
                except EOFError:
                    if deaths + 1 == DEATHS:
                        raise killed(task.name) from None
                    waiting.appendleft((task, deaths + 1))
                    idle.append(process)
                    continue
                idle.append(process)
                yield task, result


class _Process:
    """A process that does one task after the other, begun when the first is there, and again when it has died."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        self._threads, self._gpu = threads, gpu
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    def send(self, task: Task) -> connection.Connection:
        """Begin a task. The pipe that is returned can be read from when the task is done or the process is dead."""
        if self._pipe is None:
            context = get_context("spawn")  # a fork would copy locks that other threads hold
            self._pipe, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there, self._gpu), daemon=True)
            self._process.start()
            there.close()
        with suppress(OSError):  # it died: that shows when the result is read
            self._pipe.send((task.function, task.job))
        return self._pipe

    def receive(self, name: str) -> Any:
        """The result. Raises EOFError if the process died, and what the task raised."""
        assert self._pipe is not None
        try:
            outcome = self._pipe.recv()
        except (EOFError, OSError):
            self.kill()
            raise EOFError from None
        return result_of(name, outcome)

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._pipe = self._process = None


def _serve(pipe: connection.Connection, gpu: str | None) -> None:
    """What a process does: the tasks that come through the pipe, for as long as the other end is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that began this one, which ends it
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    Thread(target=_end_with_the_parent, daemon=True).start()
    with one_blas_thread(), suppress(EOFError, OSError):
        while True:
            function, job = pipe.recv()
            outcome = outcome_of(function, job)
            del job
            try:
                pipe.send(outcome)
            except (pickle.PicklingError, TypeError, AttributeError):  # an error that cannot travel
                pipe.send((None, None, outcome[2]))
            del outcome


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
