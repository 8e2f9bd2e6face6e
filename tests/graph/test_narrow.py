"""Models in half precision, widened and narrowed, against onnxruntime and the checker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from half_models import in_half, network
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_graphs import Array, assert_same, build, random, run

from onnx_obc.graph.half import BFLOAT16, FLOAT, FLOAT16, FloatTypes, float_bytes, float_types, widen
from onnx_obc.graph.narrow import narrow, rounded

node = helper.make_node


def dtypes(model: ir.Model) -> dict[str, ir.DataType | None]:
    """The types of constants, inputs and outputs."""
    graph = model.graph
    return {str(v.name): v.dtype for v in (*graph.initializers.values(), *graph.inputs, *graph.outputs)}


def checked(model: ir.Model) -> ir.Model:
    """The model, which onnx's checker and its type inference accept."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def test_a_float32_model_has_no_types_of_its_own() -> None:
    assert float_types(ir.from_proto(network())) is None


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, FLOAT16), (TensorProto.BFLOAT16, BFLOAT16)])
@pytest.mark.parametrize("stored", [False, True])
def test_there_and_back(kind: int, dtype: ir.DataType, stored: bool) -> None:
    proto = in_half(network(opset=22), kind, stored)
    model = ir.from_proto(proto)
    types = float_types(model)
    assert types is not None and types.half == dtype
    assert (types.default, types.stored) == ((FLOAT, dtype) if stored else (dtype, None))
    before = ir.to_proto(model).SerializeToString()
    wide = checked(widen(model))
    assert ir.to_proto(model).SerializeToString() == before, "a copy"
    assert set(dtypes(wide).values()) == {FLOAT} and all(n.op_type != "Cast" for n in wide.graph)
    again = checked(narrow(wide, types))
    assert dtypes(again) == dtypes(model)
    kinds = [n.op_type for n in again.graph]
    assert sorted(kinds) == sorted(n.op_type for n in model.graph)
    for name, value in again.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), model.graph.initializers[name].const_value.numpy())


def test_a_widened_model_computes_the_same() -> None:
    proto, x = in_half(network(), TensorProto.FLOAT16), random(4, 8, 6, 6)
    (half,) = run(proto, {"x": x.astype(np.float16)})
    (wide,) = run(widen(ir.from_proto(proto)), {"x": x.astype(np.float16).astype(np.float32)})
    assert half.dtype == np.float16
    assert_same([half.astype(np.float32)], [wide], 4e-3)


@pytest.mark.parametrize("io", [FLOAT, FLOAT16])
def test_float32_to_float16(io: ir.DataType) -> None:
    model, x = ir.from_proto(network()), random(4, 8, 6, 6)
    half = checked(narrow(model, FloatTypes(FLOAT16, {"x": io, "y": io})))
    assert {v.dtype for v in half.graph.initializers.values()} == {FLOAT16}
    assert {half.graph.inputs[0].dtype, half.graph.outputs[0].dtype} == {io}
    assert (half.graph.inputs[0].name, half.graph.outputs[0].name) == ("x", "y")
    (got,), (expected,) = run(half, {"x": x.astype(io.numpy())}), run(model, {"x": x})
    assert got.dtype == io.numpy()
    assert_same([got.astype(np.float32)], [expected], 4e-3)


def test_a_node_in_float32_between_others_in_float16() -> None:
    types = FloatTypes(FLOAT16, {"x": FLOAT, "y": FLOAT}, float32=["l"])
    half = checked(narrow(ir.from_proto(network()), types))
    assert {name for name, dtype in dtypes(half).items() if dtype == FLOAT} == {"x", "y", "scale", "shift"}
    norm = next(n for n in half.graph if n.name == "norm")
    assert norm.inputs[0].producer().op_type == "Cast" and norm.outputs[0].dtype == FLOAT
    (got,), (expected,) = (run(m, {"x": random(4, 8, 6, 6)}) for m in (half, network()))
    assert_same([got], [expected], 4e-3)


def test_what_float16_cannot_hold_or_compute_stays_float32() -> None:
    nodes = [
        node("Mul", ["x", "huge"], ["a"], name="large"),
        node("Mul", ["x", "small"], ["b"], name="small"),
        node("CumSum", ["b", "axis"], ["c"], name="sum"),  # of opset 14: no float16 in its schema
        node("Add", ["a", "c"], ["y"], name="add"),
    ]
    weights: dict[str, Array] = {"huge": np.float32([1e6]), "small": np.float32([0.5]), "axis": np.int64(1)}
    model = ir.from_proto(build(nodes, {"x": (2, 3)}, {"y": (2, 3)}, weights))
    half = checked(narrow(model, FloatTypes(FLOAT16, {"x": FLOAT, "y": FLOAT})))
    wide = {n.name for n in half.graph if n.op_type != "Cast" and n.outputs[0].dtype == FLOAT}
    may = any("tensor(float16)" in c.allowed_type_strs for c in onnx.defs.get_schema("CumSum", 17).type_constraints)
    assert wide == {"large"} | ({"sum"} - ({"sum"} if may else set()))


def test_a_constant_read_in_both_types_is_there_in_both() -> None:
    nodes = [node("Mul", ["x", "w"], ["a"]), node("Mul", ["a", "w"], ["y"])]
    model = ir.from_proto(build(nodes, {"x": (2, 3)}, {"y": (2, 3)}, {"w": random(3)}))
    half = checked(narrow(model, FloatTypes(FLOAT16, {"x": FLOAT, "y": FLOAT}, float32=["y"])))
    assert {name: dtype for name, dtype in dtypes(half).items() if name.startswith("w")} == {
        "w": FLOAT,
        "w_float16": FLOAT16,
    }


