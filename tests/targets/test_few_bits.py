"""Weights in blocks: onnxruntime, with all its fusions and without, computes what numpy does. Some versions did not."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from small_graphs import Array, build, random, run

from onnx_obc import Recipe, RecipeError, compress
from onnx_obc.targets.check import check_file
from onnx_obc.targets.onnxruntime.few_bits import as_few_bits

TYPES = {
    (2, True): ml_dtypes.int2,
    (2, False): ml_dtypes.uint2,
    (4, True): ml_dtypes.int4,
    (4, False): ml_dtypes.uint4,
    (8, True): np.int8,
    (8, False): np.uint8,
}
CLOSE = {None: 4e-2, 0: 1e-5, 1: 1e-5, 4: 4e-2}  # relative; accuracy level 4, which None is, rounds the input to int8
FORMS = ["MatMul", "Gemm", "Gemm-transB"]


def in_blocks(form: str, bits: int, block: int, symmetric: bool, k: int, zeros: bool = True) -> tuple[ir.Model, Array]:
    """x times a weight (k, 8) in blocks, along axis 0, or 1 where it is turned; and the weight."""
    rng, blocks, rows = np.random.default_rng([bits, block, symmetric, k]), -(-k // block), 8
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if symmetric else (0, 2**bits)
    codes = rng.integers(low, high, (k, rows))
    scale = rng.uniform(0.1, 1, (blocks, rows)).astype(np.float32)
    zero = np.zeros((blocks, rows), int) if symmetric else rng.integers(low, high, (blocks, rows))
    weight = (codes - np.repeat(zero, block, axis=0)[:k]).astype(np.float32) * np.repeat(scale, block, axis=0)[:k]
    turned = form == "Gemm-transB"
    parts = {"codes": codes.astype(TYPES[bits, symmetric]), "scale": scale, "zero": zero.astype(TYPES[bits, symmetric])}
    if not zeros:
        del parts["zero"]
    nodes = [
        helper.make_node("DequantizeLinear", list(parts), ["w"], axis=int(turned), block_size=block),
        helper.make_node(form.split("-")[0], ["x", "w"], ["y"], name="product", **({"transB": 1} if turned else {})),
    ]
    proto = build(nodes, {"x": ("M", k)}, {"y": ("M", rows)}, opset=25 if bits == 2 else 21, ir_version=13)
    for name, array in parts.items():
        proto.graph.initializer.append(
            ir.to_proto(ir.Tensor(np.ascontiguousarray(array.T if turned else array), name=name))
        )
    return ir.from_proto(proto), weight


def fused(model: ir.Model, feed: dict[str, Array], accuracy_level: int | None = None) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, feed)[0]
    return found


def error(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_fused_is_what_is_written(form: str, bits: int, block: int, symmetric: bool, ragged: bool) -> None:
    k = 2 * block + (block // 2 if ragged else 0)
    for zeros in (True, False) if symmetric else (True,):
        model, weight = in_blocks(form, bits, block, symmetric, k, zeros)
        for rows in (1, 5):
            feed = {"x": random(rows, k)}
            wanted = feed["x"] @ weight
            assert error(run(model, feed)[0], wanted) < 1e-5
            for level in (None, 0, 4):
                assert error(fused(model, feed, level), wanted) < CLOSE[level]


@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_as_one_operator(bits: int, block: int, symmetric: bool, ragged: bool, level: int) -> None:
    k = 2 * block + (block // 2 if ragged else 0)
    for form in FORMS:
        model, weight = in_blocks(form, bits, block, symmetric, k)
        made = as_few_bits(model, level)
        assert [node.op_type for node in made.graph] == ["MatMulNBits"]
        for rows in (1, 5):
            feed = {"x": random(rows, k)}
            assert error(fused(made, feed), feed["x"] @ weight) < CLOSE[level]
            assert error(run(made, feed)[0], feed["x"] @ weight) < CLOSE[level]


BEHIND = {
    "relu": [helper.make_node("Relu", ["p"], ["r"])],
    "clip": [helper.make_node("Clip", ["p", "low", "high"], ["r"])],
    "bias relu": [helper.make_node("Add", ["b", "p"], ["s"]), helper.make_node("Relu", ["s"], ["r"])],
    "bias clip": [helper.make_node("Add", ["p", "b"], ["s"]), helper.make_node("Clip", ["s", "low", "high"], ["r"])],
    "relu output": [helper.make_node("Relu", ["p"], ["y"])],
}


@pytest.mark.parametrize("level", [None, 4])
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("form", [*FORMS, "Gemm-bias", "Gemm-transB-bias"])
def test_every_product_becomes_one_operator(tmp_path: Path, form: str, behind: str, level: int | None) -> None:
    turned, biased = "transB" in form, ["b"] if "bias" in form else []
    attributes = {"transB": 1} if turned else {}
    nodes = [helper.make_node(form.split("-")[0], ["x", "w", *biased], ["p"], name="product", **attributes)]
    nodes += BEHIND[behind]
    if behind != "relu output":
        nodes.append(helper.make_node("Tanh", ["r"], ["y"]))
    weight = random(32, 64) if turned else random(64, 32)
    limits = {"low": np.float32(0), "high": np.float32(6)}
    proto = build(nodes, {"x": ("N", 64)}, {"y": ("N", 32)}, {"w": weight / 9, "b": random(32), **limits})
    options = {"weights": "int4", "activations": "none", "block": 32, "accuracy_level": level, "effort": "fast"}
    recipe = Recipe(**options, measure_speed=False)  # type: ignore[arg-type]
    out = tmp_path / "o.onnx"
    report = compress(proto, {"x": random(200, 64)}, recipe, out).report
    assert all(check.passed for check in report.checks)
    assert report.engine is not None and report.engine["in_weight_kernels"] == report.engine["integer_weights"] == 1
    assert not check_file(out, "onnxruntime", {"x": random(2, 64)}).findings


def test_a_gemm_that_stays_float_says_why(tmp_path: Path) -> None:
    model, _ = in_blocks("Gemm", 4, 32, True, 64)
    model.graph[-1].attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    ir.save(model, tmp_path / "m.onnx")
    (found,) = check_file(tmp_path / "m.onnx", "onnxruntime", {"x": random(2, 64)}).findings
    assert found.rule == "weights-only" and "alpha" in found.message


def test_two_bits_of_a_gemm_are_refused_where_onnxruntime_computes_something_else() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], name="g")]
    proto = build(nodes, {"x": ("N", 64)}, {"y": ("N", 6)}, {"w": random(64, 6)})
    with pytest.raises(RecipeError, match="no multiple of 4"):
        compress(proto, {"x": random(200, 64)}, Recipe(weights="int2", activations="none", block=32))


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 4])
@pytest.mark.parametrize(("bits", "asymmetric"), [(2, True), (4, False), (4, True), (8, False), (8, True)])
def test_the_option(tmp_path: Path, bits: int, asymmetric: bool, level: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="second"),
    ]
    proto = build(nodes, {"x": ("N", 128)}, {"y": ("N", 32)}, {"u": random(128, 64) / 9, "w": random(64, 32) / 9})
    recipe = Recipe(
        weights=f"int{bits}",  # type: ignore[arg-type]
        activations="none",
        block=32,
        asymmetric=asymmetric,
        accuracy_level=level,  # type: ignore[arg-type]
    )
    out = tmp_path / "o.onnx"
    report = compress(proto, {"x": random(200, 128)}, recipe, out).report
    assert all(check.passed for check in report.checks)
    found = [node for node in onnx.load(out).graph.node if node.op_type == "MatMulNBits"]
    assert [{a.name: a.i for a in node.attribute}["accuracy_level"] for node in found] == [level, level]
    assert report.engine is not None and report.engine["in_weight_kernels"] == report.engine["integer_weights"] == 2
    assert not check_file(out, "onnxruntime", {"x": random(2, 128)}).findings


def test_other_targets_have_no_such_operator() -> None:
    with pytest.raises((RecipeError, ValueError), match="accuracy_level: openvino has no MatMulNBits"):
        Recipe(target="openvino", accuracy_level=4)
