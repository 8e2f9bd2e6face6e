from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_graphs import build, random
from written import rounded

from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.core.errors import VerificationError
from onnx_obc.core.level import Level, parse_level
from onnx_obc.core.progress import Progress
from onnx_obc.core.solution import Solution
from onnx_obc.graph.fold import remove_unused
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.save import save_model
from onnx_obc.graph.write import Writer, WrittenWeight
from onnx_obc.pipeline.draft import Draft
from onnx_obc.pipeline.layer import LayerReport, Solved
from onnx_obc.pipeline.material import Material
from onnx_obc.pipeline.plan import Plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.pipeline.solve import Solutions
from onnx_obc.pipeline.verify import Verdict, broken_pattern, check_graph, check_losses, compare_outputs, verify
from onnx_obc.runtime.session import Execution

node = helper.make_node
X = random(6, 8, 5, 5)
SAMPLES = Samples(6, "random", lambda a, b: iter([Batch({"x": X[a:b]}, a, b - a)]))


def dense() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv"),
        node("Relu", ["a"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g", "b"], ["y"], name="gemm", transB=1),
    ]
    weights = {"w": random(8, 8, 3, 3), "g": random(3, 8), "b": random(3)}
    return build(nodes, {"x": ("n", 8, 5, 5)}, {"y": ("n", 3)}, weights)


def prune(layer: Layer) -> np.ndarray:
    """The two largest of every four along the input channels."""
    quads = layer.matrix().reshape(-1, 4)  # (quads, 4)
    smallest = np.argsort(np.abs(quads), axis=1)[:, :2]
    np.put_along_axis(quads, smallest, 0, axis=1)
    return quads.reshape(layer.groups, layer.rows, layer.columns)


def solved_at(layer: Layer, level: Level) -> Solved:
    if level.sparsity is not None:
        layer = replace(layer, weight=layer.tensor(prune(layer)))
    solution = replace(rounded(layer, level), level=level)
    return Solved(layer, solution, report_of(layer.name, 1.0, 1.0))


def report_of(name: str, predicted: float, measured: float) -> LayerReport:
    texts = {"name": name, "op": "Conv", "level": "int8", "activations": "float", "notes": ()}
    losses = {"loss_predicted": predicted, "loss_measured": measured}
    numbers = {field: 0 for field in LayerReport.__dataclass_fields__ if field not in texts and field not in losses}
    return LayerReport(**texts, **losses, **numbers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class File:
    """A written model and all that `verify` is told about it."""

    path: Path
    solved: dict[str, Solved]
    written: list[WrittenWeight]

    def verify(self, **changes: Any) -> Verdict:
        done: list[int] = []
        progress: Progress = lambda stage, now, total: done.append(now)  # noqa: E731
        material = Material("", prepare(ir.from_proto(dense())), SAMPLES, changes.get("held_out", SAMPLES), {}, ())
        plan = Plan(material.dense, (), {}, (), (), ())
        draft = Draft(Solutions(plan, {}, {}), changes.get("solved", self.solved), self.written, (), {}, ())
        verdict = verify(self.path, material, draft, Recipe(device="cpu", threads=1), progress)
        assert not verdict.outputs or sum(done) == 6
        return verdict

    def change(self, edit: Callable[[onnx.ModelProto], None]) -> None:
        proto = onnx.load(self.path)
        edit(proto)
        onnx.save(proto, self.path)

    def weight(self, name: str) -> WrittenWeight:
        return next(where for where in self.written if where.layer == name)


@pytest.fixture(params=["int8", "int8-asym", "2:4", "2:4+int8", "float"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> File:
    return write(request.param, tmp_path)


def write(level: str, folder: Path) -> File:
    model = ir.from_proto(dense())
    layers, _ = find_layers(model)
    solved = {layer.name: solved_at(layer, parse_level(level)) for layer in layers}
    writer = Writer(model)
    written = [writer.weight(entry.layer, entry.solution) for entry in solved.values()]
    remove_unused(model)
    save_model(model, folder / "m.onnx")
    return File(folder / "m.onnx", solved, written)


def failed(verdict: Verdict) -> list[str]:
    assert bool(verdict.faults) == any(not check.passed for check in verdict.checks)
    assert "\n" not in verdict.faults
    return [check.name for check in verdict.checks if not check.passed]


def test_a_good_file_passes(file: File) -> None:
    verdict = file.verify()
    assert failed(verdict) == []
    assert verdict.faults == ""
    assert [check.name for check in verdict.checks] == ["file", "weights", "patterns", "losses", "outputs"]
    (match,) = verdict.outputs
    assert match.name == "y"
    assert match.top1_agreement is not None
    level = file.solved["conv"].solution.level
    assert match.sqnr_db == inf if str(level) == "float" else match.sqnr_db > (30 if level.sparsity is None else 3)


# ------------------------------------------------ weights and patterns


def flip(tensor: onnx.TensorProto, index: int, change: Callable[[Any], Any]) -> None:
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[index] = change(array.reshape(-1)[index])
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("layer", ["conv", "gemm"])
@pytest.mark.parametrize("level", ["int8", "int8-asym"])
def test_one_wrong_integer(level: str, layer: str, tmp_path: Path) -> None:
    file = write(level, tmp_path)
    codes = file.weight(layer).codes

    def edit(proto: onnx.ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == codes)
        flip(tensor, 5, lambda code: code - 1 if code > 0 else code + 1)

    file.change(edit)
    verdict = file.verify()
    assert failed(verdict) == ["weights"]
    assert verdict.faults == f"check of the weights failed: not the solver's: {layer}"


@pytest.mark.parametrize("part", ["_scale", "_zero_point"])
def test_one_wrong_scale_or_zero_point(part: str, tmp_path: Path) -> None:
    file = write("int8", tmp_path)

    def edit(proto: onnx.ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == f"conv.weight{part}")
        flip(tensor, 2, lambda value: np.nextafter(value, np.float32(9)) if part == "_scale" else value + 1)

    file.change(edit)
    assert failed(file.verify()) == ["weights"]


def test_scales_along_the_wrong_axis(tmp_path: Path) -> None:
    file = write("int8", tmp_path)

    def edit(proto: onnx.ModelProto) -> None:
        (dequantize,) = (n for n in proto.graph.node if n.name == "conv.weight_DequantizeLinear")
        dequantize.attribute[0].i = 1

    file.change(edit)
    assert failed(file.verify()) == ["weights"]


@pytest.mark.parametrize("layer", ["conv", "gemm"])
@pytest.mark.parametrize("level", ["2:4", "2:4+int8"])
def test_a_broken_pattern(level: str, layer: str, tmp_path: Path) -> None:
    file = write(level, tmp_path)
    where = file.weight(layer)

    def edit(proto: onnx.ModelProto) -> None:
        (tensor,) = (t for t in proto.graph.initializer if t.name == (where.codes or where.name))
        zero = int(np.flatnonzero(numpy_helper.to_array(tensor).ravel() == 0)[0])
        flip(tensor, zero, lambda _: 1)

    file.change(edit)
    verdict = file.verify()
    assert failed(verdict) == ["weights", "patterns"]
    assert f"{layer}: 3 of 4 weights are not zero, 2 allowed" in verdict.faults


def test_a_solution_without_the_pattern_that_it_promises(tmp_path: Path) -> None:
    file = write("int8", tmp_path)
    promised = replace(file.solved["gemm"].solution, level=parse_level("2:4+int8"))
    verdict = file.verify(solved=file.solved | {"gemm": replace(file.solved["gemm"], solution=promised)})
    assert failed(verdict) == ["patterns"]


def layer_and_solution(op: onnx.NodeProto, x: tuple[int, ...], weight: Any, level: str) -> tuple[Layer, Solution]:
    model = ir.from_proto(build([op], {"x": x}, {"y": None}, {"w": weight}))
    ((layer,), _) = find_layers(model)
    return layer, Solution(parse_level(level), layer.matrix(), None, None, None, 0.0)


CHANNELS = {  # node, input, weight, the axis of its input channels
    "conv": (node("Conv", ["x", "w"], ["y"]), (1, 8, 4, 4), (8, 8, 4, 4), 1),
    "grouped": (node("Conv", ["x", "w"], ["y"], group=2), (1, 16, 4, 4), (8, 8, 4, 4), 1),
    "transposed": (node("ConvTranspose", ["x", "w"], ["y"]), (1, 8, 4, 4), (8, 8, 4, 4), 0),
    "transposed grouped": (node("ConvTranspose", ["x", "w"], ["y"], group=2), (1, 8, 4, 4), (8, 8, 4, 4), 0),
    "matmul": (node("MatMul", ["x", "w"], ["y"]), (1, 8), (8, 8), 0),
    "matmul batched": (node("MatMul", ["x", "w"], ["y"]), (4, 1, 8), (4, 8, 8), 1),
    "matmul left": (node("MatMul", ["w", "x"], ["y"]), (8, 1), (8, 8), 1),
    "gemm": (node("Gemm", ["x", "w"], ["y"]), (1, 8), (8, 8), 0),
    "gemm transB": (node("Gemm", ["x", "w"], ["y"], transB=1), (1, 8), (8, 8), 1),
    "gemm left": (node("Gemm", ["w", "x"], ["y"]), (8, 1), (8, 8), 1),
    "gemm left transA": (node("Gemm", ["w", "x"], ["y"], transA=1), (8, 1), (8, 8), 0),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_patterns_lie_along_the_input_channels(name: str) -> None:
    op, x, shape, channels = CHANNELS[name]
    for axis in range(len(shape)):
        keep = np.arange(shape[axis]) % 4 < 2
        weight = np.moveaxis(np.moveaxis(np.ones(shape, np.float32), axis, -1) * keep, -1, axis).astype(np.float32)
        layer, solution = layer_and_solution(op, x, np.ascontiguousarray(weight), "2:4")
        fault = broken_pattern(weight, layer, solution)
        assert fault == (None if axis == channels else "4 of 4 weights are not zero, 2 allowed")
        assert broken_pattern(layer.tensor(prune(layer)), layer, solution) is None


@pytest.mark.parametrize(
    ("level", "zeros", "fault"),
    [
        ("sparse-0.50", 32, None),
        ("sparse-0.50", 40, None),
        ("sparse-0.50", 31, "1 of 64 zeros are missing"),
        ("block4-0.50", 32, None),
        ("block4-0.50", 31, "1 of 16 zeros are missing"),
        ("float", 0, None),
        ("int8", 0, None),
    ],
)
def test_counted_patterns(level: str, zeros: int, fault: str | None) -> None:
    weight = np.ones(64, np.float32)
    weight[:zeros] = 0
    weight = weight.reshape(8, 8)
    layer, solution = layer_and_solution(node("MatMul", ["w", "x"], ["y"]), (8, 1), weight, level)
    assert broken_pattern(weight, layer, solution) == fault


# ------------------------------------------------ losses


@pytest.mark.parametrize(
    ("predicted", "measured", "passed"),
    [
        (1.0, 1.0, True),
        (1.0, 1.00005, True),
        (1.0, 1.001, False),
        (1.001, 1.0, False),
        (0.0, 0.0, True),
        (0.0, 1e-3, False),
        (1e-3, 0.0, False),
        (np.nan, 1.0, False),
        (1.0, np.nan, False),
        (np.inf, 1.0, False),
    ],
)
def test_losses(predicted: float, measured: float, passed: bool, tmp_path: Path) -> None:
    check = check_losses([report_of("fine", 1.0, 1.0), report_of("doubtful", predicted, measured)])
    assert check.passed == passed
    assert passed or check.detail.startswith("doubtful: predicted ")
    file = write("int8", tmp_path)
    entry = replace(file.solved["conv"], report=report_of("conv", predicted, measured))
    assert failed(file.verify(solved=file.solved | {"conv": entry})) == ([] if passed else ["losses"])


# ------------------------------------------------ the file and its outputs


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    file = write("int8", tmp_path)
    file.path.write_bytes(file.path.read_bytes()[:-50])
    verdict = file.verify()
    assert failed(verdict) == ["file"]
    assert verdict.outputs == ()


def test_a_file_that_is_not_valid(tmp_path: Path) -> None:
    file = write("int8", tmp_path)
    file.change(lambda proto: proto.graph.node[0].input.append("nothing"))
    assert failed(file.verify()) == ["file"]


def test_outputs_that_are_nan(tmp_path: Path) -> None:
    file = write("int8", tmp_path)

    def edit(proto: onnx.ModelProto) -> None:
        (bias,) = (t for t in proto.graph.initializer if t.name == "b")
        flip(bias, 1, lambda _: np.nan)

    file.change(edit)
    verdict = file.verify()
    assert failed(verdict) == ["outputs"]
    assert "y holds NaN or infinity where the dense model does not" in verdict.faults


def test_a_layer_that_reads_another_weight(tmp_path: Path) -> None:
    file = write("float", tmp_path)

    def edit(proto: onnx.ModelProto) -> None:
        copy = next(t for t in proto.graph.initializer if t.name == file.weight("conv").name)
        proto.graph.initializer.append(copy)
        proto.graph.initializer[-1].name = "another"
        next(n for n in proto.graph.node if n.op_type == "Conv").input[1] = "another"

    file.change(edit)
    verdict = file.verify()
    assert failed(verdict) == ["weights"]
    assert "not what the layer reads: conv" in verdict.faults


def test_a_graph_that_computes_something_else() -> None:
    recipe = Recipe(device="cpu", threads=1)
    model = ir.from_proto(dense())
    assert check_graph(model, ir.from_proto(dense()), SAMPLES, recipe).passed
    other = dense()
    next(t for t in other.graph.initializer if t.name == "b").raw_data = (2 * random(3)).tobytes()
    with pytest.raises(VerificationError, match="no longer computes what the model does"):
        check_graph(model, ir.from_proto(other), SAMPLES, recipe)


def test_a_graph_that_draws_random_numbers() -> None:
    def noisy(seed: float) -> ir.Model:
        nodes = [node("RandomNormalLike", ["x"], ["r"], seed=seed), node("MatMul", ["r", "w"], ["y"])]
        return ir.from_proto(build(nodes, {"x": ("n", 4)}, {"y": ("n", 3)}, {"w": random(4, 3)}))

    x = random(4, 4)
    samples = Samples(4, "", lambda a, b: iter([Batch({"x": x[a:b]}, a, b - a)]))
    check = check_graph(noisy(1.0), noisy(2.0), samples, Recipe(device="cpu", threads=1))
    assert check.passed
    assert "random" in check.detail


def test_outputs_that_are_no_numbers(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("Cast", ["y"], ["s"], to=onnx.TensorProto.STRING)]
    proto = build(nodes, {"x": ("n", 4)}, {"y": ("n", 3), "s": ("n", 3)}, {"w": random(4, 3)})
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.STRING
    onnx.save(proto, tmp_path / "m.onnx")
    x = random(4, 4)
    samples = Samples(4, "", lambda a, b: iter([Batch({"x": x[a:b]}, a, b - a)]))
    matches, _, check = compare_outputs(ir.from_proto(proto), tmp_path / "m.onnx", samples, Execution("cpu", 1))
    assert [match.name for match in matches] == ["y"]
    assert check.passed
    assert "not compared: s" in check.detail


def replaced_end(kind: str, **attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.node[-1].output[0] = "before"
        proto.graph.node.append(node(kind, ["before"], ["y"], **attributes))
        dtype = attributes.get("to", onnx.TensorProto.FLOAT)
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", dtype, ["k", "m"]))

    return edit


def test_an_output_of_another_shape(tmp_path: Path) -> None:
    file = write("int8", tmp_path)
    file.change(replaced_end("Transpose"))
    verdict = file.verify()
    assert failed(verdict) == ["weights", "outputs"]  # the output no longer comes from the layer that it came from
    assert "y is float32[3, 6], not float32[6, 3]" in verdict.faults


def test_an_output_of_another_type(tmp_path: Path) -> None:
    file = write("int8", tmp_path)
    file.change(replaced_end("Cast", to=onnx.TensorProto.DOUBLE))
    assert "y is float64[6, 3], not float32[6, 3]" in file.verify().faults


def two_models(end: list[onnx.NodeProto], changed: list[onnx.NodeProto], folder: Path) -> tuple[ir.Model, Path]:
    first, second = (build(nodes, {"x": ("n", 4)}, {"y": None}, {"w": random(4, 3)}) for nodes in (end, changed))
    for proto in (first, second):
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", "m"]))
    onnx.save(second, folder / "m.onnx")
    return ir.from_proto(first), folder / "m.onnx"


def test_noise_and_agreement_over_all_batches(tmp_path: Path) -> None:
    x = random(9, 4)
    samples = Samples(9, "", lambda a, b: (Batch({"x": x[i : i + 2]}, i, len(x[i : i + 2])) for i in range(a, b, 2)))
    scores = [node("MatMul", ["x", "w"], ["y"])]
    rough = [node("Round", ["x"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model, path = two_models(scores, rough, tmp_path)
    (match,), _, check = compare_outputs(model, path, samples, Execution("cpu", 1))
    assert check.passed
    y, z = (v.astype(np.float64) @ random(4, 3) for v in (x, np.rint(x)))
    assert match.sqnr_db == pytest.approx(10 * np.log10((y**2).sum() / ((y - z) ** 2).sum()), rel=1e-5)
    assert match.top1_agreement == pytest.approx((y.argmax(1) == z.argmax(1)).mean())
    assert match.top1_agreement < 1


def test_what_is_no_class_score_has_no_agreement(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]
    model, path = two_models(nodes, nodes, tmp_path)
    x = random(4, 4)
    samples = Samples(4, "", lambda a, b: iter([Batch({"x": x[a:b]}, a, b - a)]))
    (match,), _, check = compare_outputs(model, path, samples, Execution("cpu", 1))
    assert check.passed
    assert match.top1_agreement is None
    assert match.sqnr_db == inf


def test_infinity_that_the_dense_model_has_too(tmp_path: Path) -> None:
    nodes = [node("Reciprocal", ["x"], ["h"]), node("Relu", ["h"], ["y"])]
    model, path = two_models(nodes, nodes, tmp_path)
    x = np.array([[0, 1, 2, 4]], np.float32)
    samples = Samples(1, "", lambda a, b: iter([Batch({"x": x}, 0, 1)]))
    (match,), _, check = compare_outputs(model, path, samples, Execution("cpu", 1))
    assert check.passed
    assert match.sqnr_db == inf and match.not_finite == ("sample 0",)


@pytest.mark.parametrize(("bad", "noted"), [(np.inf, True), (np.nan, True), (-np.inf, False)])
def test_samples_without_finite_outputs_are_told_from_masks(bad: float, noted: bool, tmp_path: Path) -> None:
    nodes = [node("Identity", ["x"], ["y"])]
    model, path = two_models(nodes, nodes, tmp_path)
    x = random(6, 4)
    x[4, 1] = bad
    samples = Samples(6, "", lambda a, b: (Batch({"x": x[i : i + 3]}, i, 3) for i in range(a, b, 3)))
    (match,), _, _ = compare_outputs(model, path, samples, Execution("cpu", 1))
    assert match.not_finite == (("sample 4",) if noted else ())
    x[4] = bad
    (match,), _, _ = compare_outputs(model, path, samples, Execution("cpu", 1))
    assert match.not_finite == ("sample 4",)
