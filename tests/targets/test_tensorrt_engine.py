"""TensorRT through trtexec, played by a script: its files are made by hand after the developer guide's formats."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from digits import CALIBRATION, MODEL

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.targets.check import check_file
from onnx_obc.targets.registry import TARGETS
from onnx_obc.targets.tensorrt.engine import SETTING, kernels_of, outputs_of, trtexec_command

NAME = np.load(CALIBRATION).files[0]
FEED = {NAME: np.load(CALIBRATION)[NAME][:4]}

LAYERS = {
    "Layers": [
        {
            "Name": "conv1 + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "TacticName": "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_i8i32_f32",
            "Inputs": [{"Name": "x_quantized", "Format/Datatype": "Thirty-two wide channel vectorized Int8 format"}],
            "Outputs": [{"Name": "r", "Format/Datatype": "Int8"}],
            "Metadata": "[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu]",
        },
        {
            "Name": "fc",
            "LayerType": "gemm",
            "TacticName": "ampere_h16816gemm",
            "Inputs": [{"Name": "r", "Format/Datatype": "Row major linear Half"}],
            "Outputs": [{"Name": "y"}],
            "Metadata": "[ONNX Layer: /fc/Gemm]",
        },
    ]
}
PROFILE = [
    {"count": 10},
    {"name": "conv1 + relu", "timeMs": 2.0, "averageMs": 0.2, "medianMs": 0.19, "percentage": 66.0},
    {"name": "fc", "timeMs": 1.0, "averageMs": 0.1, "medianMs": 0.09, "percentage": 33.0},
]


def test_layers_become_kernels() -> None:
    conv, product = kernels_of(LAYERS, PROFILE)
    assert (conv.nodes, conv.precision, conv.sparsity) == (("/conv1/Conv", "/relu"), "int8", 0.5)
    assert (product.nodes, product.precision, product.sparsity) == (("/fc/Gemm",), "float16", None)
    assert product.sources == (0,) and conv.sources == ()
    assert (conv.seconds, product.seconds) == pytest.approx((0.19e-3, 0.09e-3))


def test_outputs_are_read() -> None:
    found = outputs_of([{"name": "y", "dimensions": "2x3", "values": [1, 2, 3, 4, 5, 6]}])
    np.testing.assert_array_equal(found["y"], np.array([[1, 2, 3], [4, 5, 6]], np.float32))


@pytest.mark.slow
def test_the_command_fits_the_file(tmp_path: Path) -> None:
    shapes = {NAME: (4, 1, 8, 8)}
    plain = trtexec_command(MODEL, shapes)
    assert "--int8" not in plain and f"--shapes={NAME}:4x1x8x8" in plain and "--sparsity=enable" in plain
    out = tmp_path / "q.onnx"
    compress(MODEL, CALIBRATION, Recipe(target="tensorrt", solver="baseline"), out)
    assert "--int8" in trtexec_command(out, shapes)


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that notes what it is called with, and writes the files that it is asked for."""
    script = tmp_path / "trtexec"
    outputs = [{"name": "logits", "dimensions": "4x10", "values": list(range(40))}]
    script.write_text(
        f"""#!{sys.executable}
import json, sys
arguments = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
with open({str(tmp_path / "calls")!r}, "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
print("&&&& RUNNING TensorRT.trtexec [TensorRT v101300]")
if "broken" in arguments.get("onnx", ""):
    print("[E] [TRT] ModelImporter.cpp: no such operator", file=sys.stderr)
    sys.exit(1)
for name, what in {{"exportLayerInfo": {LAYERS!r}, "exportProfile": {PROFILE!r}, "exportOutput": {outputs!r}}}.items():
    if name in arguments:
        open(arguments[name], "w").write(json.dumps(what))
if "exportTimes" in arguments:
    times = [{{"computeMs": 1.0 + i}} for i in range(int(arguments["iterations"]))]
    open(arguments["exportTimes"], "w").write(json.dumps(times))
""",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setenv(SETTING, str(script))
    monkeypatch.setattr("onnx_obc.targets.tensorrt.engine.has_gpu", lambda: True)
    return tmp_path / "calls"


def test_it_is_built_once_and_asked_for_everything(trtexec: Path) -> None:
    engine = TARGETS["tensorrt"].engine
    assert engine.version().startswith("tensorrt 101300")
    loaded = engine.load(MODEL, FEED, None)
    assert loaded.run(FEED)["logits"].shape == (4, 10)
    assert loaded.seconds(FEED, 3) == pytest.approx([1e-3, 2e-3, 3e-3])
    assert [kernel.op for kernel in loaded.kernels(FEED, 5)] == ["Convolution", "gemm"]
    loaded.close()
    calls = [json.loads(line) for line in trtexec.read_text().splitlines()][1:]
    assert sum(any(part.startswith("--onnx=") for part in call) for call in calls) == 1
    assert all(any(part.startswith("--loadEngine=") for part in call) for call in calls[1:])


def test_what_it_refuses_is_an_error(trtexec: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(MODEL.read_bytes())
    with pytest.raises(EngineError, match="no such operator"):
        TARGETS["tensorrt"].engine.load(broken, FEED, None)
    found = check_file(broken, "tensorrt", FEED)
    assert found.failed and not found.ran


def test_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SETTING, str(tmp_path / "nothing"))
    with pytest.raises(EngineError, match="no trtexec"):
        TARGETS["tensorrt"].engine.version()
    found = check_file(MODEL, "tensorrt", FEED)
    (note,) = [finding for finding in found.findings if finding.rule == "trtexec"]
    assert "trtexec --onnx=" in note.message and not found.ran
    spaced = tmp_path / "my model.onnx"
    spaced.write_bytes(MODEL.read_bytes())
    (note,) = [finding for finding in check_file(spaced, "tensorrt", FEED).findings if finding.rule == "trtexec"]
    assert shlex.split(note.message.partition("TensorRT is: ")[2])[1] == f"--onnx={spaced}"
    monkeypatch.setenv(SETTING, str(MODEL))  # a file, but no program
    monkeypatch.setattr("onnx_obc.targets.tensorrt.engine.has_gpu", lambda: False)
    with pytest.raises(EngineError, match="CUDA finds none"):
        TARGETS["tensorrt"].engine.version()
    monkeypatch.setattr("onnx_obc.targets.tensorrt.engine.has_gpu", lambda: True)
    with pytest.raises(EngineError, match="cannot be started"):
        TARGETS["tensorrt"].engine.version()
