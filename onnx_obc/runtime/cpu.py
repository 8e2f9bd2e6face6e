"""What this machine's processor can do."""

from __future__ import annotations

import os
import platform

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
