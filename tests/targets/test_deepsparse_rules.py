"""DeepSparse's form: integer operators that compute what the Q/DQ model does, and what is refused or found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL, text_like
from onnx import helper, numpy_helper
from small_graphs import build, random

from onnx_obc import ModelError, Recipe, compress
from onnx_obc.pipeline.verify import check_lowered
from onnx_obc.runtime.session import open_session
from onnx_obc.targets.registry import TARGETS

DEEPSPARSE = TARGETS["deepsparse"]
lower = DEEPSPARSE.weight_forms["dq"]
assert lower is not None


def qdq(op: str, *, per_row: bool, bias: str = "", signed: bool = False, **attributes: int) -> ir.Model:
    """One product of two dequantized operands, between Q/DQ."""
    rng = np.random.default_rng(3)
    shape = {"Conv": (6, 4, 3, 3), "MatMul": (4, 6)}.get(op, (6, 4) if attributes.get("transB") else (4, 6))
    axis = 0 if op == "Conv" or attributes.get("transB") else 1
    scale = rng.uniform(0.01, 0.1, 6).astype(np.float32) if per_row else np.array(0.03, np.float32)
    weights = {
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": scale,
        "wz": np.zeros(scale.shape, np.int8),
        "xs": np.array(0.05, np.float32),
        "xz": np.array(0 if signed else 100, np.int8 if signed else np.uint8),
        "b": random(6) if bias != "huge" else np.full(6, 1e9, np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **({"axis": axis} if per_row else {})),
        helper.make_node(op, ["d", "wd", *(["b"] if bias else [])], ["h"], name="product", **attributes),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    sizes = {"x": (2, 4, 7, 7), "y": (2, 6, 5, 5)} if op == "Conv" else {"x": (2, 4), "y": (2, 6)}
    used = {name for node in nodes for name in node.input}
    model = build(nodes, {"x": sizes["x"]}, {"y": sizes["y"]}, {k: v for k, v in weights.items() if k in used})
    return ir.from_proto(model)


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("bias", ["", "small", "huge"])
@pytest.mark.parametrize(("op", "attributes"), [("Conv", {}), ("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_it_computes_the_same(op: str, attributes: dict[str, int], bias: str, per_row: bool) -> None:
    if op == "MatMul" and bias:
        pytest.skip("a MatMul has no bias")
    model = qdq(op, per_row=per_row, bias=bias, **attributes)
    lowered = lower(model)
    kinds = [node.op_type for node in lowered.graph]
    assert ("ConvInteger" if op == "Conv" else "MatMulInteger") in kinds and op not in kinds
    assert "DequantizeLinear" not in kinds and lowered.ir_version == 8
    (product,) = [node for node in lowered.graph if node.op_type.endswith("Integer")]
    assert product.name == "product"  # as it was called before
    shape = (2, 4, 7, 7) if op == "Conv" else (2, 4)
    feed = {"x": random(*shape)}
    before, after = (open_session(one, device="cpu").run(feed)["y"] for one in (model, lowered))
    step = 0.05 * 0.1  # what the int32 bias is rounded to, at most
    np.testing.assert_allclose(after, before, atol=step if bias == "small" else 1e-4, rtol=1e-5)
    scales = next(node for node in lowered.graph if node.op_type == "Mul").inputs[1]
    assert scales is not None and scales.const_value is not None
    assert scales.const_value.size == (6 if per_row else 1)  # one factor where all rows share it


def test_the_graph_keeps_its_inputs_outputs_and_the_model_itself() -> None:
    model = qdq("Conv", per_row=False, bias="small")
    names = [node.op_type for node in model.graph]
    lowered = lower(model)
    assert [node.op_type for node in model.graph] == names
    assert [value.name for value in lowered.graph.outputs] == ["y"]
    onnx.checker.check_model(ir.to_proto(lowered))


def test_a_product_that_is_the_output() -> None:
    model = qdq("MatMul", per_row=False)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    model.graph.outputs[0] = relu.inputs[0]
    model.graph.remove(relu)
    relu.replace_input_with(0, None)
    lowered = lower(model)
    feed = {"x": random(2, 4)}
    assert [value.name for value in lowered.graph.outputs] == ["h"]
    before, after = (open_session(one, device="cpu").run(feed)["h"] for one in (model, lowered))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("what", ["zero point", "alpha", "computed bias"])
def test_what_does_not_fit_stays(what: str) -> None:
    model = qdq("Gemm", per_row=True, bias="small", transB=1)
    product = next(node for node in model.graph if node.op_type == "Gemm")
    if what == "alpha":
        product.attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)
    elif what == "zero point":
        model.graph.initializers["wz"].const_value = ir.Tensor(np.full(6, 3, np.int8), name="wz")
    else:
        bias = ir.node("Abs", [model.graph.initializers["b"]])
        model.graph.insert_before(product, bias)
        product.replace_input_with(2, bias.outputs[0])
    assert [node.op_type for node in lower(model).graph].count("Gemm") == 1


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    """Weights of a group share a scale, the checks hold, and the file has DeepSparse's form."""
    out = tmp_path / "o.onnx"
    report = compress(MODEL, CALIBRATION, Recipe(target="deepsparse", refine="none"), out).report
    assert {check.name: check.passed for check in report.checks}["lowered"]
    model = onnx.load(out)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("ConvInteger") + kinds.count("MatMulInteger") == 19
    assert kinds.count("Conv") == 1 and any("groups of several" in entry.reason for entry in report.left_out)
    assert model.ir_version == 8 and model.opset_import[0].version <= 17 and len(model.opset_import) == 1
    assert not DEEPSPARSE.check(ir.load(out))
    assert report.totals["mean_loss_relative"] < report.totals["mean_baseline_relative"]


