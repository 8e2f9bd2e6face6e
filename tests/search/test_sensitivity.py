"""Sensitivities equal those of whole models with one layer replaced, at a fraction of the runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper
from small_graphs import Array, build, random

from onnx_obc.calibration.samples import Batch
from onnx_obc.core.arrays import Feed, Float32
from onnx_obc.core.errors import CalibrationError, ModelError
from onnx_obc.core.level import Choice, parse_choice
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.write import activation_grid
from onnx_obc.runtime.output_loss import OutputLoss, class_scores
from onnx_obc.runtime.session import Execution, open_session
from onnx_obc.runtime.stepper import Stepper
from onnx_obc.search import sensitivity
from onnx_obc.search.sensitivity import Candidates, Span, output_sensitivity, task_sensitivity

CHOICES = [parse_choice(text) for text in ("float", "int4", "sparse-0.50", "8w8a")]


def residual() -> onnx.ModelProto:
    """Three products with a residual branch and a second output that is known before the last of them."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["g"], name="b"),
        helper.make_node("Sigmoid", ["r"], ["early"]),
        helper.make_node("Add", ["g", "r"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "c"], ["y"], name="c"),
    ]
    weights = {name: random(6, 6, seed=ord(name)) for name in "abc"}
    return build(nodes, {"x": ["N", 6]}, {"y": ["N", 6], "early": ["N", 6]}, weights)


def weight(layer: Layer, choice: Choice) -> Float32:
    """Something like the level: rounded coarsely, or with the smaller half zero."""
    matrix = layer.matrix()
    if choice.level.bits is not None:
        step = np.abs(matrix).max() / 2 ** (choice.level.bits - 1)
        return (np.rint(matrix / step) * step).astype(np.float32)
    return np.where(np.abs(matrix) > np.median(np.abs(matrix)), matrix, np.float32(0))


def setting(model: ir.Model, batches: list[Batch]) -> tuple[list[Layer], Candidates, Span]:
    layers, _ = find_layers(model)
    found = {x.name: [(c, lambda x=x, c=c: weight(x, c)) for c in CHOICES] for x in layers}
    names = sorted({use.tap.value for layer in layers for use in layer.uses})
    seen = open_session(model, names, "cpu").run(batches[0].feed)

    def span(value: str, bits: int) -> tuple[float, float, bool]:
        return min(0.0, float(seen[value].min())), max(0.0, float(seen[value].max())), False

    return layers, found, span


def naive(model: ir.Model, layer: Layer, choice: Choice, batches: list[Batch], span: Span) -> float:
    """The whole model with the layer's weight written into it, and its input behind nodes that quantize it."""
    changed = model.clone()
    use = next(u for x in find_layers(changed)[0] if x.name == layer.name for u in x.uses)
    tensor = ir.Tensor(layer.tensor(weight(layer, choice)), name="new")
    value = ir.Value(name="new", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    changed.graph.register_initializer(value)
    use.node.replace_input_with(use.index, value)
    if choice.activation_bits is not None:
        scale, zero = activation_grid(*span(use.tap.value, 8)[:2], 8, False)
        parts: list[Array] = [np.array(scale, np.float32), np.array(zero, np.uint8)]
        constants = []
        for name, array in zip(("s", "z"), parts, strict=True):
            constant = ir.Value(name=f"new_{name}", type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
            constant.const_value = ir.Tensor(array, name=constant.name)
            changed.graph.register_initializer(constant)
            constants.append(constant)
        source = use.node.inputs[1 - use.index]
        assert source is not None
        quantize = ir.node("QuantizeLinear", [source, *constants])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *constants])
        quantize.outputs[0].name, dequantize.outputs[0].name = "new_q", "new_d"
        changed.graph.insert_before(use.node, [quantize, dequantize])
        use.node.replace_input_with(1 - use.index, dequantize.outputs[0])
    dense, session = open_session(model, device="cpu"), open_session(changed, device="cpu")
    total = OutputLoss(class_scores(model))
    for batch in batches:
        total.add(dense.run(batch.feed), session.run(batch.feed))
    return total.value


