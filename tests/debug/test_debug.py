"""`onnx_obc.debug_models`: what is matched, where errors enter, what a return gains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from damaged import Wounded
from digits import CALIBRATION, MODEL, small
from onnx import TensorProto, helper, numpy_helper
from small_graphs import build, random

from onnx_obc import DataOptions, ModelError, Recipe, Rule, compress, debug_models
from onnx_obc.debug.mend import gaining, recipe_text
from onnx_obc.debug.record import Debug, to_db
from onnx_obc.graph.model import read_model
from onnx_obc.runtime.session import open_session

FEW = DataOptions(samples=32)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, rounded to int8."""
    path = tmp_path_factory.mktemp("healthy") / "int8.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline"), output=path)
    return path


@pytest.fixture(scope="module")
def found(healthy: Path) -> Debug:
    return debug_models(MODEL, healthy, CALIBRATION, data=FEW)


@pytest.mark.slow
def test_every_layer_is_matched_and_has_both_errors(found: Debug) -> None:
    assert len(found.layers) == 20 and not found.equal and found.tried == 20
    for layer in found.layers:
        row = found.value_of(layer)
        assert row is not None and row.weights and row.activations and layer.form == "int8" and layer.bits == 8
        assert layer.weight is not None and layer.weight < 0.05


@pytest.mark.slow
def test_the_figures_are_those_of_the_outputs(found: Debug, healthy: Path) -> None:
    model, small_model = (open_session(read_model(path), fuse=False) for path in (MODEL, healthy))
    with np.load(CALIBRATION) as arrays:
        feed = {"image": arrays["image"][:: len(arrays["image"]) // 32][:32]}
    wanted, got = model.run(feed)["logits"], small_model.run(feed)["logits"]
    mine = debug_models(MODEL, healthy, {"image": feed["image"]})
    error = float(np.linalg.norm(wanted - got) / np.linalg.norm(wanted))
    assert mine.outputs[0].error == pytest.approx(error, rel=1e-4)
    assert mine.values[-1].error == pytest.approx(error, rel=1e-4)
    assert found.samples == 32 and found.outputs[0].name == "logits"


def test_a_return_gains_what_a_file_without_it_shows(healthy: Path) -> None:
    """The layer that is returned is as in a file that was written without it: only its own Q/DQ differ."""
    small_model = small(rows=16, columns=8, seed=3)
    data = {"x": random(64, 8, seed=1)}
    whole = compress(small_model, data, Recipe(solver="baseline", effort="fast")).model
    found = debug_models(small_model, whole, data)
    assert [row.layer for row in found.returns] == ["product"]
    assert found.returns[0].loss == pytest.approx(0, abs=1e-12) and found.returns[0].gained == pytest.approx(found.loss)


@pytest.mark.slow
def test_a_file_is_equal_to_itself() -> None:
    found = debug_models(MODEL, MODEL, CALIBRATION, data=FEW)
    assert found.equal and found.loss == 0 and not found.returns and found.first is None


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_a_damaged_layer_comes_first(healthy: Path, number: int) -> None:
    model, damage = Wounded(onnx.load(healthy)).trial(number)
    best = debug_models(MODEL, model, CALIBRATION, data=FEW).returns[0]
    assert (best.layer, best.fault) == (damage.layer, damage.fault), damage


@pytest.mark.slow
@pytest.mark.parametrize("which", ["demo", "ResNet-20"])
def test_damage_is_found_in_ten_of_ten_trials(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dense, data, options = MODEL, CALIBRATION, FEW
    if which == "ResNet-20":
        shared: Path = request.getfixturevalue("shared")
        dense, data = shared / "models/resnet20-cifar10.onnx", shared / "data/cifar10-jpeg/train5000.zip"
        options = DataOptions(samples=32, preprocess="imagenet")
    healthy = tmp_path / "healthy.onnx"
    preprocess = options.preprocess
    compress(dense, data, Recipe(), output=healthy, data=DataOptions(samples=256, preprocess=preprocess))
    wounded = Wounded(onnx.load(healthy))
    for number in range(10):
        model, damage = wounded.trial(number)
        best = debug_models(dense, model, data, data=options).returns[0]
        assert (best.layer, best.fault) == (damage.layer, damage.fault), damage


@pytest.mark.slow
def test_few_bits_return_to_int8(tmp_path: Path) -> None:
    recipe = Recipe(weights="int3", activations="none", solver="baseline", layers=(Rule(match="*Gemm*", skip=True),))
    compress(MODEL, CALIBRATION, recipe, output=tmp_path / "int3.onnx")
    found = debug_models(MODEL, tmp_path / "int3.onnx", CALIBRATION, data=FEW)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["/classifier/classifier.2/Gemm"].bits is None
    assert all(layer.bits == 3 for layer in found.layers if "Conv" in layer.name)
    assert found.returns[0].remedy == "int8" and found.returns[0].fault == "weights"
    assert all(row.activations is None for row in found.values)
    text = recipe_text(found, gaining(found, 2))
    assert "weights: int3" in text and "activations: none" in text and text.count("weights: int8") == 2
    assert "- match: /classifier/classifier.2/Gemm\n  skip: true" in text  # it is float in the file, and stays so


def test_clipping_by_the_integers_is_a_relu_that_is_not_there() -> None:
    """y = relu(x W), in which the Relu became the lower end of an unsigned range: nothing is lost by that."""
    weight = random(4, 8, seed=2)
    dense = build(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])],
        {"x": ["N", 4]}, {"y": ["N", 8]}, {"w": weight},
    )  # fmt: skip
    compressed = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["before"], name="product"),
            helper.make_node("QuantizeLinear", ["before", "s", "z"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["y"]),
        ],
        {"x": ["N", 4]}, {"y": ["N", 8]}, {"w": weight, "s": np.float32(0.05), "z": np.uint8(0)},
    )  # fmt: skip
    found = debug_models(dense, compressed, {"x": random(16, 4, seed=3)})
    rows = {row.name: row for row in found.values}
    assert rows["h"].error == 0 and rows["y"].compressed != rows["h"].compressed
    assert 20 < (to_db(found.outputs[0].error) or 0) < 60


