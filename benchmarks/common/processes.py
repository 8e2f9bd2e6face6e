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
    memory that it and its children held together at any look; private_bytes: the same without pages of files, which the
    system takes back when it needs them. error: the last line that it wrote, shortened, if it
    failed; None if it did not.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    error: str | None
    private_bytes: int = 0


def run(
    command: Sequence[str | Path], folder: Path, log: Path, timeout: float, most_bytes: float = float("inf")
) -> Run:
    """Run a command in a folder and a process group of its own; what it says goes to `log`.

    most_bytes: of private memory, beyond which it is stopped."""
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    peak, private, stopped, pid = 0, 0, "", 0
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.perf_counter() - began
            if pid:
                break
            resident, own = memory_of(process.pid)
            peak, private = max(peak, resident), max(private, own)
            if not stopped and (seconds > timeout or own > most_bytes):
                stopped = f"after {timeout:.0f} s" if seconds > timeout else f"at {own / 1e9:.1f} GB"
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(INTERVAL)
    finally:
        if not pid:  # interrupted
            os.killpg(process.pid, signal.SIGKILL)
    process.returncode = os.waitstatus_to_exitcode(status)
    if stopped:
        error: str | None = f"stopped {stopped}"
    else:
        error = None if process.returncode == 0 else last_words(log, process.returncode)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, error, private)


def memory_of(pid: int) -> tuple[int, int]:
    """The resident memory of a process and its descendants, and that without pages of files (which only Linux tells);
    0 where they have just ended."""
    resident = private = 0
    try:
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            memory = each.memory_info()
            resident += memory.rss
            private += memory.rss - getattr(memory, "shared", 0)
    except psutil.Error:
        return resident, private
    return resident, private


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