def digits() -> tuple[ir.Model, list[Batch]]:
    model, _ = fold(ir.from_proto(onnx.load(MODEL)))
    with np.load(CALIBRATION) as arrays:
        image = arrays["image"][:24]
    return model, [Batch({"image": image[:16]}, 0, 16), Batch({"image": image[16:]}, 16, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["residual", "digits"])
def test_they_are_those_of_whole_models(which: str) -> None:
    if which == "digits":
        model, batches = digits()
    else:
        model, batches = ir.from_proto(residual()), [Batch({"x": random(n, 6, seed=n)}, 0, n) for n in (5, 5, 3)]
    layers, candidates, span = setting(model, batches)
    done = []
    found = output_sensitivity(
        model, layers, candidates, batches, span, execution=Execution("cpu"), progress=done.append
    )
    assert list(found) == [layer.name for layer in layers] and sum(done) == 3 * len(layers)
    for layer in layers if which == "residual" else layers[::6]:
        assert found[layer.name][0] == 0
        for choice, loss in zip(CHOICES[1:], found[layer.name][1:], strict=True):
            assert loss == pytest.approx(naive(model, layer, choice, batches, span), rel=1e-4, abs=1e-9)
            assert loss > 0


def test_little_memory_changes_nothing() -> None:
    model, batches = ir.from_proto(residual()), [Batch({"x": random(n, 6, seed=n)}, 0, n) for n in (5, 3)]
    layers, candidates, span = setting(model, batches)
    found = [
        output_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu", memory=m))
        for m in (0, 1e9)
    ]
    assert found[0] == found[1]


def test_every_layer_has_one_session_and_what_precedes_it_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counted(model: ir.Model, *args: object, **more: object) -> object:
        opened.append(len(list(model.graph)))
        return open_session(model, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity, "open_session", counted)
    model, batches = ir.from_proto(residual()), [Batch({"x": random(4, 6)}, 0, 4)]
    layers, candidates, span = setting(model, batches)
    output_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu"))
    assert opened == [7, 7, 4, 1]  # the dense model, then each layer with what depends on it


def test_a_weight_of_two_uses_is_replaced_in_both() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    model = ir.from_proto(build(nodes, {"x": ["N", 6]}, {"y": ["N", 6]}, {"w": random(6, 6)}))
    batches = [Batch({"x": random(8, 6, seed=3)}, 0, 8)]
    (layer,), candidates, span = setting(model, batches)
    (losses,) = output_sensitivity(model, [layer], candidates, batches, span, execution=Execution("cpu")).values()
    w, x = weight(layer, CHOICES[1])[0].T, batches[0].feed["x"]
    total = OutputLoss(["y"])
    total.add({"y": np.maximum(x @ layer.weight, 0) @ layer.weight}, {"y": np.maximum(x @ w, 0) @ w})
    assert losses[1] == pytest.approx(total.value, rel=1e-3)


def test_a_cut_that_does_not_separate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = ir.from_proto(residual()), [Batch({"x": random(4, 6)}, 0, 4)]
    layers, candidates, span = setting(model, batches)
    whole = Stepper.rest

    def torn(stepper: Stepper) -> tuple[ir.Model, list[Feed]]:
        part, feeds = whole(stepper)
        return part, [{name: array + 1 if name == "r" else array for name, array in feed.items()} for feed in feeds]

    monkeypatch.setattr(Stepper, "rest", torn)
    with pytest.raises(ModelError, match=r"follows layer 'b' gives another y on its own .* --sensitivity layer"):
        output_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu"))


def test_a_sequence_across_the_cut_is_refused() -> None:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["pair"]),
        helper.make_node("SequenceAt", ["pair", "zero"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["g"], name="product"),
        helper.make_node("SequenceInsert", ["pair", "g"], ["three"]),
        helper.make_node("ConcatFromSequence", ["three"], ["y"], axis=0),
    ]
    weights: dict[str, Array] = {"w": random(6, 6), "zero": np.array(0, np.int64)}
    model = ir.from_proto(build(nodes, {"x": ["N", 6]}, {"y": ["M", 6]}, weights))
    batches = [Batch({"x": random(4, 6)}, 0, 4)]
    layers, candidates, span = setting(model, batches)
    with pytest.raises(ModelError, match=r"layer 'product': pair is not a tensor.*; or use --sensitivity layer"):
        output_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu"))


def test_tasks() -> None:
    model, batches = digits()
    with np.load(CALIBRATION) as arrays:
        assert set(arrays) == {"image"}
    layers, candidates, span = setting(model, batches)
    layers = layers[1:3]
    candidates = {layer.name: candidates[layer.name] for layer in layers}
    dense = open_session(model, device="cpu")
    labelled = [Batch(b.feed, b.first, b.count, next(iter(dense.run(b.feed).values())).argmax(1)) for b in batches]
    found = task_sensitivity(model, layers, candidates, labelled, span, execution=Execution("cpu"))
    for values in found.values():
        assert values[0] == 0 and values[1] > 10 * abs(values[3])  # int4 hurts the labels more than 8w8a

    def first_score(outputs: dict[str, Array], labels: Array | None) -> float:
        assert labels is None
        return float(next(iter(outputs.values()))[:, 0].mean())

    own = task_sensitivity(model, layers, candidates, batches, span, task=first_score, execution=Execution("cpu"))
    outputs = output_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu"))
    assert own.keys() == outputs.keys() and any(value != 0 for value in own[layers[0].name][1:])
    with pytest.raises(CalibrationError, match="the data has no labels"):
        task_sensitivity(model, layers, candidates, batches, span, execution=Execution("cpu"))
    with pytest.raises(CalibrationError, match="--task raised ZeroDivisionError"):
        task_sensitivity(model, layers, candidates, batches, span, task=lambda o, y: 1 / 0, execution=Execution("cpu"))
