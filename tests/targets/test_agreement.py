"""What an engine computes against what a file says, and the layer from which on they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small_graphs import build, random

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import VerificationError
from onnx_obc.pipeline import draft, finish
from onnx_obc.targets.agreement import disagreement
from onnx_obc.targets.check import check_file
from onnx_obc.targets.registry import TARGETS

ENGINE = TARGETS["onnxruntime"].engine


def chain(weight_scale: float = 1e-12) -> onnx.ModelProto:
    """Two convolutions with Q/DQ as another tool writes them: of the second one bias is beyond int32."""
    scales = {"xs": 0.03, "us": 0.01, "vs": weight_scale, "ys": 0.05}
    weights = {name: np.array(value, np.float32) for name, value in scales.items()}
    weights |= {"z": np.array(128, np.uint8), "w0": np.array(0, np.int8)}
    weights |= {name: np.clip(random(4, 4, 1, 1, seed=ord(name)) * 60, -127, 127).astype(np.int8) for name in "uv"}
    weights |= {"b": random(4), "c": np.array([2, -3, 1, 0.5], np.float32)}

    def pair(value: str, scale: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [value, scale, "z"], [f"{value}_q"]),
            helper.make_node("DequantizeLinear", [f"{value}_q", scale, "z"], [f"{value}_d"]),
        ]

    nodes = [
        *pair("x", "xs"),
        helper.make_node("DequantizeLinear", ["u", "us", "w0"], ["ud"]),
        helper.make_node("Conv", ["x_d", "ud", "b"], ["h"], name="first"),
        *pair("h", "ys"),
        helper.make_node("DequantizeLinear", ["v", "vs", "w0"], ["vd"]),
        helper.make_node("Conv", ["h_d", "vd", "c"], ["e"], name="second"),
        *pair("e", "ys"),
        helper.make_node("Identity", ["e_d"], ["y"]),
    ]
    return build(nodes, {"x": (2, 4, 5, 5)}, {"y": (2, 4, 5, 5)}, weights)


def test_the_layer_from_which_on_outputs_differ(tmp_path: Path) -> None:
    path, feed = tmp_path / "m.onnx", {"x": random(2, 4, 5, 5)}
    onnx.save(chain(), path)
    found = disagreement(path, ENGINE, feed, 1)
    assert found is not None
    assert (found.output, found.node) == ("y", "second")
    assert found.db < 15
    findings = [finding for finding in check_file(path, "onnxruntime", feed).findings if finding.rule == "outputs"]
    assert [(finding.severity, finding.node) for finding in findings] == [("error", "second")]


def test_what_is_the_same_is_no_finding(tmp_path: Path) -> None:
    path, feed = tmp_path / "m.onnx", {"x": random(2, 4, 5, 5)}
    onnx.save(chain(0.01), path)
    assert disagreement(path, ENGINE, feed, 1) is None


def test_a_model_that_draws_random_numbers_is_not_compared(tmp_path: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    onnx.save(build(nodes, {"x": (2, 4)}, {"y": (2, 4)}), tmp_path / "m.onnx")
    assert disagreement(tmp_path / "m.onnx", ENGINE, {"x": random(2, 4)}, 1) is None


def dead_row() -> onnx.ModelProto:
    """A Conv with a row of next to no weight and a large bias, and another behind it."""
    w, b = random(8, 4, 1, 1), random(8)
    w[3] *= np.float32(1e-10)
    b[3] = 20
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="dead"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], name="alive"),
    ]
    weights = {"w": w, "b": b, "v": random(4, 8, 1, 1)}
    return build(nodes, {"x": ("n", 4, 5, 5)}, {"y": ("n", 4, 5, 5)}, weights)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_layer_at_fault_is_written_in_another_form(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "fit_to_biases", lambda model, solved, written, target: dict(solved))
    recipe = Recipe.model_validate({"target": target, "effort": "fast"})
    report = compress(dead_row(), {"x": np.abs(random(32, 4, 5, 5))}, recipe).report
    assert {layer.name: layer.activations for layer in report.layers} == {"dead": "float", "alive": "int8"}
    assert "computes something else" in " ".join(report.layers[0].notes)
    assert report.outputs[0].sqnr_db > 25


def test_what_cannot_be_mended_is_not_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(draft, "fit_to_biases", lambda model, solved, written, target: dict(solved))
    monkeypatch.setattr(finish, "in_another_form", lambda *arguments: None)
    with pytest.raises(VerificationError, match="from layer dead on"):
        compress(dead_row(), {"x": np.abs(random(32, 4, 5, 5))}, Recipe(effort="fast"), tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()
