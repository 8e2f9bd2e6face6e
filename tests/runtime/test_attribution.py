"""Which layer a kernel's time belongs to."""

from __future__ import annotations

import pytest

from onnx_obc.runtime.attribution import seconds_of_layers
from onnx_obc.runtime.engine import Kernel

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
