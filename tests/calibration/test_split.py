"""Which samples calibrate and which are held out."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Samples
from onnx_obc.calibration.split import HELD_OUT, describe, first_samples, split
from onnx_obc.graph.model import InputSpec


def numbered(count: int, batch: int | None = None, fixed: int | None = None) -> Samples:
    """Samples that hold their own number."""
    inputs = [InputSpec("x", np.dtype(np.float32), (fixed, 1))]
    values = np.arange(count, dtype=np.float32)[:, None]
    return open_samples({"x": values}, inputs, DataOptions(samples=count, batch=batch))


def numbers(samples: Samples) -> list[float]:
    return [float(x) for feed in samples.feeds() for x in feed["x"][:, 0]]


@pytest.mark.parametrize(("count", "spare"), [(10, 1), (100, 10), (1000, 100), (4000, HELD_OUT)])
def test_a_tenth_is_held_out_up_to_a_limit(count: int, spare: int) -> None:
    calibrating, held_out = split(numbered(count))
    assert (calibrating.count, held_out.count) == (count - spare, spare)
    assert sorted(numbers(calibrating) + numbers(held_out)) == list(range(count))


def test_one_sample_serves_as_both_and_the_notes_say_so() -> None:
    samples = numbered(1)
    calibrating, held_out = split(samples)
    assert calibrating is samples and held_out is samples
    about, notes = describe(samples, calibrating, held_out)
    assert about["samples"] == 1 and about["held_out"] == 0
    assert any("too few samples to hold any out" in note for note in notes)


def test_where_the_graph_fixes_the_batch_whole_feeds_are_held_out() -> None:
    calibrating, held_out = split(numbered(24, fixed=4))
    assert held_out.count == 4 and calibrating.count == 20
    assert all(feed["x"].shape == (4, 1) for feed in held_out.feeds())


def test_the_first_samples_are_whole_feeds() -> None:
    samples = numbered(100, batch=8)
    assert first_samples(samples, 20).count == 16
    assert first_samples(samples, 1).count == 8  # no less than one feed
    assert numbers(first_samples(samples, 20)) == numbers(samples)[:16]
