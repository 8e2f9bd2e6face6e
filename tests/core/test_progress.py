"""The seconds of stages."""

from __future__ import annotations

import time

import pytest

from onnx_obc.core.progress import Stopwatch


def test_stages_within_others_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 3, 7, 12, 20, 21, 30])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch("read"):  # from 1
        with watch("correct"):  # 3 to 7
            pass
        with watch("capture"):  # 12 to 20
            pass
    assert watch.seconds == {"read": 20 - 4 - 8, "correct": 4, "capture": 8, "total": 30}


def test_a_stage_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 3, 7, 12, 13])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch("read"), watch("correct"):
        raise ValueError("no")
    assert watch.seconds == {"read": 12 - 1 - 4, "correct": 4, "total": 13}
