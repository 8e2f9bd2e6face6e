"""Feeds from Python functions and lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import InputSpec

X = [InputSpec("x", np.dtype(np.float32), (None, 2))]
MODULE = """
import numpy as np
def feeds():
    for i in range(5):
        yield {"x": np.full((3, 2), i, np.float64)}
def broken():
    raise KeyError("images")
"""


def feeds() -> Iterator[dict[str, np.ndarray]]:
    for i in range(5):
        yield {"x": np.full((i + 1, 2), i, np.float64)}


def test_function() -> None:
    samples = open_samples(feeds, X, DataOptions(samples=4))
    assert (samples.count, samples.step, samples.batch) == (4, 1, 1)
    batches = list(samples.read(1, 3))
    assert [(b.first, b.count, b.feed["x"].shape) for b in batches] == [(1, 1, (2, 2)), (2, 1, (3, 2))]
    assert batches[0].feed["x"].dtype == np.float32 and "feeds()" in samples.source
    assert "5 of 9" in open_samples(feeds, X, DataOptions(samples=9)).notes[0]


def test_endless_function_is_cut() -> None:
    def endless() -> Iterator[dict[str, list[list[float]]]]:
        while True:
            yield {"x": [[0.0, 1.0]]}

    assert open_samples(endless, X, DataOptions()).count == 1024


def test_module(tmp_path: Path) -> None:
    (tmp_path / "calibration.py").write_text(MODULE)
    samples = open_samples(f"{tmp_path}/calibration.py:feeds", X, DataOptions())
    assert samples.count == 5
    assert [b.feed["x"][0, 0] for b in samples.read(3, 5)] == [3, 4]
    with pytest.raises(CalibrationError, match="has no function 'feed'; did you mean 'feeds'"):
        open_samples(f"{tmp_path}/calibration.py:feed", X, DataOptions())
    with pytest.raises(CalibrationError, match=r"broken raised KeyError: 'images'"):
        open_samples(f"{tmp_path}/calibration.py:broken", X, DataOptions())
    with pytest.raises(CalibrationError, match=r"calibratio.py: not found; did you mean .*calibration.py"):
        open_samples(f"{tmp_path}/calibratio.py:feeds", X, DataOptions())
    (tmp_path / "calibration.py").write_text("import no_such_module_anywhere")
    with pytest.raises(CalibrationError, match="cannot be imported: ModuleNotFoundError"):
        open_samples(f"{tmp_path}/calibration.py:feeds", X, DataOptions())


def test_function_must_yield_the_same_again() -> None:
    calls = []

    def shrinking() -> list[dict[str, np.ndarray]]:
        calls.append(1)
        return [{"x": np.zeros((1, 2))}] * (4 - len(calls))

    samples = open_samples(shrinking, X, DataOptions())
    with pytest.raises(CalibrationError, match="yielded 3 feeds at first, and now 2"):
        list(samples.read(0, 3))


class Stubborn:
    def __array__(self, *args: object, **more: object) -> np.ndarray:
        raise RuntimeError("no array")


class Forgetful(dict):  # type: ignore[type-arg]
    def __getitem__(self, name: str) -> object:
        raise RuntimeError("gone")


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(7), Odd("odd"), MemoryError()])
def test_whatever_a_function_raises_is_an_error(error: BaseException, tmp_path: Path) -> None:
    def broken() -> Any:
        raise error
        yield

    said = " ".join(f"{type(error).__name__}: {error}".split())
    with pytest.raises(CalibrationError, match=rf"broken\(\) raised {said}; call it in Python"):
        open_samples(broken, X, DataOptions())
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(CalibrationError, match=r"exits\.py cannot be imported: SystemExit: 0"):
        open_samples(f"{tmp_path}/exits.py:feeds", X, DataOptions())


def test_an_interrupt_is_none_of_them() -> None:
    def stopped() -> Any:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        open_samples(stopped, X, DataOptions())


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        (np.zeros((1, 2)), "feed 1 of .* is of type ndarray: a feed is a dict"),
        ({"y": np.zeros((1, 2))}, "feed 1 of .* has no array for the model's input 'x'"),
        ({"x": np.zeros((1, 3))}, "feed 1 of .*3 where 2 is fixed"),
        ({"x": np.zeros(2)}, "feed 1 of .*add the batch axis"),
        ({"x": np.zeros((1, 2), int)}, "feed 1 of .*holds int64 values"),
        ({"x": np.array([[0, np.nan]])}, "feed 1 of .*holds NaN"),
        ({"x": [[1, 2], [3]]}, "feed 1 of .*: not all of it can become arrays .ValueError: .*; give plain arrays"),
        ({"x": Stubborn()}, "feed 1 of .*: not all of it can become arrays .RuntimeError: no array"),
        (Forgetful(x=np.zeros((1, 2))), "feed 1 of .*: not all of it can become arrays .RuntimeError: gone"),
        ({"x": np.broadcast_to(np.float32(1), (2**40, 2))}, "feed 1 of .*: 'x' takes 8192 GiB; give smaller feeds"),
    ],
)
def test_feeds_that_do_not_fit(feed: object, message: str) -> None:
    data = [{"x": np.zeros((1, 2))}, feed]
    for kind in (data, lambda: iter(data)):
        with pytest.raises(CalibrationError, match=message):
            open_samples(kind, X, DataOptions())


def test_list() -> None:
    samples = open_samples(list(feeds()), X, DataOptions(samples=2))
    assert [b.feed["x"].shape for b in samples.read(0, 2)] == [(2, 2), (4, 2)]  # evenly spread: feeds 1 and 3


@pytest.mark.parametrize("empty", [[], lambda: iter([])])
def test_no_feeds(empty: object) -> None:
    with pytest.raises(CalibrationError, match="calibration needs at least one"):
        open_samples(empty, X, DataOptions())
