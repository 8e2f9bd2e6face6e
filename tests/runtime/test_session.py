from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper
from small_graphs import build, random, run

from onnx_obc.core.errors import ModelError, RecipeError, one_line
from onnx_obc.runtime.session import is_finite, open_session


def small() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return build(nodes, {"x": ("n", 3), "unread": (1,)}, {"y": ("n", 2)}, {"w": random(3, 2)})


X = random(5, 3)


def test_runs_and_ignores_what_the_model_does_not_read() -> None:
    proto = small()
    opened = open_session(ir.from_proto(proto), device="cpu")
    found = opened.run({"x": X, "unread": np.zeros(1, np.float32), "stranger": X})
    assert list(found) == ["y"]
    np.testing.assert_allclose(found["y"], run(proto, {"x": X, "unread": np.zeros(1, np.float32)})[0], rtol=1e-6)


def test_any_value_can_be_an_output() -> None:
    model = ir.from_proto(small())
    found = open_session(model, ["h", "x", "y", "w"], device="cpu").run({"x": X, "unread": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["w"], random(3, 2))
    np.testing.assert_allclose(found["h"], X @ random(3, 2), rtol=1e-5)
    np.testing.assert_array_equal(found["y"], np.maximum(found["h"], 0))
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_from_a_file(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "m.onnx")
    assert open_session(tmp_path / "m.onnx", device="cpu", threads=1).outputs == ("y",)


def test_a_feed_that_fails_is_named_with_its_shapes(capfd: pytest.CaptureFixture[str]) -> None:
    opened = open_session(ir.from_proto(small()), device="cpu")
    with pytest.raises(ModelError) as error:
        opened.run({"x": random(5, 4), "unread": np.zeros(1, np.float32)})
    assert "x float32[5, 4]" in str(error.value)
    assert "unread float32[1]" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_node_that_fails_is_told_by_the_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    proto = build([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": ("n",), "s": (1,)}, {"y": None})
    proto.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    opened = open_session(ir.from_proto(proto), device="cpu")
    with pytest.raises(ModelError, match=r"Reshape.*cannot be reshaped"):
        opened.run({"x": np.zeros(5, np.float32), "s": np.array([4])})
    assert capfd.readouterr() == ("", "")


def test_a_feed_of_the_wrong_type() -> None:
    opened = open_session(ir.from_proto(small()), device="cpu")
    with pytest.raises(ModelError, match=r"x float64\[5, 3\]"):
        opened.run({"x": X.astype(np.float64), "unread": np.zeros(1, np.float32)})


def test_a_missing_input() -> None:
    with pytest.raises(ModelError, match=r"unread float32\[1\]"):
        open_session(ir.from_proto(small()), device="cpu").run({"unread": np.zeros(1, np.float32)})


def test_a_model_that_does_not_load() -> None:
    broken = build([helper.make_node("NoSuchOperator", ["x"], ["y"])], {"x": (1,)}, {"y": None})
    with pytest.raises(ModelError, match=r"cannot load the model: .*NoSuchOperator") as error:
        open_session(ir.from_proto(broken))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="cannot load the model"):
        open_session(tmp_path / "m.onnx")


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"onnxruntime is not installed; install onnx-obc\[cpu\], or"):
        open_session(ir.from_proto(small()))


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RecipeError, match=r"--device cuda: .* install"):
        open_session(ir.from_proto(small()), device="cuda")
    assert open_session(ir.from_proto(small()), device="auto").outputs == ("y",)


def test_threads_are_passed_on() -> None:
    opened = open_session(ir.from_proto(small()), device="cpu", threads=1)
    assert opened._session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("array", "finite"),
    [
        (np.array([1.0, np.nan]), False),
        (np.array([np.inf], np.float16), False),
        (np.array([1.0], np.float32), True),
        (np.array([2**62]), True),
        (np.array([True]), True),
        (np.array(["text"], object), True),
        (np.zeros(0, np.float32), True),
    ],
)
def test_is_finite(array: np.ndarray, finite: bool) -> None:
    assert is_finite(array) is finite


def test_one_line() -> None:
    assert one_line(ValueError("first\n\n  second\tthird ")) == "first second third"
