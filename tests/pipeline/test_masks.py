"""Masks: infinity among the inputs, and values that are not finite where a mask leaves nothing to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_obc import DataOptions, Recipe, build, compress, open_database
from onnx_obc.core.arrays import Array
from onnx_obc.core.level import parse_choice

ATTENTION = """<ir_version: 8, opset_import: ["" : 17]>
net (float[batch,6,16] x, MASK[batch,6,6] mask) => (float[batch,6,8] y) {
 q = MatMul (x, a)  k = MatMul (x, b)  kt = Transpose <perm=[0,2,1]> (k)  s = MatMul (q, kt)  t = MASKED
 p = Softmax <axis=-1> (t)  o = MatMul (p, x)  y = MatMul (o, c) }"""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 6, 16)).astype(np.float32)
CAUSAL = np.broadcast_to(np.triu(np.full((6, 6), -np.inf, np.float32), 1), (64, 6, 6))
PADDED = np.ones((64, 6, 6), bool)
PADDED[:, 4:, :] = PADDED[:, :, 4:] = False  # two tokens that attend to nothing: their rows are NaN


def attention(mask: str, masked: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(ATTENTION.replace("MASKED", masked).replace("MASK", mask))
    rng = np.random.default_rng(1)
    weights = {
        name: rng.standard_normal(shape) / 4 for name, shape in {"a": (16, 16), "b": (16, 16), "c": (16, 8)}.items()
    }
    weights["ninf"] = np.array(-np.inf)
    model.graph.initializer.extend(numpy_helper.from_array(x.astype(np.float32), n) for n, x in weights.items())
    return model


def test_minus_infinity_in_a_mask_is_a_value_like_others() -> None:
    report = compress(attention("float", "Add (s, mask)"), {"x": X, "mask": CAUSAL}).report
    assert report.outputs[0].sqnr_db > 25
    assert all(not layer.notes or "NaN" not in layer.notes[0] for layer in report.layers)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(sequential=True), Recipe(all_positions=True, ranges="percentile")])
def test_positions_that_are_not_finite_are_left_out_and_counted(recipe: Recipe) -> None:
    report = compress(attention("bool", "Where (mask, s, ninf)"), {"x": X, "mask": PADDED}, recipe).report
    first, *_, last = report.layers
    assert last.positions > 0 and report.outputs[0].sqnr_db > 25
    assert report.output_loss is not None and np.isfinite(report.output_loss) and report.output_loss < 0.01
    if not recipe.sequential:
        assert first.notes == () or "NaN" not in first.notes[0]
        left = int(last.notes[0].split()[0])
        assert "hold NaN or infinity, and are left out" in last.notes[0]
        assert left / (left + last.positions) == pytest.approx(1 / 3, abs=0.05)


def test_a_hessian_is_that_of_the_positions_that_are_seen(tmp_path: Path) -> None:
    """The same solution as from data without the padded tokens."""
    model = attention("bool", "Where (mask, s, ninf)")
    feeds: list[dict[str, dict[str, Array]]] = [{"x": X, "mask": PADDED}, {"x": X[:, :4], "mask": PADDED[:, :4, :4]}]
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    for axis in (1, 2):
        model.graph.input[1].type.tensor_type.shape.dim[axis].dim_param = "n"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "n"
    weights = []
    for number, data in enumerate(feeds):
        build(model, data, "int8", tmp_path / str(number), Recipe(all_positions=True), data=DataOptions(samples=32))
        database = open_database(tmp_path / str(number))
        solved = database.solved(database.layers[-1], parse_choice("int8"))
        assert solved.report.positions == 29 * 4
        weights.append(solved.solution.weights)
    np.testing.assert_array_equal(*weights)
    assert (
        "58 of 174 positions"
        in open_database(tmp_path / "0").solved(database.layers[-1], parse_choice("int8")).report.notes[0]
    )
