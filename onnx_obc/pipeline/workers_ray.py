"""Workers that are the machines of a Ray cluster: Ray schedules, does again what a lost machine did, and moves data."""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..core.errors import WorkerError, first_line, shortened
from ..core.version import __version__
from ..runtime.session import Device
from ..solver.linalg.threads import one_blas_thread
from .tasks import DEATHS, Outcome, Shared, SharedFolder, Task, killed, out_of_memory, outcome_of, result_of

ANSWER = 10.0  # seconds that a cluster has to answer
AHEAD = 2  # tasks that Ray is given for each that runs: what it needs to place the next, and to ask for more machines
CLIENT_PORT = 10001  # of ray://


@contextmanager
def open_ray(text: str, device: Device, threads: int | None) -> Iterator[RayWorkers]:
    """The workers of a cluster, for as long as the block lasts. Raises WorkerError."""
    ray = _ray()
    address = text if text.startswith("ray://") else None
    begun = not ray.is_initialized()
    if begun:
        _connect(ray, address)
    try:
        workers = RayWorkers(ray, threads or 1, device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1)
        workers.check_versions()
        yield workers
    finally:
        if begun:
            ray.shutdown()


class RayWorkers:
    """The machines of a cluster that this process is connected to, those that join later too."""

    def __init__(self, ray: Any, threads: int, gpu: bool) -> None:
        self.threads = threads
        self._ray, self._gpu = ray, int(gpu)
        self._remote = ray.remote(_perform)

    def check_versions(self) -> None:
        """Raise WorkerError if a machine has other versions of what results depend on."""
        ray = self._ray
        on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        for node in (node for node in ray.nodes() if node["Alive"]):
            where = on_node(node["NodeID"], soft=True)
            task = self._remote.options(num_cpus=0, scheduling_strategy=where).remote(versions(), _nothing, None)
            self._result(Task(f"machine {node['NodeManagerAddress']}", _nothing, None), task)

    def many(self) -> int:
        """See `Workers`."""
        found = self._ray.cluster_resources()
        return max(1, int(found.get("GPU", 0) if self._gpu else found.get("CPU", 0) // self.threads))

    def share(self, value: object) -> Shared:
        """See `Workers`."""
        return _Reference(self._ray.put(value))

    def share_file(self, path: Path) -> Shared:
        """See `Workers`."""
        return _Reference(self._ray.put(np.fromfile(path, np.uint8)))  # an array is read in place

    def share_folder(self, folder: Path) -> SharedFolder:
        """See `Workers`."""
        files = {path.name: self.share_file(path) for path in folder.iterdir() if path.is_file()}
        return _Copied(f"{platform.node()}-{os.getpid()}-{folder.name}", files)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """See `Workers`."""
        coming, busy = iter(tasks), dict[Any, Task]()
        options = {"num_cpus": self.threads, "num_gpus": self._gpu, "max_retries": DEATHS - 1}
        try:
            while True:
                while len(busy) < AHEAD * self.many() and (task := next(coming, None)) is not None:
                    made = self._remote.options(**options, name=shortened(task.name, 80))
                    busy[made.remote(versions(), task.function, task.job)] = task
                if not busy:
                    return
                done, _ = self._ray.wait(list(busy), num_returns=1)
                for reference in done:
                    task = busy.pop(reference)
                    yield task, self._result(task, reference)
        finally:
            for reference in busy:
                with suppress(Exception):  # of a cluster that is gone
                    self._ray.cancel(reference, force=True)

    def _result(self, task: Task, reference: Any) -> Any:
        """What a task returned. Raises what it raised, in words of ours where Ray has others."""
        errors = self._ray.exceptions
        try:
            outcome = self._ray.get(reference)
        except errors.OutOfMemoryError as raised:
            raise out_of_memory(task.name) from raised
        except errors.WorkerCrashedError as raised:
            raise killed(task.name) from raised
        except errors.RayError as raised:
            if "No module named 'onnx_obc" in str(raised):
                raise WorkerError(f"{task.name}: onnx-obc is not installed there; install {__version__}") from raised
            raise WorkerError(f"{task.name}: Ray says: {shortened(first_line(raised))}") from raised
        return result_of(task.name, outcome)


def versions() -> dict[str, str]:
    """Of what results, and what travels, depend on."""
    found = {"onnx-obc": __version__, "Python": platform.python_version(), "numpy": np.__version__}
    with suppress(ImportError):
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    return found


def check_versions(theirs: Mapping[str, str], ours: Mapping[str, str], where: str) -> None:
    """Raise WorkerError if a machine has other versions."""
    names = [name for name in ours if theirs.get(name) != ours[name]]
    others = [f"{name} {theirs.get(name, 'missing')}, not {ours[name]}" for name in names]
    if others:
        raise WorkerError(f"machine {where} has {'; '.join(others)}; install the same versions on all machines")


def _perform(expected: dict[str, str], function: Callable[[Any], Any], job: Any) -> Outcome:
    """In a worker: what comes of a task."""

    def checked(job: Any) -> Any:
        check_versions(versions(), expected, platform.node())  # also here: machines join
        with one_blas_thread():
            return function(job)

    return outcome_of(checked, job)


def _nothing(job: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class _Reference:
    reference: Any

    def get(self) -> Any:
        import ray

        return ray.get(self.reference)


@dataclass(frozen=True)
class _Copied:
    """name: of the folder, another for each."""

    name: str
    files: Mapping[str, Shared]

    def place(self) -> Path:
        folder = Path(_scratch(self.name).name)
        for name, shared in self.files.items():
            if not (folder / name).exists():
                shared.get().tofile(folder / name)
        return folder


@lru_cache(maxsize=1)
def _scratch(name: str) -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, which goes when the process ends or asks for another one."""
    return tempfile.TemporaryDirectory(prefix="onnx-obc-")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(DEATHS - 1))  # else without end
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it hides GPUs, and says so
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise WorkerError("--workers ray: Ray is not installed; install onnx-obc[ray]") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Join a cluster: at an address, or the one that this machine is in, or a new one of this machine alone."""
    where = address or os.environ.get("RAY_ADDRESS", "")
    if where in ("", "auto"):
        where = "auto" if _is_in_a_cluster() else "local"
    elif where != "local":
        _check_answers(where)
    begun = {"include_dashboard": False} if where == "local" else {}
    try:
        ray.init(where, logging_level=logging.ERROR, log_to_driver=False, **begun)
    except Exception as error:
        place = "this machine" if where in ("auto", "local") else where
        raise WorkerError(
            f"--workers: Ray at {place} cannot be used ({shortened(first_line(error))}); see that it runs, with the "
            f"same Ray ({ray.__version__}) and Python ({platform.python_version()}) as here"
        ) from error


def _is_in_a_cluster() -> bool:
    """Whether Ray was begun on this machine and still runs: of one that is gone Ray would wait for minutes."""
    noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        _check_answers(noted.read_text().strip())
    except (OSError, WorkerError):
        return False
    return True


def _check_answers(address: str) -> None:
    """Raise WorkerError if nobody listens at the address of a cluster."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname or "", parts.port or CLIENT_PORT
    except ValueError as error:
        raise WorkerError(f"--workers {address}: no address; write ray://host:port") from error
    try:
        socket.create_connection((host, port), ANSWER).close()
    except OSError as error:
        raise WorkerError(
            f"--workers {address}: nobody answers at {host}:{port} ({error.strerror or 'timed out'}); start the "
            "cluster there with ray start --head, or check the address"
        ) from error
