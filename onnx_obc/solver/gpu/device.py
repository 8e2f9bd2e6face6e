"""Devices of torch: which there are, and work on rows in batches that fill a device's memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import RecipeError
from ..linalg.threads import RowsDone

if TYPE_CHECKING:
    import torch

_ON_CPU = 2**30  # bytes
_SHARE = 0.8  # of a GPU's free memory; the rest is for graphs, the libraries' workspaces and fragments
_MOST_ROWS = 2**15  # what every version of the libraries takes in one batched product

_lock = Lock()
_users = 0
_before = "highest"


def devices() -> list[str]:
    """The GPUs that torch sees, as names for `device`: "cuda:0", …; empty where torch or a GPU is missing.

    The functions of `batches` keep their state to themselves, so several GPUs work at once if each has layers of
    its own: start one thread for each name, let it take the next layer from a queue, and pass its name as `device`.
    """
    if importlib.util.find_spec("torch") is None:
        return []
    try:  # importing torch takes seconds, and without NVIDIA's driver it sees none
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return []
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def send(array: np.ndarray, device: str) -> torch.Tensor:
    """The array on the device."""
    import torch

    return torch.tensor(array, device=device)


def in_batches(
    work: Callable[[np.ndarray], None],
    rows: np.ndarray,
    bytes_per_row: int,
    device: str,
    memory: int | None,
    progress: RowsDone | None,
) -> None:
    """Call `work` with pieces of `rows` that fit the memory, one after the other, until each row has been in one.

    A piece that runs out of memory is halved and tried again; what `work` wrote for it is written again.
    """
    with _device(device):
        batch = max(1, min(_MOST_ROWS, (memory or _free_memory(device)) // bytes_per_row))
        start = 0
        while start < len(rows):
            part = rows[start : start + batch]
            if _fits(work, part):
                start += len(part)
                if progress is not None:
                    progress(start)
            elif len(part) > 1:
                batch = len(part) // 2
            else:
                raise RecipeError(
                    f"device {device}: its memory does not hold one row of this layer, {bytes_per_row >> 20} MiB; "
                    "end what else uses the GPU, or solve on the CPU with --device cpu"
                )


def _fits(work: Callable[[np.ndarray], None], part: np.ndarray) -> bool:
    """Whether the work had memory enough. On return nothing holds what it allocated."""
    import torch

    try:
        work(part)
    except torch.OutOfMemoryError:
        return False
    return True


def _free_memory(device: str) -> int:
    """Bytes that torch can still allocate: those free on the GPU, and those that torch holds without using them."""
    import torch

    if torch.device(device).type == "cpu":
        return _ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_SHARE * (free + idle))


@contextmanager
def _device(name: str) -> Iterator[None]:
    """Make the device current, with a stream of its own, and let float32 products be float32 products, not TF32.

    That setting is torch's, for all threads: the first to enter sets it, the last restores it.
    """
    global _users, _before
    if importlib.util.find_spec("torch") is None:
        raise RecipeError(f"device {name}: torch is not installed; pip install 'onnx-obc[torch]', or use --device cpu")
    import torch

    if name != "cpu" and name not in ("cuda", *devices()):
        raise RecipeError(
            f"device {name}: torch sees {', '.join(devices()) or 'no GPU'}; use one that is there, or --device cpu"
        )
    with _lock:
        if _users == 0:
            _before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
        _users += 1
    try:
        if name == "cpu":
            yield
        else:
            with torch.cuda.device(name), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_float32_matmul_precision(_before)