@pytest.mark.parametrize("scale", [6 / 255, 4 / 255, 9 / 255], ids=["to 6", "clipped", "beyond"])
def test_clipping_by_the_integers_is_a_clip_at_both_ends(scale: float) -> None:
    """y = clip(x W, 0, 6) V, whose Clip became the range of unsigned integers: an error of inputs, not of weights."""
    weights = {"w": random(4, 8, seed=2) * 2, "v": random(8, 3, seed=4)}
    limits = {"low": np.float32(0), "high": np.float32(6)}
    first = helper.make_node("MatMul", ["x", "w"], ["h"], name="first")
    last = helper.make_node("MatMul", ["c", "v"], ["y"], name="last")
    clip = helper.make_node("Clip", ["h", "low", "high"], ["c"])
    dense = build([first, clip, last], {"x": ["N", 4]}, {"y": ["N", 3]}, {**weights, **limits})
    pair = [
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["c"]),
    ]
    parts = {**weights, "s": np.float32(scale), "z": np.uint8(0)}
    found = debug_models(dense, build([first, *pair, last], {"x": ["N", 4]}, {"y": ["N", 3]}, parts), _clipped_data())
    rows = {row.name: row for row in found.values}
    assert rows["h"].error == 0 and rows["y"].weights == pytest.approx(0, abs=1e-6)
    assert rows["y"].activations == pytest.approx(rows["y"].error, rel=0.05) or scale > 6 / 255
    assert found.returns[0].layer == "last" and found.returns[0].fault == "activations"


def _clipped_data() -> dict[str, np.ndarray]:
    return {"x": random(64, 4, seed=3) * 2}


@pytest.mark.slow
def test_other_names_are_matched_by_structure(healthy: Path) -> None:
    """The compressed file with every inner name replaced."""
    proto = onnx.load(healthy)
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    names: dict[str, str] = {}

    def other(name: str) -> str:
        return name if name in kept or not name else names.setdefault(name, f"t{len(names)}")

    for node in proto.graph.node:
        node.name = other(f"node {node.name}")
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
    for tensor in proto.graph.initializer:
        tensor.name = other(tensor.name)
    del proto.graph.value_info[:]
    renamed, named = (debug_models(MODEL, model, CALIBRATION, data=FEW) for model in (proto, healthy))
    assert all(layer.value is not None for layer in renamed.layers)
    assert [row.layer for row in renamed.returns] == [row.layer for row in named.returns]
    assert renamed.loss == pytest.approx(named.loss)


