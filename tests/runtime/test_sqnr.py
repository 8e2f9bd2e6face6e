"""Signal-to-noise ratios of outputs."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from small_graphs import random

from onnx_obc.runtime.sqnr import Match, agreement_db, decibels, worst_sqnr


def test_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    y = random(6, 5)
    assert agreement_db(y, 1.1 * y) == pytest.approx(20, abs=1e-4)
    assert worst_sqnr(
        {"a": y, "b": y, "classes": np.arange(3)}, {"a": y, "b": 1.1 * y, "classes": np.arange(3) + 1}
    ) == (pytest.approx(20, abs=1e-4))


def test_equal_is_infinite_and_nothing_left_of_the_signal_is_minus_infinity() -> None:
    assert decibels(1.0, 0.0) == inf and decibels(0.0, 1.0) == -inf
    assert agreement_db(np.zeros(3), np.zeros(3)) == inf
    assert agreement_db(np.zeros(3), np.zeros(4)) == -inf


def test_what_is_infinite_in_both_does_not_count_and_in_one_is_the_worst() -> None:
    y = np.array([1.0, inf, np.nan])
    assert agreement_db(y, y.copy()) == inf
    assert agreement_db(y, np.array([1.0, 5.0, np.nan])) == -inf


def test_classes_agree_row_by_row() -> None:
    match = Match()
    wanted = np.array([[0.0, 1.0], [1.0, 0.0], [0.2, 0.1]])
    match.add(wanted, np.array([[0.0, 2.0], [0.0, 1.0], [0.3, 0.1]]), is_scores=True)
    assert match.agreement == pytest.approx(2 / 3)
    plain = Match()
    plain.add(wanted, wanted, is_scores=False)
    assert plain.agreement is None and plain.sqnr_db == inf
