from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
from digits import MODEL, build, small, text_like
from onnx import TensorProto, helper, numpy_helper

from onnx_obc import Recipe, RecipeError
from onnx_obc.core.level import NM, Choice, Level
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import Plan, make_plan, prepare
from onnx_obc.pipeline.recipe import Rule


def plan(model: onnx.ModelProto, recipe: Recipe) -> Plan:
    return make_plan(prepare(read_model(model)), recipe)


def test_a_plan_names_what_every_layer_becomes() -> None:
    found = plan(text_like(), Recipe(layers=(Rule(match="*up", sparsity="2:4"),)))
    assert [layer.name for layer in found.layers] == ["block/up", "block/down"]
    assert dict(found.choices) == {
        "block/up": Choice(Level(NM(2, 4), 8), 8),
        "block/down": Choice(Level(bits=8), 8),
    }
    assert found.embeddings == () and found.left_out == ()
    assert {activation.value for activation in found.activations} == {"e", "r"}


@pytest.mark.parametrize(
    ("recipe", "opset"),
    [
        (Recipe(), 17),
        (Recipe(weights="int4", activations="none"), 21),
        (Recipe(weights="int3", activations="none"), 21),
        (Recipe(weights="int2", activations="none"), 25),
        (Recipe(weights="int4", activations="int4"), 21),
        (Recipe(weights="float", sparsity="2:4"), 17),
        (Recipe(embeddings="int4"), 21),
    ],
)
def test_the_opset_is_raised_only_as_far_as_needed(recipe: Recipe, opset: int) -> None:
    found = plan(text_like(), recipe)
    assert found.model.opset_imports[""] == opset
    noted = [note for note in found.notes if note.startswith("opset raised from 17")]
    assert len(noted) == (opset > 17)
    assert {node for layer in found.layers for node in (use.node for use in layer.uses)} <= set(found.model.graph)


def test_the_source_stays_as_it_is() -> None:
    model = read_model(MODEL)
    before = [node.op_type for node in model.graph]
    make_plan(prepare(model), Recipe(weights="int4"))
    assert [node.op_type for node in model.graph] == before and "BatchNormalization" in before
    assert model.opset_imports[""] == 17


def test_what_the_target_refuses_is_left_out() -> None:
    recipe = Recipe(target="tensorrt", layers=(Rule(match="*up", weights="int4"),))
    found = plan(text_like(), recipe)
    assert [layer.name for layer in found.layers] == ["block/down"]
    assert [(x.name, x.op) for x in found.left_out] == [("block/up", "MatMul")]
    assert "int4" in found.left_out[0].reason


@pytest.mark.slow
def test_a_layer_that_cannot_take_the_pattern_becomes_integers_without_it() -> None:
    model = read_model(MODEL)
    found = make_plan(prepare(model), Recipe(sparsity="2:4", weights="int4"))
    sparse = {name for name, choice in found.choices.items() if choice.level.sparsity is not None}
    plain = {name: choice for name, choice in found.choices.items() if name not in sparse}
    assert (len(sparse), len(plain), found.left_out) == (15, 5, ())
    assert {str(choice) for choice in plain.values()} == {"4w8a-asym"}
    assert {found.remarks[name] for name in plain} == {
        "2:4: C/groups = 1 is not a multiple of 4: quantized without zeros"
    }
    assert not sparse & found.remarks.keys()
    strict = make_plan(prepare(model), Recipe(sparsity="2:4", weights="int4", strict_pattern=True))
    assert strict.choices.keys() == sparse
    assert {entry.reason for entry in strict.left_out} == {"2:4: C/groups = 1 is not a multiple of 4"}
    floats = make_plan(prepare(model), Recipe(sparsity="2:4", weights="float"))
    assert floats.choices.keys() == sparse  # there is nothing else that they could become


