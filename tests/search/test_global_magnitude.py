"""One threshold for all layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL

from onnx_obc import DataOptions, RecipeError, build, open_database, parse_budget, retarget
from onnx_obc.core.level import FLOAT, Choice, parse_choice
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.search.global_magnitude import one_threshold

LADDER = tuple(parse_choice(text) for text in ("float", "sparse-0.25", "sparse-0.50", "sparse-0.75"))
COST = np.array([100.0, 75, 50, 25])


def test_small_weights_go_wherever_they_are() -> None:
    small, large = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 2, 3, 4])
    assert one_threshold([small, large], [LADDER, LADDER], [COST, COST], 125) == (3, 0)
    assert one_threshold([large, small], [LADDER, LADDER], [COST, COST], 125) == (0, 3)
    assert one_threshold([small, small], [LADDER, LADDER], [COST, COST], 125) == (2, 2)
    assert one_threshold([small, large], [LADDER, LADDER], [COST, COST], 200) == (0, 0)


def test_what_a_layer_cannot_take_costs_others_more() -> None:
    sizes = np.arange(1.0, 5)
    assert one_threshold([sizes, sizes], [(Choice(FLOAT),), LADDER], [COST[:1], COST], 150) == (0, 2)
    with pytest.raises(RecipeError, match="below what these levels can reach; add levels of higher sparsity"):
        one_threshold([sizes, sizes], [(Choice(FLOAT),), LADDER], [COST[:1], COST], 110)


def test_other_levels_have_no_threshold() -> None:
    with pytest.raises(RecipeError, match=r"not at 8w8a; use --levels unstructured, or another --solver than gmp"):
        one_threshold([COST], [(Choice(FLOAT), parse_choice("8w8a"))], [COST[:2]], 80)


@pytest.mark.slow
def test_the_solver_gmp_takes_it(tmp_path: Path) -> None:
    """Every layer of the file has lost the weights below one magnitude, but for the rungs of the ladder."""
    few = DataOptions(samples=64)
    levels = ",".join(f"sparse-{step / 20:.2f}" for step in range(1, 20))
    build(MODEL, CALIBRATION, levels, tmp_path / "db", Recipe(solver="gmp"), data=few)
    (result,) = retarget(tmp_path / "db", [parse_budget("flops=2x")], [tmp_path / "out.onnx"])
    assert result.report.search is not None and result.report.search["search"] == "global magnitude"
    assert {layer.solver for layer in result.report.layers} == {"gmp"}
    database = open_database(tmp_path / "db")
    sizes = {layer.name: np.abs(layer.matrix()) for layer in database.layers}
    zeros = {layer.name: layer.zeros for layer in result.report.layers}
    thresholds = [np.quantile(sizes[name], share) for name, share in zeros.items() if 0.1 < share < 0.9]
    assert len(thresholds) >= 3
    spread = {name: float((sizes[name] <= np.median(thresholds)).mean()) - share for name, share in zeros.items()}
    assert max(map(abs, spread.values())) < 0.1  # a rung is 0.05
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
