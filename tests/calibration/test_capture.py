from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import build, random, run
from threadpoolctl import threadpool_limits

from onnx_obc.calibration import capture as capturing
from onnx_obc.calibration.capture import MAPPED, Chunk, capture, plan_chunks, probe
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.hessian import held_bytes
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.calibration.unfold import pick_positions
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import InputSpec
from onnx_obc.runtime.session import Execution

node = helper.make_node


def network(batch: int | str = "n") -> onnx.ModelProto:
    """Conv, depthwise Conv, global product: layers of several shapes, one of them used twice."""
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], name="depthwise", group=4, strides=[2, 2]),
        node("Conv", ["c", "w3"], ["d"], name="again_1"),
        node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "w3"], ["f"], name="again_2", strides=[2, 2]),
        node("Flatten", ["f"], ["g"]),
        node("Gemm", ["g", "w4"], ["y"], name="last"),
    ]
    weights = {"w1": random(4, 3, 3, 3), "w2": random(4, 1, 3, 3), "w3": random(4, 4, 1, 1), "w4": random(16, 5)}
    return build(nodes, {"x": (batch, 3, 8, 8)}, {"y": None}, weights)


X = random(37, 3, 8, 8)


def samples(x: Any, batch: int, name: str = "x") -> Samples:
    spec = InputSpec(name, np.dtype(np.float32), (None, *x.shape[1:]))
    return open_samples({name: x}, [spec], DataOptions(batch=batch))


def raw(x: Any, batch: int) -> Samples:
    """Samples whose values nobody checked."""

    def read(start: int, stop: int) -> Any:
        for first in range(start, stop, batch):
            last = min(first + batch, stop)
            yield Batch({"x": x[first:last]}, first, last - first)

    return Samples(len(x), "raw", read, batch=batch)


def everything(model: ir.Model, ranges: tuple[str, ...] = ()) -> Chunk:
    return Chunk(tuple(find_layers(model)[0]), ranges)


def values_of(proto: onnx.ModelProto, names: list[str], x: Any) -> dict[str, Any]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return dict(zip(names, run(copy, {"x": x}), strict=True))