def test_a_pattern_that_no_layer_can_take_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no layer can take the sparsity \(2:3: the number of columns = 4 is not"):
        plan(small(), Recipe(sparsity="2:3"))


def test_a_profile_is_taken_as_it_is() -> None:
    model, wanted = read_model(MODEL), Choice(Level(NM(2, 4), 8), 8)
    names = make_plan(prepare(model), Recipe()).choices
    found = make_plan(prepare(model), Recipe(), dict.fromkeys(names, wanted))
    assert len(found.choices) == 15 and set(found.choices.values()) == {wanted}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(weights="float"), "float, as the recipe says"),
        (Recipe(sparsity="2:3", weights="float"), "2:3: the number of columns = 4 is not a multiple of 3"),
        (Recipe(layers=(Rule(match="*", skip=True),)), "skipped, as the recipe says"),
        (Recipe(target="tensorrt", asymmetric=True), "TensorRT takes symmetric weights only; leave out --asymmetric"),
    ],
)
def test_nothing_left_to_do_is_an_error_that_says_why(recipe: Recipe, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(small(), recipe)
    assert message in str(caught.value) and "onnx-obc inspect" in str(caught.value)


def test_a_model_without_a_layer() -> None:
    x = {"x": (TensorProto.FLOAT, ["N", 4])}
    relu = build([helper.make_node("Relu", ["x"], ["y"])], x, {"y": ["N", 4]}, {})
    with pytest.raises(RecipeError, match="no Conv, ConvTranspose, MatMul or Gemm with a constant weight"):
        plan(relu, Recipe())


def test_tables_alone_are_enough_to_do() -> None:
    found = plan(text_like(), Recipe(weights="float", embeddings="int8"))
    assert found.layers == () and [x.name for x in found.embeddings] == ["table"]
    with pytest.raises(RecipeError, match="TensorRT cannot look up integers; use --embeddings float"):
        plan(text_like(), Recipe(embeddings="int8", target="tensorrt"))


@pytest.mark.parametrize(
    ("width", "bits", "bad", "reason"),
    [
        (37, "int4", None, "37 columns do not divide into blocks of 8 to 32, which share a scale"),
        (35, "int4", None, "35 columns do not divide"),
        (37, "int8", None, None),
        (33, "int4", None, None),
        (24, "int4", None, None),
        (40, "int4", None, None),
        (32, "int8", np.inf, "NaN or infinity in the table"),
        (32, "int4", np.nan, "NaN or infinity in the table"),
    ],
)
def test_tables_that_stay_float(
    width: int, bits: Literal["int8", "int4"], bad: float | None, reason: str | None
) -> None:
    model = text_like(width=width)
    (index,) = [i for i, weight in enumerate(model.graph.initializer) if weight.name == "table"]
    if bad is not None:
        table = onnx.numpy_helper.to_array(model.graph.initializer[index]).copy()
        table[3, 5] = bad
        model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    found = plan(model, Recipe(embeddings=bits, weights="int4", activations="none"))
    assert [x.name for x in found.embeddings] == (["table"] if reason is None else [])
    assert [(x.name, x.op) for x in found.left_out] == ([] if reason is None else [("table", "Gather")])
    assert reason is None or reason in found.left_out[0].reason
    if reason is not None:
        with pytest.raises(RecipeError, match=reason):
            plan(model, Recipe(embeddings=bits, layers=(Rule(match="*", skip=True),)))


def test_rules_that_match_nothing_are_refused() -> None:
    for rule in (Rule(match="prodcut", skip=True), Rule(match="*prodcut*", weights="int4")):
        with pytest.raises(
            RecipeError, match=r"a rule of the recipe: '\*?prodcut\*?' matches no layer; did you mean 'prod"
        ):
            plan(small(), Recipe(layers=(rule,)))
    with pytest.raises(RecipeError, match="'x' matches no layer; see onnx-obc inspect for the names"):
        plan(text_like(), Recipe(layers=(Rule(match="block/down", skip=True), Rule(match="x", skip=True))))


def test_a_name_with_brackets_matches_itself() -> None:
    model = text_like()
    model.graph.node[1].name = name = "Net/Sequential[block]/Linear[0]"
    found = plan(model, Recipe(layers=(Rule(match=name, skip=True),)))
    assert list(found.choices) == ["block/down"]
    assert (
        Rule(match="[ab]").matches("a") and not Rule(match="[ab]").matches("c") and Rule(match="[ab]").matches("[ab]")
    )


def test_what_stays_float_anyway_may_be_skipped_by_name() -> None:
    model = text_like()
    extra = numpy_helper.from_array(np.ones((5, 5), np.float64), "double")
    model.graph.initializer.append(extra)
    model.graph.node.append(helper.make_node("MatMul", ["scores64", "double"], ["z"], name="left"))
    model.graph.node.insert(-1, helper.make_node("Cast", ["scores"], ["scores64"], to=TensorProto.DOUBLE))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.DOUBLE, ["N", 5]))
    assert "left" in [entry.name for entry in plan(model, Recipe()).left_out]
    plan(model, Recipe(layers=(Rule(match="left", skip=True),)))
    with pytest.raises(RecipeError, match="'left' matches no layer"):
        plan(model, Recipe(layers=(Rule(match="left", weights="int4"),)))


