"""The checker: findings on files of this tool and of others, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli, small
from onnx import TensorProto, helper
from onnxruntime import quantization
from small_graphs import build, random

from onnx_obc import Recipe, compress
from onnx_obc.runtime.sqnr import agreement_db
from onnx_obc.targets.check import check_file
from onnx_obc.targets.expected import expected_kernels
from onnx_obc.targets.registry import TARGETS

IMAGES = np.load(CALIBRATION)
NAME = IMAGES.files[0]
FEED = {NAME: IMAGES[NAME][:2]}


class Reader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter([{NAME: IMAGES[NAME][i : i + 8]} for i in range(0, 64, 8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def quantized(path: Path, **options: object) -> Path:
    """The digits model, quantized by onnxruntime's own tool."""
    quantization.quantize_static(MODEL, path, Reader(), quant_format=quantization.QuantFormat.QDQ, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.slow
def test_a_file_of_ours_keeps_all_promises(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    report = compress(MODEL, CALIBRATION, Recipe(solver="baseline"), out).report
    found = check_file(out, "onnxruntime", FEED)
    assert found.ran and not found.findings and found.count("int8") == (20, 20)
    assert report.engine is not None and report.engine["in_integers"] == report.engine["quantized"] == 20


def test_a_file_of_onnxruntimes_quantizer(tmp_path: Path) -> None:
    found = check_file(quantized(tmp_path / "q.onnx", per_channel=True), "onnxruntime", FEED)
    kept, promised = found.count("int8")
    assert found.ran and promised == 20
    named = {finding.node for finding in found.findings if finding.severity == "slow"}
    unkept = {entry.node for entry in found.executions if not entry.kept}
    assert unkept <= named  # whatever does not run in integers is named
    assert kept == promised - len(unkept)


def broken(what: str) -> ir.Model:
    """A Conv between Q/DQ with one thing wrong."""
    q = {
        "xs": np.array(0.1, np.float32),
        "xz": np.array(128, np.uint8),
        "ws": np.full(4, 0.1, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    weights = {**q, "w": np.ones((4, 4, 3, 3), np.int8), "b": random(4)}
    axis = 1 if what == "axis" else 0
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
    ]
    bias = "b"
    if what == "bias":
        nodes.append(helper.make_node("ReduceMean", ["x"], ["b2"], axes=[0, 2, 3], keepdims=0))
        bias = "b2"
    if what == "constant bias":
        nodes.append(helper.make_node("Abs", ["b"], ["b2"]))
        bias = "b2"
    if what == "moved input":
        nodes.append(helper.make_node("Transpose", ["xd"], ["xt"], perm=[0, 1, 3, 2]))
    data = "xt" if what == "moved input" else "xd"
    nodes.append(helper.make_node("Conv", [data, "wd", bias], ["c"], name="conv"))
    if "Clip" in what:
        weights["low"], weights["high"] = np.float32(-20), np.float32(12 if what == "narrow Clip" else 12.75)
        if what == "Clip to 6":  # 255 steps of 6/255 are a little more in double precision
            weights |= {"low": np.float32(0), "high": np.float32(6), "ys": np.float32(6 / 255), "yz": np.uint8(0)}
        nodes.append(helper.make_node("Clip", ["c", "low", "high"], ["clipped"]))
    grid = ("ys", "yz") if what == "Clip to 6" else ("xs", "xz")
    if what == "output":
        nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    else:
        nodes += [
            helper.make_node("QuantizeLinear", ["clipped" if "Clip" in what else "c", *grid], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", *grid], ["y"]),
        ]
    return ir.from_proto(build(nodes, {"x": (1, 4, 8, 8)}, {"y": (1, 4, 6, 6)}, weights))


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        *((rule, rule) for rule in ("output", "bias", "axis")),
        *((what, "") for what in ("", "moved input", "constant bias", "wide Clip", "Clip to 6")),
        ("narrow Clip", "clip"),
    ],
)
def test_every_rule_is_named_and_true(tmp_path: Path, what: str, rule: str) -> None:
    model = broken(what)
    found = TARGETS["onnxruntime"].check(model)
    assert [(finding.node, finding.rule) for finding in found] == ([("conv", rule)] if rule else [])
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    seen = check_file(path, "onnxruntime", {"x": random(1, 4, 8, 8)})
    assert seen.count("int8") == ((0, 1) if rule else (1, 1)), seen.executions


def test_a_weight_that_is_moved_after_it_was_dequantized(tmp_path: Path) -> None:
    weights = {"xs": np.array(0.1, np.float32), "xz": np.array(128, np.uint8), "ws": np.full(4, 0.1, np.float32)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["y"], name="product"),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(build(nodes, {"x": (2, 8)}, {"y": (2, 4)}, {**weights, "w": np.ones((4, 8), np.int8)}), path)
    found = check_file(path, "onnxruntime", {"x": random(2, 8)})
    assert [(f.node, f.rule) for f in found.findings] == [("product", "dequantize-first")]
    assert found.count("int8") == (0, 1)


def test_what_promises_nothing_is_fine() -> None:
    model = ir.from_proto(small())
    (promise,) = expected_kernels(model)
    assert promise.form == "float" and promise.type == "float32" and not TARGETS["onnxruntime"].check(model)


def test_weights_of_half_precision_are_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = build([product], {"x": ("n", 4)}, {"y": ("n", 3)}, {"w": random(4, 3).astype(np.float16)})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(proto, tmp_path / "half.onnx")
    assert run_cli("check", tmp_path / "half.onnx", "--target", "onnxruntime") == 0
    assert "1 × float16 in the file: onnxruntime runs MatMul in float32" in capsys.readouterr().out


def test_odd_but_legal(tmp_path: Path) -> None:
    """Constants as nodes, an Identity on the way, no zero point, no node names."""
    nodes = [
        helper.make_node("Constant", [], ["w"], value=helper.make_tensor("w", TensorProto.INT8, [8, 4], [1] * 32)),
        helper.make_node("Identity", ["w"], ["wi"]),
        helper.make_node("DequantizeLinear", ["wi", "s"], ["wd"]),
        helper.make_node("QuantizeLinear", ["x", "s"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s"], ["xd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(build(nodes, {"x": (2, 8)}, {"y": (2, 4)}, {"s": np.array(0.1, np.float32)}), path)
    found = check_file(path, "onnxruntime", {"x": random(2, 8)})
    assert [entry.promised for entry in found.executions] == ["int8"] and not found.failed


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.json"
    assert run_cli("check", MODEL, "--target", "onnxruntime", "--json", out) == 0
    printed = capsys.readouterr().out
    assert "0 errors" in printed and "19 × float32" in printed
    assert json.loads(out.read_text())["ran"] is True


@pytest.mark.slow
def test_without_saturating_there_is_no_word_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline"), out)
    monkeypatch.setattr("onnx_obc.targets.onnxruntime.check.saturates", lambda: True)
    assert {finding.rule for finding in check_file(out, "onnxruntime").findings} == {"saturation"}
    compress(MODEL, CALIBRATION, Recipe(solver="baseline", weights="int7"), out)
    assert not check_file(out, "onnxruntime").findings
    monkeypatch.setattr("onnx_obc.targets.onnxruntime.check.saturates", lambda: False)
    compress(MODEL, CALIBRATION, Recipe(solver="baseline"), out)
    assert not check_file(out, "onnxruntime").findings


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, "check", tmp_path / "none.onnx", "--target", "onnxruntime")
    assert "--target is missing" in refused(capsys, "check", MODEL)
    (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:5000])
    assert "cut.onnx" in refused(capsys, "check", tmp_path / "cut.onnx", "--target", "onnxruntime")


def test_how_far_outputs_are() -> None:
    y = np.ones((2, 3))
    assert agreement_db(y, y) == np.inf
    assert agreement_db(y, y * 1.1) == pytest.approx(20)
    assert agreement_db(y, y[:1]) == -np.inf
    assert agreement_db(y, np.full_like(y, np.nan)) == -np.inf
    y[0, 0], y[0, 1] = np.inf, np.nan
    assert agreement_db(y, y.copy()) == np.inf  # masked scores
    assert agreement_db(y, np.ones((2, 3))) == -np.inf


def qoperator(weight: np.ndarray, constant: bool = True) -> ir.Model:
    """A QLinearMatMul of an activation and a weight, or of two activations."""
    names = ["x", "s", "z", "w" if constant else "v", "ws", "wz", "s", "z"]
    numbers = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "w": weight}
    numbers |= {"ws": np.array(0.1, np.float32), "wz": np.array(0, np.int8)}
    node = helper.make_node("QLinearMatMul", names, ["y"], name="product")
    kinds = [("x", TensorProto.UINT8, (2, 4)), *([] if constant else [("v", TensorProto.INT8, (4, 4))])]
    inputs = [helper.make_tensor_value_info(*kind) for kind in kinds]
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, (2, 4))
    used = [onnx.numpy_helper.from_array(a, n) for n, a in numbers.items() if n in names]
    return ir.from_proto(helper.make_model(helper.make_graph([node], "g", inputs, [output], used)))


def test_operators_with_scales_among_their_inputs() -> None:
    weight = np.diag([127, 5, -3, 2]).astype(np.int8)
    (found,) = expected_kernels(qoperator(weight))
    assert (found.form, found.bits, found.sparsity, found.largest) == ("int8", 8, 0.75, 127)
    assert expected_kernels(qoperator(weight, constant=False)) == []


@pytest.mark.parametrize("stored", ["codes", "floats"])
def test_weights_with_a_zero_point_and_weights_kept_in_float(stored: str) -> None:
    codes = np.array([[7, 7, 7, 1], [9, 2, 9, 9]], np.uint8).T  # zeros are 7 and 9
    scale, zero = np.array([0.1, 0.2], np.float32), np.array([7, 9], np.uint8)
    nodes = [helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"], axis=1)]
    weights = {"c": codes, "s": scale, "z": zero}
    if stored == "floats":
        nodes.insert(0, helper.make_node("QuantizeLinear", ["f", "s", "z"], ["c"], axis=1))
        weights |= {"f": scale * (codes.astype(np.float32) - zero)}
        del weights["c"]
    nodes.append(helper.make_node("MatMul", ["x", "d"], ["y"], name="product"))
    (found,) = expected_kernels(ir.from_proto(build(nodes, {"x": ("N", 4)}, {"y": ("N", 2)}, weights)))
    assert (found.form, found.bits, found.sparsity) == ("weights", 8, 0.75)


def test_models_of_a_fixed_batch_and_such_that_take_no_random_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["v", "h"], ["y"])]
    for first, other in (((8, 4), (8, 8)), ((8, 4), (3, 8))):  # one batch of 8; no batch at all
        onnx.save(
            build(nodes, {"x": first, "v": other}, {"y": (other[0], 2)}, {"w": random(4, 2)}), tmp_path / "m.onnx"
        )
        assert run_cli("check", tmp_path / "m.onnx", "--target", "onnxruntime") == 0
        said = capsys.readouterr()
        assert ("not run" in said.err) == (other[0] == 3)


def test_integers_of_few_bits_beside_quantized_inputs(tmp_path: Path) -> None:
    weights = {"w": random(16, 8)}
    model = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"x": ("N", 16)}, {"y": ("N", 8)}, weights
    )
    compress(model, {"x": random(60, 16)}, Recipe(weights="int3", effort="fast"), tmp_path / "q.onnx")
    found = check_file(tmp_path / "q.onnx", "onnxruntime", {"x": random(2, 16)})
    assert [(finding.node, finding.rule) for finding in found.findings] == [("product", "few-bits")]
    assert [entry.kept for entry in found.executions] == [False]
