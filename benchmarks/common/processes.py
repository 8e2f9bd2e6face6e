"""Runs a command, and says what it took."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.1  # seconds between two looks at the memory
LONGEST = 160  # characters of an error message that a row keeps


@dataclass(frozen=True)
class Run:
    """A command that has ended. seconds: by the clock; cpu_seconds: of all its processes. peak_bytes: the most resident
    memory that it and its children held together at any look. error: the last line that it wrote, shortened, if it
    failed; None if it did not.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    error: str | None


def run(command: Sequence[str | Path], folder: Path, log: Path, timeout: float) -> Run:
    """Run a command in a folder and a process group of its own; what it says goes to `log`."""
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    peak, timed_out, pid = 0, False, 0
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - began
            if pid:
                break
            if seconds > timeout and not timed_out:
                os.killpg(process.pid, signal.SIGKILL)
                timed_out = True
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(INTERVAL)
    finally:
        if not pid:  # interrupted
            os.killpg(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    if timed_out:
        error: str | None = f"stopped after {timeout:.0f} s"
    else:
        error = None if process.returncode == 0 else last_words(log, process.returncode)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, error)


def resident_bytes(pid: int) -> int:
    """The resident memory of a process and its descendants; 0 where they have just ended."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.Error:
        return total
    return total


def last_words(log: Path, code: int) -> str:
    """The exception that a failed command ended with."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Fail", "NotImplemented"))]
    told = (raised or lines or [""])[-1]
    return shortened(told) if code > 0 else shortened(f"signal {-code}: {told}")


def shortened(text: str) -> str:
    """Text on one line, cut where it is long, without the folders that its paths are in."""
    words = [word if "/" not in word or ":" in word[:6] else word.rsplit("/", 1)[-1] for word in text.split()]
    line = " ".join(words)
    return line if len(line) <= LONGEST else line[:LONGEST] + " …"