def test_corrections_leave_a_weight_its_one_scale(tmp_path: Path) -> None:
    """A factor for every channel behind BatchNormalization would cost a pass over the data."""
    rng = np.random.default_rng(1)
    weights = {"w": random(8, 4, 1, 1), "d": random(8, 1, 3, 3, seed=2)}
    weights |= {f"{n}{i}": (1 + rng.random(8)).astype(np.float32) for n in "gbmv" for i in (0, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="pointwise"),
        helper.make_node("BatchNormalization", ["h", "g0", "b0", "m0", "v0"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "d"], ["k"], name="depthwise", group=8),
        helper.make_node("BatchNormalization", ["k", "g1", "b1", "m1", "v1"], ["y"]),
    ]
    model = build(nodes, {"x": ("N", 4, 6, 6)}, {"y": ("N", 8, 4, 4)}, weights, opset=17)
    data = {"x": random(300, 4, 6, 6, seed=5)}
    out = tmp_path / "o.onnx"
    kinds = {}
    for target in ("deepsparse", "onnxruntime"):
        layers = [{"match": "depthwise", "sparsity": "none"}]
        recipe = Recipe(target=target, sparsity="0.75", layers=layers, reconstruction=False)
        kinds[target] = compress(model, data, recipe, out if target == "deepsparse" else None).report.corrections
    assert kinds["deepsparse"][0].kinds == ("batchnorm", "bias") and kinds["deepsparse"][0].kept
    assert kinds["onnxruntime"][0].kinds == ("batchnorm",)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    assert constants["pointwise_scale"].size == 1 and constants["depthwise_scale"].size == 8
    assert not DEEPSPARSE.check(ir.load(out))


def test_text(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 64, (64, 6))
    out = tmp_path / "o.onnx"
    report = compress(text_like(), {"ids": ids}, Recipe(target="deepsparse", refine="none"), out).report
    assert [node.op_type for node in onnx.load(out).graph.node].count("MatMulInteger") == 2
    assert all(check.passed for check in report.checks)


def test_a_lowered_file_that_is_another_model_is_found(tmp_path: Path) -> None:
    model = qdq("Conv", per_row=False, bias="small")
    good, bad = lower(model), lower(model)
    weight = next(v for v in bad.graph.initializers.values() if v.const_value is not None and v.const_value.size > 6)
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(-weight.const_value.numpy(), name=weight.name)
    feed = {"x": random(2, 4, 7, 7)}
    for one, passed in ((good, True), (bad, False)):
        ir.save(one, tmp_path / "m.onnx")
        assert check_lowered(model, tmp_path / "m.onnx", feed, Recipe(device="cpu")).passed == passed


@pytest.mark.slow
def test_refusals_say_why() -> None:
    for options, said in (
        ({"weights": "int4", "asymmetric": False}, "reads no int4"),
        ({"activations": "none"}, "only where the input is quantized"),
        ({"asymmetric": True}, "symmetric weights only"),
    ):
        with pytest.raises(Exception, match=said):
            compress(MODEL, CALIBRATION, Recipe(target="deepsparse", solver="baseline", **options))
    high = onnx.load(MODEL)
    high.opset_import[0].version = 18
    with pytest.raises(ModelError, match="opsets up to 17"):
        compress(high, CALIBRATION, Recipe(target="deepsparse", solver="baseline"))


def test_findings() -> None:
    model = qdq("Conv", per_row=False)
    assert {finding.rule for finding in DEEPSPARSE.check(model)} == {"form"}
    model.ir_version = 10
    model.opset_imports[""] = 21
    model.opset_imports["com.microsoft"] = 1
    assert {finding.rule for finding in DEEPSPARSE.check(model)} == {"form", "ir-version", "opset", "domain"}
    weights = qdq("MatMul", per_row=False)
    product = next(node for node in weights.graph if node.op_type == "MatMul")
    product.replace_input_with(0, weights.graph.inputs[0])
    assert {finding.rule for finding in DEEPSPARSE.check(weights)} == {"weights-only"}
    for per_row, bias in ((True, "small"), (True, ""), (False, "small")):
        rules = [finding.rule for finding in DEEPSPARSE.check(lower(qdq("Conv", per_row=per_row, bias=bias)))]
        assert rules == (["scales"] if per_row else [])


def test_a_bias_for_every_sample_stays() -> None:
    model = qdq("Gemm", per_row=False, bias="small")
    bias = model.graph.initializers["b"]
    bias.const_value, bias.shape = ir.Tensor(random(2, 6), name="b"), ir.Shape((2, 6))
    assert [node.op_type for node in lower(model).graph].count("Gemm") == 1
