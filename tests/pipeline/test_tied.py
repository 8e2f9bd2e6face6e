"""A table that is the weight of the head too is in the file once, as integers that both read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import random

from onnx_obc import Recipe, Rule, compress
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.compress import make_plan, prepare
from onnx_obc.search.budget import parse_budget
from onnx_obc.search.profile import SearchOptions
from onnx_obc.search.retarget import compress_to_budget

WORDS, WIDTH = 96, 64
INT4 = Recipe(weights="int4", activations="none", block=32)


def model(form: str, rank: int = 2) -> onnx.ModelProto:
    """A table, a layer, and a head of the same numbers: behind a Transpose, in a Gemm, or in its own initializer."""
    table = random(WORDS, WIDTH)
    floats = {"table": table, "w": random(WIDTH, WIDTH, seed=1) / 8}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], "lookup"),
        helper.make_node("MatMul", ["embedded", "w"], ["mixed"], "mix"),
        helper.make_node("Tanh", ["mixed"], ["h"], "tanh"),
    ]
    match form:
        case "transpose":
            nodes += [
                helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
                helper.make_node("MatMul", ["h", "turned"], ["logits"], "head"),
            ]
        case "gemm":
            nodes.append(helper.make_node("Gemm", ["h", "table"], ["logits"], "head", transB=1))
        case "twice":
            floats["turned"] = np.ascontiguousarray(table.T)
            nodes.append(helper.make_node("MatMul", ["h", "turned"], ["logits"], "head"))
    axes = ["batch", "tokens"][:rank]
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, axes)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, WORDS]),
            helper.make_tensor_value_info("embedded", TensorProto.FLOAT, [*axes, WIDTH]),
        ],
        [numpy_helper.from_array(array, name) for name, array in floats.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(rank: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"ids": rng.integers(0, WORDS, (4, 40)[:rank] if rank == 2 else 64)} for _ in range(8)]


def optimized(path: Path, folder: Path) -> list[str]:
    """The operators of a file as onnxruntime runs it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "recipe", "rank"),
    [
        ("transpose", INT4, 2),
        ("twice", INT4, 2),
        ("twice", Recipe(weights="int4", activations="none", block=16, asymmetric=False), 2),
        ("transpose", Recipe(), 2),
        ("twice", Recipe(), 2),
        ("twice", Recipe(asymmetric=True), 2),
        ("twice", Recipe(activations="none"), 2),
        ("gemm", Recipe(), 1),
        ("gemm", Recipe(asymmetric=True, activations="none"), 1),
        ("gemm", INT4, 1),
        ("twice", Recipe(target="openvino"), 2),
    ],
)
def test_the_weight_is_in_the_file_once(form: str, recipe: Recipe, rank: int, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    report = compress(model(form, rank), feeds(rank), recipe, path).report
    assert all(check.passed for check in report.checks)
    large = [tensor for tensor in initializers(path).values() if np.prod(tensor.dims) == WORDS * WIDTH]
    assert len(large) == 1 and large[0].data_type != TensorProto.FLOAT
    assert "table 'table' is the weight of layer 'head' too: it reads the layer's integers" in " ".join(report.notes)
    (table,) = report.embeddings
    assert (table.name, table.bytes_after) == ("table", 0)
    assert table.bytes_before == (4 * WORDS * WIDTH if form == "twice" else 0)

    # The rows that are looked up are, bit for bit, the rows of the head's weight.
    codes = numpy_helper.to_array(large[0]).astype(np.float32)
    scale, zero = (initializers(path)[large[0].name.replace("_quantized", end)] for end in ("_scale", "_zero_point"))
    scales, zeros = numpy_helper.to_array(scale), numpy_helper.to_array(zero).astype(np.float32)
    if scales.ndim == 2:  # (words, blocks)
        scales, zeros = (np.repeat(x, recipe.block, axis=1) for x in (scales, zeros))  # type: ignore[arg-type]
    elif codes.shape == (WORDS, WIDTH):
        scales, zeros = scales[:, None], zeros[:, None]
    weight = (codes - zeros) * scales
    weight = weight if weight.shape == (WORDS, WIDTH) else weight.T
    ids = np.array([[0, 5, 95, 5], [1, 2, 3, -1]])[:rank, :]
    ids = ids if rank == 2 else ids[0]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for session in (ort.InferenceSession(path), ort.InferenceSession(path, options)):
        logits, embedded = session.run(["logits", "embedded"], {"ids": ids})
        np.testing.assert_array_equal(embedded, weight[ids])
        assert logits.shape == (*ids.shape, WORDS)
    error = np.square(weight - random(WORDS, WIDTH)).sum() / np.square(random(WORDS, WIDTH)).sum()
    assert table.error_relative == pytest.approx(error, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "kernel"),
    [
        (INT4, "MatMulNBits"),
        (Recipe(weights="int8", activations="none"), "MatMulNBits"),
        (Recipe(weights="int8", activations="none", asymmetric=True), "MatMulNBits"),
        (Recipe(), "MatMulIntegerToFloat"),
    ],
    ids=["int4", "int8 alone", "int8 asymmetric", "int8"],
)
def test_the_head_runs_in_the_same_kernel_as_alone(recipe: Recipe, kernel: str, tmp_path: Path) -> None:
    for form in ("transpose", "twice"):
        compress(model(form), feeds(), recipe, tmp_path / "small.onnx")
        assert kernel in optimized(tmp_path / "small.onnx", tmp_path)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (Recipe(weights="float", activations="none", sparsity="2:4"), "the layer's weights are floats"),
        (Recipe(sparsity="2:4"), "the layer's zeros would be the table's"),
        (Recipe(weights="int4", activations="none"), "rows of int4-asym cannot be looked up"),
        (Recipe(weights="int4", activations="none", block=32, embeddings="int8"), "--embeddings int8 is not what"),
        (Recipe(target="tensorrt"), "its rows cannot be looked up in the layer's integers"),
    ],
)  # fmt: skip
def test_where_it_is_there_twice_the_report_says_why(recipe: Recipe, reason: str) -> None:
    plan = make_plan(prepare(read_model(model("transpose"))), recipe)
    assert plan.ties == ()
    (note,) = [
        note for note in plan.notes if "is the weight of layer 'head' too, and the weight is in the file twice" in note
    ]
    assert reason in note


