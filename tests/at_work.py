"""Tasks for tests of workers, which import this module too."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from onnx_obc.core.errors import CalibrationError
from onnx_obc.database.spread import SolveJob, do_solve

FATAL = "OBC_TEST_FATAL"  # a folder: each file in it costs a worker its life, and goes


def double(job: int) -> int:
    return 2 * job


def shared_length(job: Any) -> int:
    return len(job.get())


def environment(name: str) -> str | None:
    return os.environ.get(name)


def process(job: object) -> int:
    return os.getpid()


def refuse(job: object) -> None:
    raise CalibrationError(f"{job}: not this one")


def exhaust(job: object) -> None:
    raise MemoryError


def fail(job: object) -> float:
    return 1 / 0


def die(job: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_there_are_files(job: str) -> str:
    for file in sorted(Path(job).iterdir()):
        file.unlink()
        die(None)
    return "done"


def solve(job: SolveJob) -> list[bytes]:
    """Solve a layer, and die of it where that is to be: when all is done, and nothing was handed back yet."""
    made = do_solve(job)
    die_while_there_are_files(os.environ[FATAL])
    return made
