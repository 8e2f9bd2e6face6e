"""What this machine's processor can do."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import psutil
from llvmlite import binding


def saturates() -> bool:
    """Whether sums of two products of unsigned and signed 8-bit integers saturate at 16 bits.

    So it is on x86 processors without VNNI, whose vpmaddubsw adds pairs in 16 bits (Intel's instruction reference).
    Weights of 7 bits never reach that.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    features = binding.get_host_cpu_features()
    return not (features.get("avx512vnni") or features.get("avxvnni"))


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(threads: int | None) -> int:
    """How many threads to use: as many as are asked for, but no more than there are cores. None: one for each."""
    return min(threads or usable_cores(), usable_cores())


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far, mapped files included."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def this_machine() -> str:
    """The processor and its number of cores, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8", errors="replace").splitlines())
        found = {key.strip(): value.strip() for key, _, value in reversed(list(lines))}
        parts = [found.get(key, "") for key in ("model name", "cpu family", "model")]
        name = f"{parts[0]} family {parts[1]} model {parts[2]}" if all(parts) else parts[0] or name
    return f"{name}, {os.cpu_count()} cores"
