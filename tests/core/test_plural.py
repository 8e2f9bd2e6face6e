"""Things by number."""

from __future__ import annotations

from onnx_obc.core.plural import counted


def test_one_is_no_plural() -> None:
    assert [counted(count, "sample") for count in range(3)] == ["0 samples", "1 sample", "2 samples"]
    assert [counted(count, "axis", "axes") for count in (1, 4)] == ["1 axis", "4 axes"]
