"""Files that other quantizers wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper, numpy_helper
from small_graphs import build, random

from onnx_obc import DataOptions, debug_models
from onnx_obc.debug.record import to_db

quantization = pytest.importorskip("onnxruntime.quantization")
FEW = DataOptions(samples=32)


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        with np.load(CALIBRATION) as arrays:
            self._feeds = iter([{"image": arrays["image"][start : start + 32]} for start in range(0, 128, 32)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@pytest.fixture(scope="module", params=["QDQ", "QDQ, not preprocessed", "QOperator", "dynamic"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("others")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, output = folder / "pre.onnx", folder / "small.onnx"
    quant_pre_process(str(MODEL), str(source))
    if request.param == "dynamic":
        quantization.quantize_dynamic(str(source), str(output))
        return request.param, output
    form = quantization.QuantFormat.QOperator if request.param == "QOperator" else quantization.QuantFormat.QDQ
    given = MODEL if "not" in request.param else source
    quantization.quantize_static(str(given), str(output), Reader(), quant_format=form, per_channel=True)
    return request.param, output


@pytest.mark.slow
def test_every_layer_is_matched(written: tuple[str, Path]) -> None:
    form, path = written
    found = debug_models(MODEL, path, CALIBRATION, data=FEW)
    assert [layer.reason for layer in found.layers] == [None] * 20
    assert not any(layer.others for layer in found.layers)
    for layer in found.layers:
        row = found.value_of(layer)
        assert row is not None and row.weights is not None and row.activations is not None, layer
        assert layer.bits == 8 and (to_db(layer.weight) or 0) > 20, layer
        assert (to_db(row.weights) or 0) > 5 and (to_db(row.activations) or 0) > 5, layer
    assert found.tried == 20 and found.returns[0].gained > 0
    assert not any("close to the file" in note for note in found.notes), form


def test_a_weight_in_few_bits_of_onnxruntime(tmp_path: Path) -> None:
    """MatMulNBits: the codes are unpacked to what the operator computes with."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from small_graphs import build, helper, random

    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="up"), helper.make_node("Relu", ["h"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "v"], ["y"], name="down"))
    weights = {"w": random(64, 32, seed=1), "v": random(32, 16, seed=2)}
    dense = build(nodes, {"x": ["N", 64]}, {"y": ["N", 16]}, weights)
    quantizer = MatMulNBitsQuantizer(dense, bits=4, block_size=32, is_symmetric=False)
    quantizer.process()
    dense = build(nodes, {"x": ["N", 64]}, {"y": ["N", 16]}, weights)
    found = debug_models(dense, quantizer.model.model, {"x": random(64, 64, seed=3)})
    assert [(layer.name, layer.bits) for layer in found.layers] == [("up", 4), ("down", 4)]
    assert all((to_db(layer.weight) or 0) > 15 for layer in found.layers)
    assert not any("close to the file" in note for note in found.notes)
    assert {row.remedy for row in found.returns} == {"int8"}


def test_outputs_that_nothing_reads_do_not_count(tmp_path: Path) -> None:
    """onnxruntime's optimizer leaves such beside its norms: wherever they stand among the values, they do no harm."""
    nodes = [helper.make_node("Add", ["x", "b"], ["h0"])]
    for i in range(14):  # more values than are run at a time
        outputs = [f"n{i}", "", "", f"sum{i}"]
        norm = helper.make_node("SkipLayerNormalization", [f"h{i}", "x", "b"], outputs, domain="com.microsoft")
        nodes += [norm, helper.make_node("MatMul", [f"n{i}", "w"], [f"m{i}"], name=f"layer{i}")]
        nodes.append(helper.make_node("Add", [f"m{i}", f"sum{i}"], [f"h{i + 1}"]))
    proto = build(nodes, {"x": ("N", 16)}, {"h14": ("N", 16)}, {"w": random(16, 16) / 4, "b": random(16)})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, tmp_path / "dense.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(np.round(numpy_helper.to_array(tensor) * 16) / 16, "w"))
    onnx.save(proto, tmp_path / "small.onnx")
    found = debug_models(tmp_path / "dense.onnx", tmp_path / "small.onnx", {"x": random(8, 16)})
    assert {row.name for row in found.values} >= {f"sum{i}" for i in range(14)}
