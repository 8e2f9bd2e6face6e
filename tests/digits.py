"""The small classifier that the end-to-end tests run on, and the command line, called in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_obc.cli.demo import accuracy
from onnx_obc.cli.main import main

MODELS = Path(__file__).parents[1] / "models"
MODEL, CALIBRATION, TEST = (MODELS / f"digits{end}" for end in (".onnx", "_calibration.npz", "_test.npz"))


def top1(model: Path) -> float:
    return accuracy(model, TEST)


def run_cli(*arguments: object) -> int:
    """The exit code of `onnx-obc` with these arguments."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return 0 if end.code is None else int(end.code)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail for the user's fault: exit code 2, one line on stderr, which is returned."""
    assert run_cli(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err.strip()


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, hidden files too, with its contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def small(rows: int = 8, columns: int = 4, *, seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """y = relu(x W), x (N, columns)."""
    weight = np.random.default_rng(seed).standard_normal((columns, rows)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])]
    return build(nodes, {"x": (TensorProto.FLOAT, ["N", columns])}, {"y": ["N", rows]}, {"w": weight}, opset=opset)


def text_like(words: int = 64, width: int = 32) -> onnx.ModelProto:
    """Token ids (N, 6) through a table, two products and a mean to scores (N, 5)."""
    rng = np.random.default_rng(1)
    weights = {
        "table": rng.standard_normal((words, width)).astype(np.float32),
        "up": rng.standard_normal((width, 48)).astype(np.float32) / 6,
        "down": rng.standard_normal((48, 5)).astype(np.float32) / 7,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="lookup"),
        helper.make_node("MatMul", ["e", "up"], ["u"], name="block/up"),
        helper.make_node("Relu", ["u"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["d"], name="block/down"),
        helper.make_node("ReduceMean", ["d"], ["scores"], axes=[1], keepdims=0),
    ]
    return build(nodes, {"ids": (TensorProto.INT64, ["N", 6])}, {"scores": ["N", 5]}, weights)


def build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, *type_) for name, type_ in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
