"""Samples that a model fails on are named."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.core.arrays import Feed
from onnx_obc.core.errors import ModelError


def run(feed: Feed) -> Feed:
    if (feed["x"] < 0).any():
        raise ModelError("below zero")
    return {"y": feed["x"]}


@pytest.mark.parametrize(
    ("step", "other", "named"),
    [
        (1, np.zeros(4), "sample 6"),
        (4, np.zeros(4), "sample 4 to sample 7"),  # no model that fixes its batch runs a sample alone
        (1, np.zeros(3), "sample 4 to sample 7"),  # nor can one be cut out where an input has another first axis
    ],
)
def test_the_first_that_fails_alone(step: int, other: np.ndarray, named: str) -> None:
    x = np.array([1.0, 2.0, -1.0, -2.0])
    samples = Samples(8, "raw", lambda start, stop: iter(()), step=step)
    assert samples.outputs(run, Batch({"x": abs(x)}, 4, 4))["y"] is not None
    with pytest.raises(ModelError, match=f"^{named}: below zero$"):
        samples.outputs(run, Batch({"x": x, "z": other}, 4, 4))


def test_a_single_sample() -> None:
    samples = Samples(8, "raw", lambda start, stop: iter(()))
    with pytest.raises(ModelError, match=r"^sample 5: below zero$"):
        samples.outputs(run, Batch({"x": np.array(-1.0)}, 5, 1))