def test_bodies_read_float32() -> None:
    inner = helper.make_graph(
        [node("Mul", ["h", "w"], ["t"])], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, (2, 3))]
    )
    other = helper.make_graph(
        [node("Identity", ["h"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, (2, 3))]
    )
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("ReduceSum", ["h"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["i"], then_branch=inner, else_branch=other),
        node("Neg", ["i"], ["y"]),
    ]
    model = build(nodes, {"x": (2, 3)}, {"y": (2, 3)}, {"w": random(3), "zero": np.float32(0)})
    half = checked(narrow(ir.from_proto(model), FloatTypes(FLOAT16, {"x": FLOAT16, "y": FLOAT16})))
    for x in (random(2, 3), -np.abs(random(2, 3))):
        (got,), (expected,) = run(half, {"x": x.astype(np.float16)}), run(model, {"x": x})
        assert_same([got.astype(np.float32)], [expected], 2e-3)


def quantized(scale: float) -> ir.Model:
    """A product with an int8 weight behind DequantizeLinear, of one scale a column."""
    nodes = [
        node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], axis=1),
        node("MatMul", ["x", "w"], ["y"]),
    ]
    codes = np.random.default_rng(0).integers(-127, 128, (16, 4)).astype(np.int8)
    weights: dict[str, Array] = {"codes": codes, "zero": np.zeros(4, np.int8)}
    weights["scale"] = np.float32([0.5, 0.25, 0.125, scale])
    return ir.from_proto(build(nodes, {"x": (2, 16)}, {"y": (2, 4)}, weights))


@pytest.mark.parametrize(("scale", "dtype"), [(2.0**-10, FLOAT16), (0.1, FLOAT), (2.0**-30, FLOAT)])
def test_scales_are_in_float16_only_where_it_holds_them_exactly(scale: float, dtype: ir.DataType) -> None:
    half = checked(narrow(quantized(scale), FloatTypes(FLOAT16, {"x": FLOAT16, "y": FLOAT16})))
    dequantize = next(n for n in half.graph if n.op_type == "DequantizeLinear")
    assert dequantize.inputs[1].dtype == dequantize.outputs[0].dtype == dtype
    assert half.opset_imports[""] >= 19


def test_widening_what_is_float64() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    model = build(nodes, {"x": (2, 3)}, {"y": (2, 4)}, {"w": random(3, 4).astype(np.float64)})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    wide = checked(widen(ir.from_proto(model), (ir.DataType.DOUBLE,)))
    assert set(dtypes(wide).values()) == {FLOAT}


def test_a_cast_from_an_input_to_an_output_stays() -> None:
    proto = build([node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], {"x": (2,)}, {"y": (2,)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model = ir.from_proto(proto)
    types = float_types(model)
    assert types is not None
    again = checked(narrow(widen(model), types))
    assert (again.graph.inputs[0].dtype, again.graph.outputs[0].dtype) == (FLOAT16, FLOAT)
    assert run(again, {"x": np.float16([1.5, 2])})[0].tolist() == [1.5, 2]


def test_types_without_a_half_type_say_so() -> None:
    with pytest.raises(StopIteration):
        _ = replace(FloatTypes(FLOAT, {})).half


def test_rounding_is_that_of_float16_where_onnxruntime_would_drop_it() -> None:
    nodes = [node("Add", ["x", "many"], ["a"]), node("Sub", ["a", "many"], ["y"])]
    model = ir.from_proto(build(nodes, {"x": (2, 3)}, {"y": (2, 3)}, {"many": np.float32([2000])}))
    types, x = FloatTypes(FLOAT16, {"x": FLOAT, "y": FLOAT}), np.float32([[0.3, 0.6, 0.9], [1.1, 1.4, 1.6]])
    (got,) = run(checked(rounded(model, types)), {"x": x})
    (reference,) = ReferenceEvaluator(ir.to_proto(narrow(model, types))).run(None, {"x": x})
    np.testing.assert_array_equal(got, reference)
    assert np.abs(got - x).max() > 0.1


def test_a_constant_that_is_an_output_too() -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    proto = in_half(build(nodes, {"x": (2, 3)}, {"y": (2, 4), "w": (3, 4)}, {"w": random(3, 4)}), TensorProto.FLOAT16)
    model = ir.from_proto(proto)
    types = float_types(model)
    assert types is not None
    again = checked(narrow(widen(model), types))
    assert dtypes(again) == dtypes(model)
    given = model.graph.initializers["w"].const_value
    assert given is not None
    np.testing.assert_array_equal(run(again, {"x": np.ones((2, 3), np.float16)})[1], given.numpy())


def test_float32_weights_beside_a_float16_input_are_not_in_half_precision() -> None:
    nodes = [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT), node("MatMul", ["h", "w"], ["y"])]
    proto = build(nodes, {"x": (2, 3)}, {"y": (2, 4)}, {"w": np.ones((3, 4), np.float32)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model = ir.from_proto(proto)
    types = float_types(model)
    assert types is not None and types.stored is None
    assert dtypes(narrow(widen(model), types)) == {"w": FLOAT, "x": FLOAT16, "y": FLOAT}
    assert float_bytes(widen(model)) == 4


def test_sequences_hold_float32() -> None:
    nodes = [node("SplitToSequence", ["x"], ["s"], axis=0), node("ConcatFromSequence", ["s"], ["y"], axis=0)]
    model = build(nodes, {"x": (2, 3)}, {"y": (2, 3)})
    half = checked(narrow(ir.from_proto(model), FloatTypes(FLOAT16, {"x": FLOAT16, "y": FLOAT16})))
    x = random(2, 3).astype(np.float16)
    np.testing.assert_array_equal(run(half, {"x": x})[0], x)
