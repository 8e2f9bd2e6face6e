"""Inputs that are quantized on their own range, and in 16 bits: how they are written, what runs, what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import build, random
from test_onnxruntime_rules import FLOAT_PRODUCTS, check_numbers, conv, op, optimized, product
from written import write_for

from onnx_obc import Recipe, RecipeError, Rule, SearchOptions, compress, compress_to_budget, open_database, parse_budget
from onnx_obc.debug.debug import debug_models
from onnx_obc.debug.mend import recipe_text
from onnx_obc.pipeline.verify import check_lowered
from onnx_obc.targets.check import check_file
from onnx_obc.targets.registry import TARGETS

FUSED = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
ADD = op("Add", "h b", "y")


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """A model in a file, with the shapes of its outputs, as files have them."""
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


PRODUCTS = {
    "matmul": (product(op("MatMul", "x m", "y")), 1),
    "batched data": (product(op("MatMul", "x m", "y"), rank=3), 1),
    "bias": (product(op("MatMul", "x m", "h"), ADD), 1),
    "bias of a batch": (product(op("MatMul", "x m", "h"), ADD, rank=3), 1),
    "gemm": (product(op("Gemm", "x m b", "y")), 1),
    "gemm, its weight turned": (product(op("Gemm", "x mt b", "y", transB=1)), 1),
    "gemm, factors": (product(op("Gemm", "x m b", "y", alpha=0.5, beta=2.0)), 1),
    "one after the other": (product(op("MatMul", "x m", "h"), op("Relu", "h", "r"), op("MatMul", "r n", "y")), 2),
    "one input of two": (product(op("MatMul", "x m", "y"), op("MatMul", "x k", "z"), outputs="y z"), 2),
    "input that is an output": (
        product(op("MatMul", "x m", "h"), op("Tanh", "h", "t"), op("MatMul", "t n", "y"), outputs="t y"),
        2,
    ),
}


@pytest.mark.parametrize(("proto", "count"), PRODUCTS.values(), ids=PRODUCTS)
def test_products_are_fused(proto: onnx.ModelProto, count: int, tmp_path: Path) -> None:
    written = write_for("onnxruntime", proto, dynamic=True)
    kinds, found = optimized(written, tmp_path)
    assert sum(kind in FUSED for kind in kinds) == count and not FLOAT_PRODUCTS & {*kinds} and "Cast" not in kinds
    check_numbers(proto, written, found)
    seen = check_file(saved(written.model, tmp_path / "m.onnx"), "onnxruntime", written.feed)
    assert not seen.findings and seen.count("int8") == (count, count), seen


def test_a_convolution_has_a_range_of_calibration_data(tmp_path: Path) -> None:
    """And what reads it on its own range reads what its integers stand for."""
    nodes = [conv("x", "a", "w", "b"), op("Relu", "a", "r"), op("MatMul", "r k", "y")]
    proto = build(
        nodes, {"x": (2, 8, 8, 8)}, {"y": None}, {"w": random(8, 8, 3, 3), "b": random(8), "k": random(8, 12)}
    )
    written = write_for("onnxruntime", proto, dynamic=True)
    assert set(written.remarks) == {"conv_a"} and "no fast dynamic kernel" in written.remarks["conv_a"]
    kinds, found = optimized(written, tmp_path)
    assert "QLinearConv" in kinds and "DynamicQuantizeMatMul" in kinds and not FLOAT_PRODUCTS & {*kinds}
    check_numbers(proto, written, found)


@pytest.mark.parametrize("level", ["int4", "int2"])
def test_narrow_weights_have_float_inputs(level: str) -> None:
    written = write_for("onnxruntime", product(op("MatMul", "x m", "y")), level, dynamic=True)
    assert written.activations == () and "its input stays float" in written.remarks["matmul_y"]


@pytest.mark.parametrize("what", ["a constant factor", "two readers", "ConvInteger"])
def test_what_is_not_fused_is_named(what: str, tmp_path: Path) -> None:
    if what == "ConvInteger":
        nodes = [helper.make_node("ConvInteger", ["c", "w", "z"], ["i"], name="product")]
        shape, weight = (1, 8, 6, 6), np.ones((4, 8, 3, 3), np.int8)
    else:
        nodes = [helper.make_node("MatMulInteger", ["c", "w", "z"], ["i"], name="product")]
        shape, weight = (5, 8), np.ones((8, 4), np.int8)
    factor = "half" if what == "a constant factor" else "f"
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["c", "s", "z"]),
        *nodes,
        helper.make_node("Cast", ["i"], ["j"], to=1),
        helper.make_node("Mul", ["s", "half"], ["f"]),
        helper.make_node("Mul", ["j", factor], ["y"]),
    ]
    outputs: dict[str, None] = {"y": None}
    if what == "two readers":
        nodes.append(helper.make_node("Abs", ["j"], ["k"]))
        outputs["k"] = None
    proto = build(nodes, {"x": shape}, outputs, {"w": weight, "half": np.array(0.5, np.float32)})
    seen = check_file(saved(proto, tmp_path / "m.onnx"), "onnxruntime", {"x": random(*shape)})
    assert seen.count("int8") == (0, 1)
    assert [(one.severity, one.node) for one in seen.findings] == [("slow", "product")], seen.findings
    slow = TARGETS["openvino"].check(ir.from_proto(proto))
    assert [(one.rule, one.node) for one in slow] == [("no-kernel", "product")]


def test_sixteen_bits_are_written_and_said_to_run_in_float(tmp_path: Path) -> None:
    proto = product(op("MatMul", "x m", "h"), op("Relu", "h", "r"), op("Gemm", "r n c", "y"))
    written = write_for("onnxruntime", proto, activations=16)
    types = {t.data_type for t in written.model.graph.initializer if t.name.endswith("_zero_point")}
    assert onnx.TensorProto.UINT16 in types and written.model.opset_import[0].version == 21
    _, found = optimized(written, tmp_path)
    check_numbers(proto, written, found, 35)
    seen = check_file(saved(written.model, tmp_path / "m.onnx"), "onnxruntime", written.feed)
    assert {(one.rule, one.node) for one in seen.findings} == {("wide", "matmul_h"), ("wide", "gemm_y")}
    other = write_for("openvino", proto, activations=16)
    assert other.activations == () and all("drops 16-bit" in text for text in other.remarks.values())


def test_openvino_quantizes_inputs_itself() -> None:
    """Of products, whose weight alone is an integer in the file; a convolution has a range of calibration data."""
    nodes = [conv("x", "a", "w", "b"), op("MatMul", "a k", "y")]
    weights = {"w": random(8, 8, 3, 3), "b": random(8), "k": random(8, 12)}
    written = write_for("openvino", build(nodes, {"x": (2, 8, 8, 8)}, {"y": None}, weights), dynamic=True)
    assert written.activations == ("x",) and not written.nodes("DynamicQuantizeLinear")
    assert "quantizes the input itself" in written.remarks["matmul_y"] and "range of calib" in written.remarks["conv_a"]
    wanted = written.producer(written.nodes("MatMul")[0].input[0])
    assert wanted is None or wanted.op_type != "DequantizeLinear"


@pytest.mark.parametrize("target", ["deepsparse", "tensorrt"])
def test_other_targets_refuse(target: str) -> None:
    with pytest.raises(RecipeError, match=r"use --activations int8") as error:
        compress(perceptron(), X, Recipe(target=target, activations="dynamic"))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def perceptron() -> onnx.ModelProto:
    nodes = [
        *(op("MatMul", "x m", "h"), op("Add", "h b", "g"), op("Relu", "g", "r")),
        *(op("MatMul", "r n", "t"), op("Add", "t c", "y")),
    ]
    weights = {"m": random(16, 12), "n": random(12, 8), "b": random(12), "c": random(8)}
    return build(nodes, {"x": ("N", 16)}, {"y": ("N", 8)}, weights)


X = {"x": random(128, 16, seed=9)}


def test_a_model_on_ranges_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = compress(perceptron(), X, Recipe(activations="dynamic"), out).report
    assert [(layer.level, layer.activations) for layer in report.layers] == [("int8", "dynamic")] * 2
    assert report.activations == {} and report.histograms == {}  # no range is in the file
    assert {check.name for check in report.checks if check.passed} >= {"engines", "weights", "losses", "lowered"}
    assert report.engine is not None and report.engine["in_integers"] == report.engine["quantized"] == 2
    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert kinds.count("DynamicQuantizeLinear") == kinds.count("MatMulInteger") == 2 and "QuantizeLinear" not in kinds
    assert report.outputs[0].sqnr_db > 30
    found = debug_models(perceptron(), out, X)
    assert all(layer.dynamic and layer.bits == 8 for layer in found.layers)
    assert "activations: dynamic" in recipe_text(found, [])


def test_beside_half_precision(tmp_path: Path) -> None:
    recipe = Recipe(activations="dynamic", solver="baseline", float16=True)
    report = compress(perceptron(), X, recipe, tmp_path / "out.onnx").report
    assert report.engine is not None and report.engine["in_integers"] == report.engine["quantized"] == 2
    assert report.outputs[0].sqnr_db > 25


def test_on_a_processor_on_which_products_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_obc.targets.onnxruntime.check.saturates", lambda: True)
    for level, rules in (("int8", ["saturation"]), ("int7", [])):
        written = write_for("onnxruntime", product(op("MatMul", "x m", "y")), level, dynamic=True)
        assert [one.rule for one in TARGETS["onnxruntime"].check(ir.from_proto(written.model))] == rules


def test_layers_of_both_kinds_and_in_order(tmp_path: Path) -> None:
    recipe = Recipe(activations="dynamic", layers=(Rule(match="matmul_t", activations="int8"),), sequential=True)
    report = compress(perceptron(), X, recipe, tmp_path / "out.onnx").report
    assert [layer.activations for layer in report.layers] == ["dynamic", "int8"]
    assert list(report.activations) == ["r"]
    assert report.engine is not None and report.engine["in_integers"] == 2


def test_it_is_a_level_of_a_database_and_of_a_budget(tmp_path: Path) -> None:
    options = SearchOptions(levels="8w8a-dyn,int8", database=tmp_path / "db")
    outputs = [tmp_path / "small.onnx", tmp_path / "bops.onnx"]
    budgets = [parse_budget("size=0.5x"), parse_budget("bops=12x")]
    _, found = compress_to_budget(perceptron(), X, budgets, outputs, Recipe(), options)
    assert [layer.activations for layer in found.report.layers] == ["dynamic", "dynamic"]
    database = open_database(tmp_path / "db")
    assert database.ranges == {} and [str(x) for x in database.choices["matmul_h"]] == ["float", "8w8a-dyn", "int8"]


def test_another_product_in_its_place_is_noticed(tmp_path: Path) -> None:
    """The check of the lowered form fails where the form computes something else."""
    written = write_for("onnxruntime", perceptron_of(5), dynamic=True)
    plain = ir.from_proto(write_for("onnxruntime", perceptron_of(5), activations=None).model)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(written.model)
    onnx.save(written.model, tmp_path / "right.onnx")
    for tensor in wrong.graph.initializer:
        if tensor.name == "matmul_t.weight_quantized":
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    feed = {"x": run_input()}
    assert check_lowered(plain, tmp_path / "right.onnx", feed, Recipe(device="cpu")).passed
    assert not check_lowered(plain, tmp_path / "wrong.onnx", feed, Recipe(device="cpu")).passed


def perceptron_of(count: int) -> onnx.ModelProto:
    proto = perceptron()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = count
    return proto


def run_input() -> np.ndarray:
    return random(5, 16, seed=5)
