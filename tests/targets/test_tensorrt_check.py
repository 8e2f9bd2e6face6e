"""Each rule of TensorRT broken once, files of other tools, and 2:4 counted as polygraphy counts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL
from onnx import TensorProto, helper
from onnxruntime import quantization
from small_graphs import build, random

from onnx_obc import Recipe, compress
from onnx_obc.runtime.session import open_session
from onnx_obc.targets.registry import TARGETS
from onnx_obc.targets.tensorrt.check import broken_groups, channels_first

check = TARGETS["tensorrt"].check


def rules(model: ir.Model) -> list[tuple[str, str]]:
    return [(finding.severity, finding.rule) for finding in check(model)]


def network(**change: Any) -> ir.Model:
    """Conv (32 channels) with a residual sum and a MatMul behind it, quantized as TensorRT wants it, or changed."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        "w": rng.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8),
        "ws": np.full(32, 0.01, np.float32),
        "wz": np.zeros(32, np.int8),
        "v": rng.integers(-127, 128, (32, 64)).astype(np.int8),
        "vs": np.full(64, 0.01, np.float32),
        "vz": np.zeros(64, np.int8),
        "s": np.array(0.05, np.float32),
        "z": np.array(0, np.int8),
        "b": random(32),
    }
    weights |= change.get("weights", {})
    read = {"q": ["x", "s", "z"], "d": ["xq", "s", "z"], "e": ["xq", "s", "z"]} | change.get("inputs", {})
    nodes = [
        helper.make_node("QuantizeLinear", read["q"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", read["d"], ["xd"], name="dequantize"),
        helper.make_node("DequantizeLinear", read["e"], ["skip"], name="skip"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weight", axis=change.get("axis", 0)),
        helper.make_node("Conv", [change.get("data", "xd"), "wd", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        *change.get("between", []),
        helper.make_node("Add", [change.get("branch", "c"), change.get("other", "skip")], ["sum"], name="sum"),
        helper.make_node("GlobalAveragePool", ["sum"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["fq"], name="quantize2"),
        helper.make_node("DequantizeLinear", ["fq", "s", "z"], ["fd"], name="dequantize2"),
        helper.make_node("DequantizeLinear", ["v", "vs", "vz"], ["vd"], name="weight2", axis=1),
        helper.make_node("MatMul", ["fd", "vd"], ["y"], name="product"),
    ]
    used = {name for node in nodes for name in node.input}
    proto = build(nodes, {"x": (1, 32, 8, 8)}, {"y": (1, 64)}, {k: v for k, v in weights.items() if k in used})
    return ir.from_proto(proto)


FEW = {
    "w": np.ones((8, 32, 3, 3), np.int8),
    "ws": np.full(8, 0.1, np.float32),
    "wz": np.zeros(8, np.int8),
    "b": random(8),
    "b2": random(1, 8, 1, 1),
    "v": np.ones((8, 64), np.int8),
}


def test_what_keeps_all_rules_has_no_finding() -> None:
    assert rules(network()) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"weights": {"z": np.array(3, np.int8)}}, ("error", "asymmetric")),
        ({"weights": {"z": np.array(0, np.uint8)}}, ("error", "unsigned")),
        ({"inputs": {"q": ["x", "s"], "d": ["xq", "s"], "e": ["xq", "s"]}}, ("error", "zero-point")),
        ({"axis": 1}, ("error", "axis")),
        ({"weights": {"ws": np.full(32, 0, np.float32)}}, ("error", "scale")),
        ({"data": "x"}, ("slow", "one-sided")),
        ({"other": "x"}, ("slow", "skip")),
        ({"weights": FEW, "other": "b2"}, ("slow", "few-channels")),
    ],
)
def test_each_rule_broken_once(change: dict[str, Any], found: tuple[str, str]) -> None:
    seen = rules(network(**change))
    assert found in seen and set(seen) <= {found, ("slow", "one-sided")}


def test_a_bias_in_integers_is_refused() -> None:
    model = network()
    conv = next(node for node in model.graph if node.op_type == "Conv")
    tensor = ir.Tensor(np.zeros(32, np.int32), name="bq")
    codes = ir.Value(name="bq", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    model.graph.register_initializer(codes)
    scale = model.graph.initializers["ws"]
    bias = ir.node("DequantizeLinear", [codes, scale], name="bias")
    bias.outputs[0].name = "bd"
    model.graph.insert_before(conv, bias)
    conv.replace_input_with(2, bias.outputs[0])
    assert ("error", "bias") in rules(model)


def test_an_output_that_is_quantized_before_the_sum() -> None:
    between = [
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"], name="behind"),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["cd"], name="behind2"),
    ]
    assert rules(network(between=between, branch="cd")) == [("slow", "output")]


def test_integers_that_nothing_dequantizes() -> None:
    model = network()
    cast = ir.node("Cast", [model.graph[0].outputs[0]], attributes={"to": TensorProto.FLOAT}, name="cast")
    model.graph.insert_after(model.graph[0], cast)
    assert ("error", "unpaired") in rules(model)


@pytest.mark.slow
def test_integer_operators_are_not_qdq() -> None:
    out = compress(MODEL, CALIBRATION, Recipe(target="deepsparse", solver="baseline", verify=False)).model
    assert ("error", "operator") in rules(out)


@pytest.mark.parametrize(("block", "fine"), [(64, True), (128, True), (32, False), (0, False)])
def test_blocks_of_4_bits(block: int, fine: bool) -> None:
    codes = helper.make_tensor("w", TensorProto.INT4, [128, 32], np.zeros(128 * 32, np.int8).tolist())
    scale = np.ones((128 // block, 32) if block else (32,), np.float32)
    axis = {"axis": 0, "block_size": block} if block else {"axis": 1}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], name="weight", **axis),
        helper.make_node("MatMul", ["x", "wd"], ["y"], name="product"),
    ]
    zero = helper.make_tensor("z", TensorProto.INT4, list(scale.shape), np.zeros(scale.size, np.int8).tolist())
    model = build(nodes, {"x": (1, 128)}, {"y": (1, 32)}, {"s": scale}, opset=21)
    model.graph.initializer.extend([codes, zero])
    found = rules(ir.from_proto(model))
    assert found == ([("note", "2:4")] if fine else [("error", "int4"), ("note", "2:4")])  # of zeros alone it is 2:4


def two_four(shape: tuple[int, ...], axis: int, seed: int = 0) -> np.ndarray:
    """Random weights of which two in four along an axis are zero."""
    moved = np.moveaxis(random(*shape, seed=seed), axis, -1).copy()
    groups = moved.reshape(-1, 4)
    order = np.argsort(np.random.default_rng(seed).random(groups.shape), axis=1)
    np.put_along_axis(groups, order[:, :2], 0, axis=1)
    return np.moveaxis(groups.reshape(moved.shape), -1, axis)


def product(op: str, weight: np.ndarray, **attributes: int) -> onnx.ModelProto:
    if op == "Conv":
        x, y = (1, weight.shape[1], 8, 8), (1, weight.shape[0], 6, 6)
    else:
        rows = 0 if attributes.get("transB") else 1
        x, y = (1, weight.shape[1 - rows]), (1, weight.shape[rows])
    node = helper.make_node(op, ["x", "w"], ["y"], name="product", **attributes)
    return build([node], {"x": x}, {"y": y}, {"w": weight})


CASES = [
    ("Conv", (8, 16, 3, 3), 1, {}),
    ("MatMul", (16, 12), 0, {}),
    ("Gemm", (16, 12), 0, {}),
    ("Gemm", (12, 16), 1, {"transB": 1}),
]


@pytest.mark.parametrize(("op", "shape", "axis", "attributes"), CASES)
def test_two_in_four_along_the_input_channels(
    op: str, shape: tuple[int, ...], axis: int, attributes: dict[str, int]
) -> None:
    weight = two_four(shape, axis)
    model = ir.from_proto(product(op, weight, **attributes))
    assert rules(model) == [("note", "2:4")]
    node = model.graph[0]
    assert broken_groups(channels_first(node, weight)) == (0, weight.size // 4)
    index = tuple(np.argwhere(weight == 0)[0])
    weight[index] = 1.0
    (finding,) = check(ir.from_proto(product(op, weight, **attributes)))
    assert finding.rule == "2:4" and finding.severity == "slow" and finding.message.startswith("1 of ")
    other = two_four(shape, 1 - axis if op != "Conv" else 2 if shape[2] % 4 == 0 else 0)
    if op != "Conv":
        assert all(finding.severity != "note" for finding in check(ir.from_proto(product(op, other, **attributes))))


@pytest.mark.parametrize(("op", "shape", "axis", "attributes"), CASES)
@pytest.mark.slow
def test_polygraphy_agrees(
    tmp_path: Path, op: str, shape: tuple[int, ...], axis: int, attributes: dict[str, int]
) -> None:
    program = Path(sys.executable).with_name("polygraphy")
    if not program.exists():
        pytest.skip("polygraphy is not installed")
    for weight, sparse in ((two_four(shape, axis), True), (random(*shape), False)):
        proto = product(op, weight, **attributes)
        onnx.save(proto, tmp_path / "m.onnx")
        done = subprocess.run([program, "inspect", "sparsity", tmp_path / "m.onnx"], capture_output=True, text=True)
        assert ("Found sparse tensor: w" in done.stdout + done.stderr) == sparse, done.stdout + done.stderr
        assert (("note", "2:4") in rules(ir.from_proto(proto))) == sparse


@pytest.mark.slow
def test_our_own_files_keep_the_rules(tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    report = compress(MODEL, CALIBRATION, Recipe(target="tensorrt", solver="baseline"), out).report
    assert not [finding for finding in check(ir.load(out)) if finding.severity != "note"]
    left = {entry.name: entry.reason for entry in report.left_out}
    assert any("slower than float" in reason for reason in left.values())
    assert any("trtexec --onnx=" in note and str(out) in note for note in report.notes)
    layer = next(name for name, reason in left.items() if "slower than float" in reason)
    rule = {"match": layer, "weights": "int8"}
    named = compress(MODEL, CALIBRATION, Recipe(target="tensorrt", solver="baseline", layers=(rule,))).report
    assert layer not in {entry.name for entry in named.left_out}


@pytest.mark.parametrize("options", [{}, {"sparsity": "2:4"}])
@pytest.mark.slow
def test_weights_as_floats_behind_both(tmp_path: Path, options: dict[str, Any]) -> None:
    out = {}
    for form in ("dq", "qdq"):
        recipe = Recipe(target="tensorrt", solver="baseline", weight_form=form, **options)  # type: ignore[arg-type]
        report = compress(MODEL, CALIBRATION, recipe, tmp_path / f"{form}.onnx").report
        assert all(check.passed for check in report.checks)
        out[form] = ir.load(tmp_path / f"{form}.onnx")
        assert not [finding for finding in check(out[form]) if finding.severity != "note"]
    assert {check.name for check in report.checks} >= {"lowered"}
    stored = [value.const_value for value in out["qdq"].graph.initializers.values() if value.const_value is not None]
    assert not [x for x in stored if x.dtype == ir.DataType.INT8 and len(x.shape) > 1]  # all weights are floats
    feed = {np.load(CALIBRATION).files[0]: np.load(CALIBRATION)[np.load(CALIBRATION).files[0]][:8]}
    one, two = (open_session(model, device="cpu", fuse=False).run(feed)["logits"] for model in out.values())
    np.testing.assert_array_equal(one, two)


def test_only_tensorrt_has_that_form() -> None:
    with pytest.raises(ValueError, match="onnxruntime does not take qdq; write dq"):
        Recipe(weight_form="qdq")


@pytest.mark.slow
def test_files_of_onnxruntimes_quantizer(tmp_path: Path) -> None:
    name = np.load(CALIBRATION).files[0]
    images = np.load(CALIBRATION)[name]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{name: images[i : i + 8]} for i in range(0, 32, 8)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    def quantized(**options: Any) -> list[tuple[str, str]]:
        path = tmp_path / "q.onnx"
        quantization.quantize_static(
            MODEL, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True, **options
        )
        return rules(ir.load(path))

    int8 = quantization.QuantType.QInt8
    for kind, found in ((quantization.QuantType.QUInt8, "unsigned"), (int8, "asymmetric")):
        seen = {rule for severity, rule in quantized(activation_type=kind, weight_type=int8) if severity == "error"}
        assert seen == {found, "bias"}  # its biases are int32
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    signed = quantized(activation_type=int8, weight_type=int8, extra_options=extra)
    assert not [rule for severity, rule in signed if severity == "error"], signed


def test_files_of_nvidias_modelopt(tmp_path: Path) -> None:
    """Its own environment is named by ONNX_OBC_MODELOPT, the Python that has nvidia-modelopt[onnx]."""
    python = os.environ.get("ONNX_OBC_MODELOPT")
    if python is None:
        pytest.skip("ONNX_OBC_MODELOPT names no Python with nvidia-modelopt[onnx]")
    out = tmp_path / "q.onnx"
    options = ("--quantize_mode=int8", "--calibration_eps=cpu", f"--output_path={out}")
    copy = tmp_path / "m.onnx"
    copy.write_bytes(MODEL.read_bytes())  # it writes into the file that it is given
    data = (f"--onnx_path={copy}", f"--calibration_data_path={CALIBRATION}")
    subprocess.run([python, "-m", "modelopt.onnx.quantization", *data, *options], check=True, capture_output=True)
    found = check(ir.load(out))
    assert not [finding for finding in found if finding.severity == "error"]  # it is NVIDIA's own form
    few = {finding.node for finding in found if finding.rule == "few-channels"}
    shapes = {node.name: node for node in onnx.load(out).graph.node if node.op_type == "Conv"}
    assert few and few <= shapes.keys() and {finding.rule for finding in found} <= {"few-channels", "2:4"}


@pytest.mark.parametrize(("op", "axis"), [("Transpose", 0), ("Transpose", 1), ("Reshape", 0)])
def test_nodes_between_a_weight_and_its_product(op: str, axis: int) -> None:
    """What PyTorch's Linear becomes: the axis and 2:4 are those that the product sees."""
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 127, (8, 32)).astype(np.int8)  # outputs × inputs
    codes[:, 0::4] = codes[:, 1::4] = 0
    weights = {"w": codes, "shape": np.array([32, 8], np.int64)}
    weights |= {"ws": np.full(codes.shape[axis], 0.1, np.float32), "wz": np.zeros(codes.shape[axis], np.int8)}
    weights |= {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node(op, ["wd", "shape"] if op == "Reshape" else ["wd"], ["t"]),
        helper.make_node("MatMul", ["d", "t"], ["y"], name="product"),
    ]
    used = {name for node in nodes for name in node.input}
    found = rules(
        ir.from_proto(build(nodes, {"x": (2, 32)}, {"y": (2, 8)}, {k: v for k, v in weights.items() if k in used}))
    )
    if op == "Transpose":
        assert found == [*([("error", "axis")] if axis == 1 else []), ("note", "2:4")]
    else:
        assert ("error", "axis") not in found


def test_a_vector_reshaped_to_a_convolution() -> None:
    nodes = [
        helper.make_node("Reshape", ["w", "shape"], ["r"]),
        helper.make_node("Conv", ["x", "r"], ["y"], name="conv"),
    ]
    weights = {"w": random(8 * 4), "shape": np.array([8, 4, 1, 1], np.int64)}
    assert rules(ir.from_proto(build(nodes, {"x": (1, 4, 5, 5)}, {"y": (1, 8, 5, 5)}, weights))) == []


def test_types_are_those_of_the_integers() -> None:
    """Without a zero point, integers are what the file stores or names; small floats are none."""
    scale = np.array(0.1, np.float32)
    stored = build(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"], name="d")],
        {"x": (1,)},
        {"y": (4, 4)},
        {"w": np.ones((4, 4), np.int8), "s": scale},
    )
    assert rules(ir.from_proto(stored)) == []
    pair = build(
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=onnx.TensorProto.INT8),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        {"x": (4,)},
        {"y": (4,)},
        {"s": scale},
        opset=21,
        ir_version=10,
    )
    assert rules(ir.from_proto(pair)) == []
    codes = ir.Tensor(np.ones((4, 32), np.float32).astype(ir.DataType.FLOAT4E2M1.numpy()), name="w")
    model = ir.from_proto(stored)
    node = next(iter(model.graph))
    weight = node.inputs[0]
    assert weight is not None
    weight.const_value, weight.type, weight.shape = codes, ir.TensorType(codes.dtype), codes.shape
    node.attributes["block_size"] = ir.AttrInt64("block_size", 16)
    assert rules(model) == []


def test_weights_that_are_empty_or_of_one_axis() -> None:
    weights = {"e": np.zeros((4, 0), np.float32), "f": np.zeros((0, 4), np.float32), "v": random(4)}
    nodes = [
        helper.make_node("MatMul", ["x", "e"], ["a"]),
        helper.make_node("MatMul", ["a", "f"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["y"]),
    ]
    assert check(ir.from_proto(build(nodes, {"x": (2, 4)}, {"y": None}, weights))) == []
