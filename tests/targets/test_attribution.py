"""Which layer a kernel's time belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.targets.attribution import seconds_of_layers
from onnx_obc.targets.engine import Kernel
from onnx_obc.targets.expected import INTEGER, WEIGHTED
from onnx_obc.targets.registry import TARGETS

LAYERS = {"conv1": "a", "conv2": "b", "fc": "c"}


def kernel(seconds: float, nodes: str = "", *sources: int) -> Kernel:
    return Kernel("k", "op", tuple(nodes.split()), sources=sources, seconds=seconds)


def test_a_kernel_belongs_to_the_layer_it_computes_or_follows() -> None:
    kernels = [
        kernel(1.0, "quantize"),  # before the first layer: of none
        kernel(2.0, "conv1 relu", 0),
        kernel(3.0, "add", 1),  # follows conv1
        kernel(4.0, "conv2", 2),
        kernel(5.0, "join", 1, 3),  # reads both: of the last
        kernel(6.0, "", 4),
    ]
    found, rest = seconds_of_layers(kernels, LAYERS, {})
    assert found == {"a": 5.0, "b": 15.0} and rest == 1.0


def test_layers_in_one_kernel_share_its_time_by_their_operations() -> None:
    found, rest = seconds_of_layers([kernel(8.0, "conv1 conv2")], LAYERS, {"a": 3.0, "b": 1.0})
    assert found == {"a": 6.0, "b": 2.0} and rest == 0
    found, _ = seconds_of_layers([kernel(8.0, "conv1 conv2"), kernel(1.0, "", 0)], LAYERS, {"a": 0.0, "b": 0.0})
    assert found == {"a": 4.0, "b": 5.0}


def test_nothing_is_lost() -> None:
    kernels = [
        kernel(0.1 * i, name, *([i - 1] if i else [])) for i, name in enumerate(["x", "fc", "y", "conv1 fc", ""])
    ]
    found, rest = seconds_of_layers(kernels, LAYERS, {})
    assert sum(found.values()) + rest == pytest.approx(sum(k.seconds for k in kernels))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "deepsparse"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.slow
def test_nodes_without_names_are_found_by_their_outputs(runtime: str, quantized: bool, tmp_path: Path) -> None:
    engine = TARGETS[runtime].engine
    try:
        engine.version()
    except EngineError as error:
        pytest.skip(str(error))
    source = MODEL
    if quantized or runtime == "deepsparse":  # which writes into the file
        source = tmp_path / "q.onnx"
        source.write_bytes(MODEL.read_bytes())
    if quantized:
        compress(MODEL, CALIBRATION, Recipe(solver="baseline", target=runtime), source)  # type: ignore[arg-type]
    model = onnx.load(source)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    products = [node.name for node in model.graph.node if node.op_type in (*WEIGHTED, *INTEGER)]
    for node in model.graph.node:
        node.ClearField("name")
    onnx.save(model, tmp_path / "unnamed.onnx")
    (name, array), *_ = np.load(CALIBRATION).items()
    feed = {name: array[:2]}
    seen = []
    for path, known in ((source, products), (tmp_path / "unnamed.onnx", [outputs[n] for n in products])):
        loaded = engine.load(path, feed, 1)
        kernels = loaded.kernels(feed, 3)
        loaded.close()
        found = [[k for k in kernels if n in k.nodes and k.precision] for n in known]
        assert [len(own) for own in found] == [1] * len(products)
        assert all(own[0].seconds >= 0 for own in found)  # engines round to 1 µs, which a small layer does not take
        seen.append([own[0].precision for own in found])
    assert seen[0] == seen[1]
