"""What tests of training share: a small model of blocks, and how short training is there."""

from __future__ import annotations

import onnx
import pytest
from small_graphs import build, random

from onnx_obc.pipeline import reconstruct as module
from onnx_obc.pipeline.report import Report

make = onnx.helper.make_node


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 40)
    monkeypatch.setattr(module, "BRIEF", 30)


def blocks(between: str = "Relu") -> onnx.ModelProto:
    """Two residual blocks of two layers each; `between` those of the first."""
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1] * 4),
        make(between, ["a"], ["r"]),
        make("Conv", ["r", "w2", "b2"], ["c"], "second", pads=[1] * 4),
        make("Add", ["c", "x"], ["d"]),
        make("Conv", ["d", "w3", "b3"], ["e"], "third", pads=[1] * 4),
        make("Relu", ["e"], ["f"]),
        make("Conv", ["f", "w4", "b4"], ["g"], "fourth", pads=[1] * 4),
        make("Add", ["g", "d"], ["y"]),
    ]
    weights = {f"w{n}": random(8, 8, 3, 3, seed=n) / 8 for n in range(1, 5)} | {f"b{n}": random(8) for n in range(1, 5)}
    return build(nodes, {"x": ("N", 8, 6, 6)}, {"y": ("N", 8, 6, 6)}, weights, opset=18)


SPARSE = {"weights": "float", "activations": "none", "sparsity": "2:4", "solver": "ordered"}
X = {"x": random(160, 8, 6, 6)}


def tried(report: Report) -> list[tuple[str, ...]]:
    return [attempt.kinds for attempt in report.corrections]


def loss_after(report: Report) -> float:
    """On samples held out, with parts trained."""
    return next(attempt.loss_after for attempt in report.corrections if attempt.kinds == ("reconstruction",))