def test_hessians_are_the_naive_ones() -> None:
    proto = network()
    model = ir.from_proto(proto)
    captured = capture(model, everything(model), samples(X, 32), all_positions=True)
    values = values_of(proto, ["b", "c", "e", "g"], X) | {"x": X}
    first, depthwise, again, last = find_layers(model)[0]

    padded = np.pad(values["x"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    naive, n = np.zeros((27, 27)), 0
    for image in padded:
        for i in range(8):
            for j in range(8):
                column = image[:, i : i + 3, j : j + 3].transpose(1, 2, 0).ravel()
                naive, n = naive + 2 * np.outer(column, column), n + 1
    found, positions = captured.hessian(first)
    assert positions == n
    np.testing.assert_allclose(found[0], naive / n, rtol=1e-6, atol=1e-6)

    for group in range(4):
        naive, n = np.zeros((9, 9)), 0
        for image in values["b"][:, group].astype(np.float64):
            for i in range(0, 6, 2):
                for j in range(0, 6, 2):
                    column = image[i : i + 3, j : j + 3].ravel()
                    naive, n = naive + 2 * np.outer(column, column), n + 1
        found, positions = captured.hessian(depthwise)
        assert positions == n
        np.testing.assert_allclose(found[group], naive / n, rtol=1e-6, atol=1e-6)

    # two nodes, one weight: the Hessian over the positions of both
    pixels = [values["c"].transpose(0, 2, 3, 1), values["e"][:, :, ::2, ::2].transpose(0, 2, 3, 1)]
    pixels = np.concatenate([each.reshape(-1, 4) for each in pixels]).astype(np.float64)
    found, positions = captured.hessian(again)
    assert positions == len(pixels)
    np.testing.assert_allclose(found[0], 2 * pixels.T @ pixels / len(pixels), rtol=1e-6, atol=1e-6)

    flat = values["g"].astype(np.float64)
    np.testing.assert_allclose(captured.hessian(last)[0][0], 2 * flat.T @ flat / 37, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("all_positions", [True, False])
def test_batch_size_changes_nothing(all_positions: bool) -> None:
    model = ir.from_proto(network())
    results = [
        capture(
            model,
            everything(model, ("a", "x")),
            samples(X, batch),
            all_positions=all_positions,
            positions_per_column=5,
            execution=Execution(threads=1),
        )
        for batch in (1, 7, 32)
    ]
    for tap, hessian in results[0].hessians.items():
        for other in results[1:]:
            assert other.positions[tap] == results[0].positions[tap]
            np.testing.assert_allclose(other.hessians[tap], hessian, rtol=1e-10, atol=1e-10 * np.abs(hessian).max())
    assert len({captured.ranges["x"].interval("mse", 8, False) for captured in results}) == 1


def test_sampling_takes_as_many_positions_as_it_should() -> None:
    model = ir.from_proto(network())
    layers = find_layers(model)[0]
    captured = capture(model, everything(model), samples(X, 8), positions_per_column=3)
    # 27 columns · 3 / 37 samples → 3 of 64 positions; 9 · 3 / 37 → 1 of 9; 4 · 3 / 37 → 1 of 9 and 1 of 4; 1 of 1
    assert [captured.hessian(layer)[1] for layer in layers] == [3 * 37, 37, 2 * 37, 37]
    more = capture(model, everything(model), samples(X, 8), positions_per_column=10**6)
    complete = capture(model, everything(model), samples(X, 8), all_positions=True)
    for tap, hessian in complete.hessians.items():
        np.testing.assert_array_equal(more.hessians[tap], hessian)


def test_the_seed_moves_the_positions() -> None:
    model = ir.from_proto(network())
    one, same, other = (
        capture(model, everything(model), samples(X, 8), positions_per_column=3, seed=seed).hessian(
            find_layers(model)[0][0]
        )[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_chunks_give_the_same_as_one_run() -> None:
    model = ir.from_proto(network())
    layers, _ = find_layers(model)
    data = samples(X, 16)
    names = ["a", "c", "f"]
    taps = [use.tap.value for layer in layers for use in layer.uses]
    shapes = probe(model, [*names, *taps], data, Execution("cpu", 1))
    assert shapes["x"] == (1, 3, 8, 8)
    (whole,) = plan_chunks(layers, names, shapes, data, 1e9)
    assert (whole.layers, whole.ranges) == (tuple(layers), tuple(names))
    pieces = plan_chunks(layers, names, shapes, data, 8 * 27**2 + 4 * 16 * 192)
    assert len(pieces) > 2
    assert [layer for chunk in pieces for layer in chunk.layers] == layers
    assert [name for chunk in pieces for name in chunk.ranges] == names
    assert len(plan_chunks(layers, names, shapes, data, 1)) == len(layers) + len(names)
    reference = capture(model, whole, data)
    for chunk in pieces:
        captured = capture(model, chunk, data)
        for layer in chunk.layers:
            np.testing.assert_array_equal(captured.hessian(layer)[0], reference.hessian(layer)[0])
        for name in chunk.ranges:
            assert captured.ranges[name].interval("mse", 8, False) == reference.ranges[name].interval("mse", 8, False)


def test_large_hessians_are_mapped_and_the_same() -> None:
    model = ir.from_proto(network())
    layers, _ = find_layers(model)
    data = samples(X, 16)
    shapes = probe(model, [use.tap.value for layer in layers for use in layer.uses], data, Execution("cpu", 1))
    first, *others = [use.tap for layer in layers for use in layer.uses]
    size = held_bytes(1, 27)
    assert size > 8 * 27**2
    (whole,) = plan_chunks(layers, [], shapes, data, size / MAPPED)
    assert whole.mapped == frozenset()
    chunks = plan_chunks(layers, [], shapes, data, 0.99 * size / MAPPED)
    assert [first in chunk.mapped for chunk in chunks if layers[0] in chunk.layers] == [True]
    assert not any(tap in chunk.mapped for tap in others for chunk in chunks)
    reference = capture(model, whole, data)
    for chunk in chunks:
        captured = capture(model, chunk, data)
        for layer in chunk.layers:
            np.testing.assert_array_equal(captured.hessian(layer)[0], reference.hessian(layer)[0])


def wide_network() -> onnx.ModelProto:
    """Layers with so many columns that they are multiplied in float32."""
    nodes = [
        node("Conv", ["x", "w1"], ["a"], name="widen", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w2"], ["c"], name="wide", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "w3"], ["y"], name="strided", strides=[2, 2]),
    ]
    weights = {"w1": random(32, 3, 3, 3), "w2": random(32, 32, 3, 3), "w3": random(8, 32, 3, 3)}
    return build(nodes, {"x": ("n", 3, 8, 8)}, {"y": None}, weights)


@pytest.mark.parametrize("all_positions", [True, False])
def test_threads_change_nothing(all_positions: bool) -> None:
    model = ir.from_proto(wide_network())
    with threadpool_limits(1, "blas"):
        one, three = (
            capture(
                model,
                everything(model, ("b",)),
                samples(X, 8),
                all_positions=all_positions,
                execution=Execution(threads=threads),
            )
            for threads in (1, 3)
        )
    for tap, hessian in one.hessians.items():
        assert one.positions[tap] == three.positions[tap]
        # onnxruntime's own threads may round the inputs differently
        np.testing.assert_allclose(three.hessians[tap], hessian, rtol=0, atol=1e-6 * hessian.max())


@pytest.mark.parametrize("all_positions", [True, False])
def test_threads_of_its_own_change_not_a_bit(all_positions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(wide_network())
    results = []
    with threadpool_limits(1, "blas"):
        for workers in (1, 2, 5):
            monkeypatch.setattr(capturing, "ThreadPoolExecutor", lambda _, name, n=workers: ThreadPoolExecutor(n, name))
            results.append(
                capture(
                    model, everything(model), samples(X, 8), all_positions=all_positions, execution=Execution(threads=1)
                ).hessians
            )
    for other in results[1:]:
        for tap, hessian in results[0].items():
            np.testing.assert_array_equal(other[tap], hessian)


@pytest.mark.parametrize("positions_per_column", [3, 10**6])
def test_many_columns_are_the_naive_hessian(positions_per_column: int) -> None:
    proto = wide_network()
    model = ir.from_proto(proto)
    captured = capture(model, everything(model), raw(X, 8), positions_per_column=positions_per_column)
    b = np.pad(values_of(proto, ["b"], X)["b"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    take = ceil(positions_per_column * 288 / len(X))
    rows = []
    for sample, image in enumerate(b):
        picks = pick_positions(64, take, 0, range(sample, sample + 1))
        for p in range(64) if picks is None else picks[0]:
            rows.append(image[:, p // 8 : p // 8 + 3, p % 8 : p % 8 + 3].transpose(1, 2, 0).ravel())
    x = np.array(rows)  # (positions, 288)
    exact = 2 * x.T @ x / len(x)
    found, positions = captured.hessian(find_layers(model)[0][1])
    assert positions == len(x)
    assert np.linalg.norm(found[0] - exact) < 1e-6 * np.linalg.norm(exact)


def test_a_chunk_stays_under_its_memory() -> None:
    model = ir.from_proto(network())
    layers, _ = find_layers(model)
    data = samples(X, 16)
    shapes = probe(model, [use.tap.value for layer in layers for use in layer.uses], data, Execution("cpu", 1))
    memory = 60_000
    for chunk in plan_chunks(layers, [], shapes, data, memory):
        taps = {use.tap for layer in chunk.layers for use in layer.uses}
        hessians = sum(8 * layer.groups * layer.columns**2 for layer in chunk.layers)
        inputs = sum(4 * 16 * int(np.prod(shapes[name])) for name in {tap.value for tap in taps})
        assert hessians + inputs <= memory or len(chunk.layers) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples() -> None:
    model = ir.from_proto(network())
    chunk = everything(model, ("a", "c"))

    def endless(count: int) -> Samples:
        def read(start: int, stop: int) -> Any:
            for first in range(start, stop, 8):
                yield Batch({"x": X[:8]}, first, 8)

        return Samples(count, "repeated", read, batch=8)

    def peak(count: int) -> int:
        tracemalloc.start()
        capture(model, chunk, endless(count), all_positions=True)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(8)
    few, many = peak(16), peak(4000)
    held = 4000 * 8 * 8 * 4 * 4  # bytes of one activation of all samples
    assert many < few + held / 4
    assert many < 1.5 * few


# ------------------------------------------------ values that cannot be used


def test_nan_in_the_data_names_the_sample() -> None:
    x = X.copy()
    x[19, 1, 2, 3] = np.nan  # after the pooling, nothing else is left
    model = ir.from_proto(network())
    with pytest.raises(
        CalibrationError, match=r"layer 'first' holds NaN or infinity for sample 19, as 'x' in the data does;"
    ):
        capture(model, everything(model), raw(x, 8))


@pytest.mark.parametrize(("bad", "result"), [(0.0, np.inf), (-0.0, -np.inf), (-1.0, np.nan)])
def test_overflow_inside_names_layer_and_sample(bad: float, result: float) -> None:
    nodes = [
        node("Sqrt", ["x"], ["root"]),
        node("Reciprocal", ["root"], ["inverse"]),
        node("MatMul", ["inverse", "w"], ["h"], name="inner"),
        node("MatMul", ["h", "v"], ["y"], name="outer"),
    ]
    proto = build(nodes, {"x": ("n", 4)}, {"y": None}, {"w": random(4, 4), "v": random(4, 4, seed=1)})
    x = np.abs(random(12, 4)) + 1
    x[5, 2] = bad
    assert np.array_equal(values_of(proto, ["inverse"], x)["inverse"][5, 2], np.float32(result), equal_nan=True)
    model = ir.from_proto(proto)
    with pytest.raises(CalibrationError) as error:
        capture(model, everything(model), raw(x, 4))
    assert "input of layer 'inner' holds NaN or infinity for sample 5: " in str(error.value)
    assert "\n" not in str(error.value)


def test_overflow_of_an_activation_is_named_too() -> None:
    model = build([node("Exp", ["x"], ["e"]), node("Relu", ["e"], ["y"])], {"x": ("n", 4)}, {"y": None})
    x = random(6, 4)
    x[4] = 1000
    with pytest.raises(CalibrationError, match="the activation 'e' holds NaN or infinity for sample 4"):
        capture(ir.from_proto(model), Chunk((), ("e",)), raw(x, 6))


def test_samples_are_named_by_their_feed_where_they_do_not_lie_along_the_first_axis() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"]),
        node("Log", ["t"], ["log"]),
        node("MatMul", ["w", "log"], ["y"], name="left"),
    ]
    model = ir.from_proto(build(nodes, {"x": ("n", 4)}, {"y": None}, {"w": random(3, 4)}))
    x = np.abs(random(9, 4)) + 1
    x[3:] = -1
    with pytest.raises(CalibrationError, match="for one of the 6 samples of a feed, the first of which is sample 3: "):
        capture(model, everything(model), Samples(9, "raw", lambda a, b: iter([Batch({"x": x[3:]}, 3, 6)])))


# ------------------------------------------------ odd inputs


def test_dead_input() -> None:
    proto = build(
        [node("Mul", ["x", "zero"], ["z"]), node("MatMul", ["z", "w"], ["y"])],
        {"x": ("n", 4)},
        {"y": None},
        {"zero": np.float32(0), "w": random(4, 2)},
    )
    model = ir.from_proto(proto)
    captured = capture(model, everything(model, ("z",)), samples(random(5, 4), 2))
    hessian, positions = captured.hessian(find_layers(model)[0][0])
    assert positions == 5
    np.testing.assert_array_equal(hessian, np.zeros((1, 4, 4)))
    assert captured.ranges["z"].interval("mse", 8, False) == (0.0, 0.0)


@pytest.mark.parametrize("all_positions", [True, False])
def test_one_sample(all_positions: bool) -> None:
    model = ir.from_proto(network())
    captured = capture(model, everything(model), samples(X[:1], 32), all_positions=all_positions)
    first = find_layers(model)[0][0]
    assert captured.hessian(first)[1] == 64
    assert np.isfinite(captured.hessian(first)[0]).all()


def test_values_of_size_zero() -> None:
    nodes = [node("Slice", ["x", "none", "none"], ["s"]), node("MatMul", ["s", "w"], ["y"])]
    model = ir.from_proto(
        build(nodes, {"x": ("n", 4)}, {"y": None}, {"w": random(4, 2), "none": np.zeros(1, np.int64)})
    )
    captured = capture(model, everything(model, ("s",)), samples(random(5, 4), 2))
    hessian, positions = captured.hessian(find_layers(model)[0][0])
    assert positions == 0
    np.testing.assert_array_equal(hessian, np.zeros((1, 4, 4)))


def test_nothing_to_capture() -> None:
    model = ir.from_proto(network())
    assert probe(model, [], samples(X, 4), Execution("cpu", 1)) == {}


def test_sequences_of_any_length() -> None:
    proto = build([node("MatMul", ["x", "w"], ["y"])], {"x": ("n", "t", 4)}, {"y": None}, {"w": random(4, 2)})
    model = ir.from_proto(proto)
    feeds = [random(1, length, 4, seed=length) for length in (1, 5, 9)]
    read = lambda a, b: (Batch({"x": feeds[i]}, i, 1) for i in range(a, b))  # noqa: E731
    captured = capture(model, everything(model), Samples(3, "raw", read), all_positions=True)
    x = np.concatenate(feeds, axis=1)[0].astype(np.float64)
    hessian, positions = captured.hessian(find_layers(model)[0][0])
    assert positions == 15
    np.testing.assert_allclose(hessian[0], 2 * x.T @ x / 15, rtol=1e-12)


def test_progress_counts_every_sample() -> None:
    model = ir.from_proto(network())
    done: list[int] = []
    capture(model, everything(model), samples(X, 8), progress=done.append)
    assert sum(done) == 37
