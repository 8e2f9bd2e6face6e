from __future__ import annotations

import os
import subprocess
import sys
import threading

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


STOPPED = """
import os, signal, threading
from concurrent.futures import ThreadPoolExecutor
from onnx_obc.solver.linalg import threads

begun, stopped, submitted = [], threading.Event(), threading.Event()

class Pool(ThreadPoolExecutor):
    def submit(self, work, start, stop):
        future = super().submit(work, start, stop)
        if stop == 1000:
            submitted.set()
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        super().shutdown(False, cancel_futures=cancel_futures)
        stopped.set()
        super().shutdown(wait)

threads.ThreadPoolExecutor = Pool

def work(start, stop):
    begun.append(start)
    if start == 3:
        fail()
    if start >= 3:
        stopped.wait()  # until the pool is told to stop: no row begins in the meantime

"""
ERROR = f"""
{STOPPED}
def fail():
    raise ValueError("row 3")

try:
    threads.over_rows(work, 1000, 2**40, 2)
except ValueError as error:
    print(error, "ended it after", len(begun))
"""


def test_an_error_cancels_what_has_not_begun():
    """With an event instead of the clock, in a process of its own, which may replace the pool."""
    done = subprocess.run([sys.executable, "-c", ERROR], capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout.removeprefix("row 3 ended it after ")) <= 3 + 1 + 2


INTERRUPTED = f"""
{STOPPED}
signal.signal(signal.SIGUSR1, lambda *_: None)

def fail():
    submitted.wait()  # an interrupt inside submit may leave its lock locked, in Python itself
    os.kill(os.getpid(), signal.SIGINT)
    while not stopped.wait(0.05):  # a signal just before the main thread waits for a row would not wake it
        os.kill(os.getpid(), signal.SIGUSR1)

try:
    threads.over_rows(work, 1000, 2**40, 2)
except KeyboardInterrupt:
    print("interrupted after", len(begun))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_an_interrupt_stops_promptly():
    """In a process of its own: what other libraries do with a signal is theirs."""
    command = [sys.executable, "-c", f"import signal\nsignal.signal(2, signal.default_int_handler)\n{INTERRUPTED}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert int(done.stdout.removeprefix("interrupted after ")) <= 3 + 2


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