def test_remarks_say_why_an_input_stays_float() -> None:
    weight = np.ones((3, 4, 2, 2), np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    model = build([node], {"x": (TensorProto.FLOAT, ["N", 3, 5, 5])}, {"y": ["N", 4, 6, 6]}, {"w": weight})
    found = plan(model, Recipe())
    assert found.choices["up"].activation_bits is None
    assert "no integer ConvTranspose" in found.remarks["up"]


@pytest.mark.parametrize(
    ("node", "x", "shape"),
    [
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="l", group=4), ["N", 4, 6, 6], (4, 2, 1, 1)),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="l"), ["N", 3, 4, 1], (3, 1, 5)),
    ],
)
def test_rows_that_no_dequantize_linear_tells_apart_are_left_out(
    node: onnx.NodeProto, x: list[int | str], shape: tuple[int, ...]
) -> None:
    weights = {"w": np.ones(shape, np.float32), "v": np.ones((6, 5), np.float32)}
    nodes = [node, helper.make_node("MatMul", ["x2", "v"], ["y2"], name="other")]
    inputs = {"x": (TensorProto.FLOAT, x), "x2": (TensorProto.FLOAT, ["N", 6])}
    found = plan(build(nodes, inputs, {"y": ["N", *x[1:]], "y2": ["N", 5]}, weights), Recipe())
    assert [layer.name for layer in found.layers] == ["other"]
    (left,) = found.left_out
    assert left.name == "l" and "no DequantizeLinear can give each of its rows" in left.reason
    pruned = plan(
        build([node], {"x": inputs["x"]}, {"y": ["N", *x[1:]]}, {"w": weights["w"]}),
        Recipe(weights="float", sparsity="0.5"),
    )
    assert [layer.name for layer in pruned.layers] == ["l"]


def test_readers_of_one_value_each_see_it_at_their_own_width() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="narrow"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="wide"),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "u"], ["c"], name="alone"),
    ]
    weights = {name: np.ones((6, 6), np.float32) for name in "vwu"}
    outputs: dict[str, list[int | str]] = {"b": ["N", 6], "c": ["N", 6]}
    model = build(nodes, {"x": (TensorProto.FLOAT, ["N", 6])}, outputs, weights)
    rule = Rule(match="wide", weights="int8", activations="int8")
    found = plan(model, Recipe(weights="int4", activations="int4", layers=(rule,)))
    assert {name: choice.activation_bits for name, choice in found.choices.items()} == {
        "narrow": 4,
        "wide": 8,
        "alone": 4,
    }
    assert [(a.value, a.bits, len(a.readers)) for a in found.activations] == [("x", 4, 1), ("x", 8, 1), ("t", 4, 1)]
    assert found.remarks == {}


def test_a_weight_that_is_copied_is_no_pattern_that_is_left_out() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)}
    found = plan(
        build(nodes, {"x": (TensorProto.FLOAT, ["N", 32])}, {"y": ["N", 32]}, weights),
        Recipe(weights="int4", activations="none"),
    )
    assert [str(choice) for choice in found.choices.values()] == ["int4-asym"]
    assert not found.remarks
