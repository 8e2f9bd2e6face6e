"""Parts of a model that are trained, and rounding in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_graphs import build, random, run

pytest.importorskip("torch")

from onnx_obc.core.level import Level, parse_level
from onnx_obc.correction.reconstruction import Example, Reconstructed, Training, reconstruct, take
from onnx_obc.correction.torch_graph import check_agreement, to_torch
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.solver.baselines import uncompensated

make = onnx.helper.make_node
LEVELS = {name: parse_level(name) for name in ("int2-asym", "2:4", "2:4+int4")}


def block() -> ir.Model:
    """A residual block with biases."""
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1] * 4),
        make("Relu", ["a"], ["r"]),
        make("Conv", ["r", "w2", "b2"], ["c"], "second", pads=[1] * 4),
        make("Add", ["c", "x"], ["y"]),
    ]
    weights = {"w1": random(8, 8, 3, 3) / 8, "b1": random(8), "w2": random(8, 8, 3, 3, seed=1) / 8, "b2": random(8)}
    return ir.from_proto(build(nodes, {"x": ("N", 8, 6, 6)}, {"y": None}, weights))


def train(level: Level, steps: int = 60, shared: bool = False, threads: int = 2) -> tuple[list[Layer], Reconstructed]:
    model = block()
    layers = find_layers(model)[0]
    starts = {x.name: uncompensated(x.matrix(), level, "mse", shared) for x in layers}
    graph = to_torch(model, layers, "--effort best", ["y", "a", "c"])
    x = random(64, 8, 6, 6)
    (y,) = run(model, {"x": x})
    whole = Example({"x": x}, y, 64)
    examples = [take(whole, np.arange(start, start + 16)) for start in range(0, 64, 16)]
    dense = {layer.name: layer.matrix() for layer in layers}
    training = Training(steps, threads=threads, shared_scale=shared)
    return layers, reconstruct(graph, layers, dense, starts, examples[:3], examples[3:], training)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())
def test_the_output_comes_nearer_and_the_level_stays(level: Level) -> None:
    layers, found = train(level)
    assert found.after < 0.95 * found.before
    assert found.biases.keys() == {"b1", "b2"}
    for layer in layers:
        start, solution = uncompensated(layer.matrix(), level, "mse", False), found.solutions[layer.name]
        if start.mask is not None:
            assert np.array_equal(solution.mask, start.mask) and not solution.weights[~start.mask].any()
        if solution.grid is not None and solution.codes is not None:
            assert solution.codes.min() >= solution.grid.qmin and solution.codes.max() <= solution.grid.qmax
            assert np.array_equal(solution.weights, solution.grid.dequantize(solution.codes))
            assert np.array_equal(solution.grid.zero_point, start.grid.zero_point)  # type: ignore[union-attr]


def test_codes_beside_zeros_gain_what_floats_do_however_fine_their_grid_is() -> None:
    gains = {}
    for name in ("2:4", "2:4+int8"):
        _, result = train(parse_level(name))
        gains[name] = 1 - result.after / result.before
    assert gains["2:4"] > 0.1 and gains["2:4+int8"] > 0.9 * gains["2:4"], gains


def test_what_is_returned_has_the_error_that_is_told() -> None:
    """By onnxruntime, on the samples that were held out."""
    layers, found = train(LEVELS["int2-asym"])
    dense, model = block(), block()
    for layer in layers:
        node = next(node for node in model.graph if node.name == layer.name)
        for index, array in ((1, layer.tensor(found.solutions[layer.name].weights)), (2, None)):
            value = node.inputs[index]
            assert value is not None
            array = found.biases[str(value.name)] if array is None else array
            value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    x = random(64, 8, 6, 6)[48:]
    (wanted,), (given,) = run(dense, {"x": x}), run(model, {"x": x})
    error = float(np.square(wanted - given, dtype=np.float64).sum() / np.square(wanted, dtype=np.float64).sum())
    assert error == pytest.approx(found.after, rel=1e-4)


def test_the_result_does_not_depend_on_threads() -> None:
    (_, one), (_, two) = (train(LEVELS["int2-asym"], 20, threads=threads) for threads in (1, 2))
    assert one.after == two.after
    for name, solution in one.solutions.items():
        assert np.array_equal(solution.weights, two.solutions[name].weights)


def test_rows_that_share_a_scale_go_on_sharing_it() -> None:
    _, found = train(Level(bits=3), shared=True)
    assert found.after < found.before
    for solution in found.solutions.values():
        assert solution.grid is not None and len(np.unique(solution.grid.scale)) == 1


def test_what_does_not_help_is_undone() -> None:
    """Targets of noise: nothing that is learned from some holds on others."""
    model = block()
    layers = find_layers(model)[0]
    starts = {x.name: uncompensated(x.matrix(), LEVELS["2:4"], "mse", False) for x in layers}
    graph = to_torch(model, layers, "--effort best", ["y", "a", "c"])
    examples = [Example({"x": random(4, 8, 6, 6, seed=s)}, 1e3 * random(4, 8, 6, 6, seed=9 + s), 4) for s in (1, 2)]
    dense = {layer.name: layer.matrix() for layer in layers}
    found = reconstruct(graph, layers, dense, starts, examples[:1], examples[1:], Training(10))
    if found.after == found.before:
        assert found.solutions == starts and not found.biases
    assert found.after <= found.before


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint4", "int4", "int16"])
def test_rounded_activations_are_those_of_onnxruntime(kind: str) -> None:
    types = {"uint4": onnx.TensorProto.UINT4, "int4": onnx.TensorProto.INT4}
    zero = 0 if kind.startswith("i") else 5
    point = (
        helper.make_tensor("z", types[kind], [], [zero])
        if kind in types
        else numpy_helper.from_array(np.array(zero, kind), "z")
    )
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["d"]),
        make("Conv", ["d", "w"], ["y"], "conv"),
    ]
    scale = np.float32(1e-4 if kind == "int16" else 0.21)
    proto = build(nodes, {"x": ("N", 3, 5, 5)}, {"y": None}, {"w": random(4, 3, 1, 1), "s": scale}, 21, 10)
    proto.graph.initializer.append(point)
    model = ir.from_proto(proto)
    graph = to_torch(model, find_layers(model)[0], "--effort best", ["y"])
    check_agreement(graph, model, {"x": 3 * random(2, 3, 5, 5)}, rounded=True)
    other: Callable[[], None] = lambda: check_agreement(  # noqa: E731
        replace(graph, inputs=("x",)), _shifted(model), {"x": 3 * random(2, 3, 5, 5)}, rounded=True
    )
    with pytest.raises(Exception, match=r"disagree on its output by .* of its root mean square"):
        other()


def _shifted(model: ir.Model) -> ir.Model:
    """The same with another scale, which the comparison has to notice."""
    other = model.clone()
    value = other.graph.initializers["s"]
    value.const_value = ir.Tensor(np.float32(3) * value.const_value.numpy(), name="s")  # type: ignore[union-attr]
    return other
