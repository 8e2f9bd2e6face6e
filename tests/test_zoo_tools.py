"""Networks as other tools leave them: onnxruntime's optimizers, and its converter to float16."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the zoo is exported from torch")
pytest.importorskip("transformers", reason="the zoo is exported from transformers")

from zoo import in_half, optimized
from zoo.case import Case
from zoo.compressed import check_compressed

from onnx_obc import Recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", [*optimized.CASES, *in_half.CASES], ids=lambda case: case.name)
def test_what_other_tools_make_of_a_network_is_compressed(case: Case, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        case.build(tmp_path / "dense.onnx")
    check_compressed(case, tmp_path / "dense.onnx", Recipe(), 15, tmp_path)
