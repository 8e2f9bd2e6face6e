"""A scale for every block of columns, from the option to the kernel that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli
from onnx import helper
from small_graphs import build, random

from onnx_obc import Recipe, RecipeError, compress, open_database
from onnx_obc import build as build_database
from onnx_obc.core.level import parse_choice
from onnx_obc.targets.check import check_file

X = {"x": random(400, 128, seed=4)}


def products(op: str = "MatMul", **attributes: int) -> onnx.ModelProto:
    """Two products, 128 → 64 → 32."""
    shapes = [(64, 128), (32, 64)] if attributes.get("transB") else [(128, 64), (64, 32)]
    nodes = [
        helper.make_node(op, ["x", "u"], ["h"], name="first", **attributes),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node(op, ["r", "w"], ["y"], name="second", **attributes),
    ]
    weights = {"u": random(*shapes[0], seed=5), "w": random(*shapes[1], seed=6)}
    return build(nodes, {"x": ("N", 128)}, {"y": ("N", 32)}, weights)


@pytest.mark.slow
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(2, 16), (2, 64), (4, 16), (4, 32), (4, 64), (8, 32)])
def test_onnxruntime_has_a_kernel_for_them(tmp_path: Path, bits: int, block: int, asymmetric: bool) -> None:
    out = tmp_path / "o.onnx"
    recipe = Recipe(weights=f"int{bits}", block=block, activations="none", asymmetric=asymmetric)  # type: ignore[arg-type]
    report = compress(products(), X, recipe, out).report
    assert all(check.passed for check in report.checks)
    assert {layer.level for layer in report.layers} == {f"int{bits}{'-asym' if asymmetric else ''}-b{block}"}
    found = check_file(out, "onnxruntime", {"x": X["x"][:2]})
    assert {(entry.kernel, entry.precision) for entry in found.executions} == {("MatMulNBits", f"int{bits}-weights")}
    assert not found.findings
    model = onnx.load(out)
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    sizes = [{a.name: a.i for a in node.attribute} for node in nodes]
    assert all(one == {"axis": 0, "block_size": block} for one in sizes) and model.opset_import[0].version >= 21


@pytest.mark.slow
@pytest.mark.parametrize(("op", "attributes"), [("Gemm", {}), ("Gemm", {"transB": 1}), ("MatMul", {})])
def test_blocks_lie_along_the_inputs(tmp_path: Path, op: str, attributes: dict[str, int]) -> None:
    """Also of a weight that the Gemm turns: it is turned in the file, as MatMulNBits takes no other."""
    out = tmp_path / "o.onnx"
    report = compress(products(op, **attributes), X, Recipe(weights="int4", block=32, activations="none"), out).report
    assert all(check.passed for check in report.checks)
    nodes = onnx.load(out).graph.node
    blocks = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "DequantizeLinear"]
    assert blocks and all(each == {"axis": 0, "block_size": 32} for each in blocks)
    assert not any(a.name == "transB" and a.i for node in nodes if node.op_type == op for a in node.attribute)


@pytest.mark.slow
def test_they_lose_less_and_cost_their_scales() -> None:
    few, many = (
        compress(products(), X, Recipe(weights="int3", block=block, activations="none", asymmetric=False)).report
        for block in (None, 16)
    )
    assert many.totals["mean_loss_relative"] < few.totals["mean_loss_relative"]
    first = many.layers[0]
    assert first.bytes_after == 128 * 64 * 3 // 8 + 4 * 64 * 8  # true bits, and eight scales a row


@pytest.mark.slow
def test_corrections_and_training_keep_the_integers(tmp_path: Path) -> None:
    for options in ({"sequential": False}, {"sequential": True}):
        recipe = Recipe(weights="int4", block=16, activations="none", **options)
        report = compress(products(), X, recipe, tmp_path / "o.onnx").report
        assert all(check.passed for check in report.checks)


def test_in_a_database(tmp_path: Path) -> None:
    built = build_database(products(), X, "int4-asym-b32,int4", tmp_path / "db")
    database = open_database(tmp_path / "db")
    choice = parse_choice("int4-asym-b32")
    solved = database.solved(database.layers[0], choice)
    assert built.solved == 4 and solved.solution.grid is not None and solved.solution.grid.block == 32
    np.testing.assert_array_equal(database.weight(database.layers[0], choice), solved.solution.weights)


@pytest.mark.slow
def test_where_it_is_impossible_the_report_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = compress(MODEL, CALIBRATION, Recipe(weights="int4", block=32, activations="none")).report
    assert [layer.op for layer in report.layers] == ["Gemm"]
    assert all("MatMul and Gemm" in entry.reason for entry in report.left_out)
    with pytest.raises(RecipeError, match="128 is not a multiple"):
        compress(products(), X, Recipe(weights="int4", block=256, activations="none"))
    quantized = compress(products(), X, Recipe(weights="int4", block=32)).report
    assert all(layer.activations == "float" and layer.notes for layer in quantized.layers)
    said = refused(capsys, MODEL, tmp_path / "o.onnx", "--calib", CALIBRATION, "--block", 48)
    assert "16" in said and "256" in said
    with pytest.raises(RecipeError, match="16, 32, 64, 128, 256"):
        parse_choice("int4-b48")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block": 32}, "64 or 128, not of 32"),
        ({"block": 64, "activations": "int8"}, "float inputs"),
        ({"block": None}, "see --block"),
        ({"block": 64, "weights": "int8"}, "4-bit weights only"),
    ],
)
def test_tensorrt_takes_64_and_128(options: dict[str, Any], said: str) -> None:
    recipe = {"weights": "int4", "activations": "none", "target": "tensorrt", "solver": "baseline", **options}
    with pytest.raises(RecipeError, match=said):
        compress(products(), X, Recipe(**recipe))
    good = compress(products(), X, Recipe(weights="int4", activations="none", target="tensorrt", block=64)).report
    assert {layer.level for layer in good.layers} == {"int4-b64"}


def test_the_command(tmp_path: Path) -> None:
    onnx.save(products(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **X)
    options = ("--weights", "int4", "--block", 64, "--activations", "none")
    assert run_cli(tmp_path / "m.onnx", tmp_path / "o.onnx", "--calib", tmp_path / "x.npz", *options) == 0
