"""What is kept of attempts that few samples judge."""

from __future__ import annotations

import pytest

from onnx_obc.core.level import parse_choice
from onnx_obc.pipeline.attempts import CorrectionReport, of_few_bits, unless_clearly_worse


@pytest.mark.parametrize(
    ("choices", "few"),
    [
        (["int4"], True),
        (["int8", "int3-asym"], True),
        (["4w8a"], True),
        (["2w8a-dyn"], True),
        (["int8"], False),
        (["8w8a"], False),
        (["4w4a"], False),
        (["int4", "4w4a"], False),
        (["2:4+int4"], False),
        (["int4", "2:4"], False),
        (["sparse-0.50"], False),
        ([], False),
    ],
    ids=str,
)
def test_few_bits_are_integers_without_zeros(choices: list[str], few: bool) -> None:
    assert of_few_bits({str(number): parse_choice(text) for number, text in enumerate(choices)}) == few


@pytest.mark.parametrize(
    ("after", "error", "kept", "then"),
    [
        (0.9, 0.2, True, True),
        (1.1, 0.2, False, True),
        (1.3, 0.2, False, False),
        (1.1, None, False, False),
        (float("inf"), None, False, False),
    ],
)
def test_what_is_better_to_begin_with_stays_unless_clearly_worse(
    after: float, error: float | None, kept: bool, then: bool
) -> None:
    attempt = CorrectionReport(("sequential",), 1, 1.0, after, error, kept)
    assert unless_clearly_worse(attempt).kept == then
