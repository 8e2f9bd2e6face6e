"""Models run value by value give what they give as a whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import Array, build, random, run

from onnx_obc.runtime.session import Execution
from onnx_obc.runtime.stepper import Stepper


def branched() -> onnx.ModelProto:
    """A residual branch, a weight made of constants that two products share, and an If that looks outside."""
    body = [
        helper.make_graph(
            [helper.make_node(op, ["h", "r"], [out])],
            op,
            [],
            [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)],
        )
        for op, out in (("Add", "then"), ("Sub", "else"))
    ]
    nodes = [
        helper.make_node("Mul", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["g"]),
        helper.make_node("Add", ["g", "x"], ["s"]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["i"], then_branch=body[0], else_branch=body[1]),
        helper.make_node("Mul", ["s", "i"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "codes": np.random.default_rng(0).integers(-8, 8, (4, 4)).astype(np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.float32),
    }
    return build(nodes, {"x": ["N", 4]}, {"y": ["N", 4], "s": ["N", 4]}, weights)


FEEDS = [{"x": random(n, 4, seed=n)} for n in (3, 3, 2)]


@pytest.mark.parametrize("memory", [float("inf"), 100, 0])
def test_steps_add_up_to_the_whole(memory: float) -> None:
    proto = branched()
    stepper = Stepper(ir.from_proto(proto), FEEDS, Execution("cpu", memory=memory))
    found = [stepper.advance([name]) for name in ("h", "r", "g", "i", "y", "s")]
    for number, feed in enumerate(FEEDS):
        y, s = run(proto, feed)
        h = feed["x"] @ (0.1 * onnx.numpy_helper.to_array(proto.graph.initializer[0]))
        np.testing.assert_allclose(found[0][number]["h"], h, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[4][number]["y"], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[5][number]["s"], s, rtol=1e-5, atol=1e-6)


def test_the_rest_computes_what_is_missing() -> None:
    proto = branched()
    stepper = Stepper(ir.from_proto(proto), FEEDS, Execution("cpu"))
    stepper.advance(["r"])
    rest, feeds = stepper.rest()
    assert {value.name for value in rest.graph.inputs} == {"x", "h", "r"}
    for feed, part in zip(FEEDS, feeds, strict=True):
        for got, expected in zip(run(rest, part), run(proto, feed), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_what_nothing_reads_any_more_is_dropped() -> None:
    stepper = Stepper(ir.from_proto(branched()), FEEDS, Execution("cpu"))
    stepper.advance(["s", "i"])
    rest, feeds = stepper.rest()
    assert set(feeds[0]) == {"s", "i"}
    assert [node.op_type for node in rest.graph] == ["Mul"]
    with pytest.raises(ValueError, match="g was dropped"):
        stepper.advance(["g"])


def test_changes_between_steps_are_seen() -> None:
    proto = branched()
    model = ir.from_proto(proto)
    stepper = Stepper(model, FEEDS, Execution("cpu"))
    stepper.advance(["r"])
    stepper.update("r", lambda array: 2 * array)
    model.graph.initializers["scale"].const_value = ir.Tensor(np.array(0.3, np.float32))
    for feed, found in zip(FEEDS, stepper.advance(["s"]), strict=True):
        w = onnx.numpy_helper.to_array(proto.graph.initializer[0])
        r = 2 * np.maximum(feed["x"] @ (0.1 * w), 0)
        np.testing.assert_allclose(found["s"], r @ (0.3 * w) + feed["x"], rtol=1e-4, atol=1e-5)


def test_an_input_is_a_value_too() -> None:
    stepper = Stepper(ir.from_proto(branched()), FEEDS, Execution("cpu"))
    assert stepper.advance(["x"])[1]["x"] is FEEDS[1]["x"]


@pytest.mark.parametrize("memory", [float("inf"), 0])
def test_values_that_were_changed_are_kept_like_others(memory: float) -> None:
    model = ir.from_proto(branched())
    stepper = Stepper(model, FEEDS, Execution("cpu", 2, memory))
    stepper.advance(["h"])
    stepper.update("h", lambda h: 2 * h)
    assert all(isinstance(live["h"], np.memmap) == (memory == 0) for live in stepper._live)
    for found, feed in zip(stepper.advance(["r"]), FEEDS, strict=True):
        w = onnx.numpy_helper.to_array(branched().graph.initializer[0])
        np.testing.assert_allclose(found["r"], np.maximum(2 * feed["x"] @ (0.1 * w), 0), rtol=1e-4, atol=1e-5)


def test_what_no_node_reads_any_more_is_kept_if_told_to() -> None:
    model = ir.from_proto(branched())
    for keep in ([], ["g"]):
        stepper = Stepper(model, FEEDS)
        stepper.advance(["r"], keep)
        stepper.advance(["s"], keep)
        if keep:
            assert [feed["g"].shape for feed in stepper.advance(["g"])] == [(3, 4), (3, 4), (2, 4)]
        else:
            with pytest.raises(ValueError, match="g was dropped"):
                stepper.advance(["g"])