def test_unrelated_models_are_refused() -> None:
    with pytest.raises(ModelError, match=r"only the dense model has an input 'image'.*name the file"):
        debug_models(MODEL, small(columns=4))
    with pytest.raises(ModelError, match=r"input 'x' is float32.any, 4. in the dense model and float32.any, 6. in the"):
        debug_models(small(columns=4), small(columns=6))
    other = small(columns=4)
    other.graph.output[0].name = other.graph.node[1].output[0] = "q"
    with pytest.raises(ModelError, match="only the dense model has an output 'y'"):
        debug_models(small(columns=4), other)
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("ReduceSum", ["e", "a"], ["y"])]
    alien = build(nodes, {"x": ["N", 4]}, {"y": ["N", 1]}, {"a": np.array([1])})
    with pytest.raises(ModelError, match="no layer of the dense model has a counterpart"):
        debug_models(small(columns=4), alien)


def test_outputs_that_are_not_float_are_refused() -> None:
    proto = small(columns=4)
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["best"]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [1, 8]))
    with pytest.raises(ModelError, match=r"no output is float \(best is int64\)"):
        debug_models(proto, proto)


@pytest.mark.slow
def test_random_numbers_and_one_sample_are_said(healthy: Path) -> None:
    assert any("random numbers" in note for note in debug_models(MODEL, healthy, data=FEW).notes)
    one = debug_models(MODEL, healthy, CALIBRATION, data=DataOptions(samples=1))
    assert any("one sample" in note for note in one.notes) and len(one.worst) == 1


@pytest.mark.slow
def test_models_of_the_same_form_but_other_weights_are_told() -> None:
    other = onnx.load(MODEL)
    for tensor in other.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1:
            shuffled = np.random.default_rng(0).permutation(array.reshape(-1)).reshape(array.shape)
            tensor.CopyFrom(numpy_helper.from_array(-shuffled, tensor.name))
    notes = debug_models(MODEL, other, CALIBRATION, data=FEW).notes
    assert any("nothing in common" in note for note in notes)


def test_inputs_that_are_divided_in_front_of_a_product_have_an_error_of_their_own() -> None:
    """As scale migration and SmoothQuant leave them: what is quantized is no value of the dense model."""
    outliers = np.where(np.arange(16) % 5 == 0, 30.0, 1.0).astype(np.float32)
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Mul", ["t", "g"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["p"], name="product"),
        helper.make_node("Relu", ["p"], ["y"]),
        helper.make_node("Relu", ["h"], ["z"]),
    ]
    weights = {"g": outliers, "w": random(16, 8)}
    dense = build(nodes, {"x": ("N", 16)}, {"y": ("N", 8), "z": ("N", 16)}, weights)
    data = {"x": random(120, 16, seed=9)}
    made = compress(dense, data, Recipe(device="cpu", threads=1, measure_speed=False))
    assert made.report.corrections[0].kinds == ("scale migration",) and made.report.corrections[0].kept
    found = debug_models(dense, made.model, data)
    row = found.value_of(found.layers[0])
    assert row is not None and row.weights is not None and row.activations is not None
    assert 0 < row.weights < 0.05 and 0 < row.activations < 0.05
    assert row.error == pytest.approx(np.hypot(row.weights, row.activations), rel=0.5)


def test_channels_that_were_reordered_are_compared_in_their_order() -> None:
    w = random(32, 16) * np.where(np.arange(32) < 16, 3, 0.3).astype(np.float32)[:, None]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
    ]
    dense = build(nodes, {"x": ("N", 8)}, {"y": ("N", 16)}, {"a": random(8, 32), "w": w})
    data = {"x": random(300, 8, seed=9)}
    recipe = Recipe(device="cpu", threads=1, weights="float", sparsity="2:4", activations="none", measure_speed=False)
    made = compress(dense, data, recipe)
    assert made.report.corrections[0].kinds == ("channel permutation",) and made.report.corrections[0].kept
    found = debug_models(dense, made.model, data)
    weights = {row.name: row.weight for row in found.layers}
    assert weights["first"] is not None and weights["first"] < 0.9  # which an order of its own would not give
    assert weights["second"] is not None and weights["second"] < 0.9
    other = build(nodes, {"x": ("N", 8)}, {"y": ("N", 16)}, {"a": random(8, 24), "w": w[:24]})
    with pytest.raises(ModelError, match="reordered when the file was made"):
        debug_models(other, made.model, data)
