"""Work on rows in chunks, on several threads, stoppable, with one BLAS thread so that results never depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np  # noqa: F401  its BLAS and SciPy's must be loaded before they are looked for
import scipy.linalg  # noqa: F401
from threadpoolctl import OpenBLASController, ThreadpoolController  # type: ignore[import-untyped]

from ...core.machine import workers

RowsDone = Callable[[int], None]  # called with the rows that are finished so far, all of them in the end

_lock = Lock()
_users = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread, which fixes its order of additions. The first to enter sets it, the last restores."""
    global _users, _limit
    with _lock:
        if _users == 0:
            _free_control()
            _limit = _controller().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _free_control()
                _limit.restore_original_limits()
                _free_control()


def over_rows(
    work: Callable[[int, int], None], rows: int, cost: int, threads: int | None, progress: RowsDone | None = None
) -> None:
    """Call `work(start, stop)` for chunks that together cover the rows 0 … rows − 1, each once, in any order.

    cost: what one row takes, in additions; a chunk is kept below about a tenth of a second, as it cannot be
    interrupted. threads: None for all usable cores. progress: called with the number of rows finished so far.
    An exception in a chunk, or an interrupt, cancels the chunks that have not begun and is raised.
    """
    threads = workers(threads)
    chunk = max(1, min(256, 2**28 // max(cost, 1), -(-rows // threads)))
    finished = 0
    with one_blas_thread():
        pool = ThreadPoolExecutor(threads, "solver")
        try:
            size = {
                pool.submit(work, start, min(start + chunk, rows)): min(chunk, rows - start)
                for start in range(0, rows, chunk)
            }
            for future in as_completed(size):
                future.result()
                finished += size[future]
                if progress is not None:
                    progress(finished)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def _free_control() -> None:
    """Let any thread set OpenBLAS's threads next; recent threadpoolctl ignores all but the first that ever did."""
    if hasattr(OpenBLASController, "clear_controlling_thread"):
        OpenBLASController.clear_controlling_thread(force=True)