@pytest.mark.parametrize(("form", "rank"), [("gemm", 1), ("twice", 2)])
def test_small_scales_of_rows_keep_their_digits_in_half_precision(form: str, rank: int, tmp_path: Path) -> None:
    proto = model(form, rank)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-4), tensor.name))
    ids, found = feeds(rank)[0]["ids"], []
    for float16 in (False, True):
        path = tmp_path / f"{float16}.onnx"
        recipe = Recipe(activations="none", float16=float16, measure_speed=False)
        report = compress(proto, feeds(rank), recipe, path).report
        assert all(check.passed for check in report.checks)
        found.append(ort.InferenceSession(path).run(["embedded"], {"ids": ids})[0])
    # values are subnormal too, but rounded once: half a step of 2^-24
    assert np.abs(found[0] - found[1]).max() <= 2.0**-25


def test_a_table_can_be_kept_in_float(tmp_path: Path) -> None:
    recipe = Recipe(layers=(Rule(match="table", skip=True),))
    report = compress(model("transpose"), feeds(), recipe, tmp_path / "small.onnx").report
    assert report.embeddings == () and initializers(tmp_path / "small.onnx")["table"].data_type == TensorProto.FLOAT


def test_other_numbers_are_no_tie() -> None:
    other = model("twice")
    turned = next(x for x in other.graph.initializer if x.name == "turned")
    turned.CopyFrom(numpy_helper.from_array(random(WIDTH, WORDS, seed=7), "turned"))
    plan = make_plan(prepare(read_model(other)), INT4)
    assert plan.ties == () and not any("too" in note for note in plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [False, True])
def test_once_as_an_operator_of_onnxruntime_too(symmetric: bool, tmp_path: Path) -> None:
    path, recipe = tmp_path / "small.onnx", INT4.model_copy(update={"asymmetric": not symmetric})
    compress(model("twice"), feeds(), recipe, path)
    packed = tmp_path / "packed.onnx"
    compress(model("twice"), feeds(), recipe.model_copy(update={"accuracy_level": 0}), packed)
    ids = {"ids": np.array([[0, 5, 95, 5], [1, 2, 3, -1]])}
    wanted, found = (ort.InferenceSession(file).run(["embedded"], ids)[0] for file in (path, packed))
    np.testing.assert_array_equal(found, wanted)
    kinds = [node.op_type for node in onnx.load(packed).graph.node]
    assert "MatMulNBits" in kinds and "GatherBlockQuantized" in kinds and "DequantizeLinear" not in kinds
    sizes = [tensor.dims for tensor in initializers(packed).values() if np.prod(tensor.dims) == WORDS * WIDTH // 2]
    assert sizes == [[WORDS, WIDTH // 32, 16]]


@pytest.mark.slow
def test_a_budget_ties_too(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    options = SearchOptions(levels="int8,int4", database=tmp_path / "db")
    (result,) = compress_to_budget(model("twice"), feeds(), [parse_budget("size=0.3x")], [path], Recipe(), options)
    assert [table.name for table in result.report.embeddings] == ["table"]
    assert "table" not in initializers(path)
    assert not any("the budget counts" in note for note in result.report.notes)
    apart, kept = replace(options, database=tmp_path / "apart"), Recipe(layers=(Rule(match="table", skip=True),))
    (result,) = compress_to_budget(model("twice"), feeds(), [parse_budget("size=0.3x")], [path], kept, apart)
    assert not result.report.embeddings and "table" in initializers(path)
