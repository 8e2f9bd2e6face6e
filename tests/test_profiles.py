"""Which profile a budget gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits import CALIBRATION, MODEL

from onnx_obc.build import build
from onnx_obc.calibration.data import DataOptions
from onnx_obc.profiles import SearchOptions
from onnx_obc.retarget import retarget
from onnx_obc.search.budget import Budget


@pytest.mark.parametrize("how", [{}, {"sequential": True}, {"correct": False}])
def test_the_loss_of_the_finished_model_stays_under_a_budget_of_loss(how: dict[str, object], tmp_path: Path) -> None:
    build(MODEL, CALIBRATION, "4w4a,2:4+4w4a", tmp_path / "db", data=DataOptions(samples=64))
    (result,) = retarget(tmp_path / "db", [Budget("drop", 0.01)], [None], SearchOptions("layer"), how)
    assert result.report.output_loss is not None and result.report.output_loss <= 0.01
    assert result.report.search is not None and result.report.search["costs"]["size"] < 0.3
