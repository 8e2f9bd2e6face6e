from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from onnx_obc.solver.linalg.threads import one_blas_thread, over_rows


@pytest.mark.parametrize("threads", [1, 2, 5, None])
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("cost", [1, 2**40])
def test_every_row_once(rows, threads, cost):
    seen, counts = np.zeros(rows, int), []

    def work(start, stop):
        seen[start:stop] += 1

    over_rows(work, rows, cost, threads, counts.append)
    assert (seen == 1).all()
    assert counts == sorted(counts) and (counts[-1:] or [0])[-1] == rows


def test_an_error_cancels_what_has_not_begun():
    begun = []

    def work(start, stop):
        begun.append(start)
        time.sleep(0.01)
        if start == 3:
            raise ValueError("row 3")

    with pytest.raises(ValueError, match="row 3"):
        over_rows(work, 1000, 2**40, 2)
    assert len(begun) < 20


INTERRUPTED = """
import os, signal, time
from onnx_obc.solver.linalg.threads import over_rows

begun = []

def work(start, stop):
    begun.append(start)
    if start == 3:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

try:
    over_rows(work, 1000, 2**40, 2)
except KeyboardInterrupt:
    print("interrupted after", len(begun))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_an_interrupt_stops_promptly():
    """In a process of its own: what other libraries do with a signal is theirs."""
    command = [sys.executable, "-c", f"import signal\nsignal.signal(2, signal.default_int_handler)\n{INTERRUPTED}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout.removeprefix("interrupted after ")) < 100


def test_blas_is_held_to_one_thread_until_the_last_leaves():
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before, seen, inside, leave = blas(), [], threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(10)
        with one_blas_thread():
            seen.extend(blas())

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        assert inside.wait(10)
        assert set(blas()) == {1}
    assert set(blas()) == {1}
    leave.set()
    thread.join()
    assert set(seen) == {1}
    assert blas() == before
