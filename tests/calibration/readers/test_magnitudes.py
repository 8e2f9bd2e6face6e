"""Notes on samples whose values are hardly meant."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_obc.calibration.readers.magnitudes import FAR, magnitude_notes, magnitudes


def test_magnitudes_of_float_inputs_alone() -> None:
    sample = {
        "x": np.array([[1, -3], [2, 0]], np.float32),
        "mask": np.array([0, -np.inf], np.float16),
        "over": np.array([-1, np.inf]),
        "none": np.zeros((0, 4), np.float32),
        "ids": np.array([7]),
        "text": np.array(["a"], object),
    }
    assert magnitudes(sample) == {"x": 3, "mask": 0, "over": np.inf, "none": 0}


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([1, 2, 3, FAR], None),
        ([0, 0, 0, 5, 0], None),
        ([1e-30, 1e-30, 1e-30], None),
        ([7], None),
        ([2, 2, 1e30, 3], "input 'x' reaches 1e+30 in #2, and 2.5 in the median sample"),
        ([1, 1e4, 1, 2e4, 1], "input 'x' reaches 2e+04 in #1 and 1 other sample, and 1 in the median sample"),
        ([0, 0, 0], "input 'x' is zero in all samples"),
        ([1, np.inf, 2, np.inf, np.inf], "input 'x' holds infinity in #1 and 2 other samples"),
        ([np.inf, np.inf], "input 'x' holds infinity in #0 and 1 other sample"),
    ],
)
def test_samples_that_are_hardly_meant_are_named(sizes: list[float], said: str | None) -> None:
    notes = magnitude_notes([{"x": size} for size in sizes], "#{}".format)
    assert len(notes) == (said is not None)
    assert said is None or notes[0].startswith(said)


def test_inputs_that_are_integers_have_no_notes() -> None:
    assert magnitude_notes([{}, {}], str) == () == magnitude_notes([], str)
