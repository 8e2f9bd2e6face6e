"""OpenVINO as an engine and a target: what it really runs in integers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, text_like

from onnx_obc import DataOptions, Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.runtime.sqnr import agreement_db
from onnx_obc.targets.bench import bench
from onnx_obc.targets.check import check_file
from onnx_obc.targets.openvino.engine import sparse_rate
from onnx_obc.targets.registry import TARGETS

pytest.importorskip("openvino", reason="openvino is not installed")
OPENVINO = TARGETS["openvino"].engine
NAME = np.load(CALIBRATION).files[0]
FEED = {NAME: np.load(CALIBRATION)[NAME][:4]}


def quick(path: Path, **options: Any) -> Path:
    compress(MODEL, CALIBRATION, Recipe(solver="baseline", target="openvino", **options), path)
    return path


@pytest.mark.slow
def test_every_quantized_layer_runs_in_integers(tmp_path: Path) -> None:
    found = check_file(quick(tmp_path / "q.onnx"), "openvino", FEED)
    assert found.ran and found.count("int8") == (20, 20) and not found.findings


@pytest.mark.slow
def test_its_outputs_are_onnxruntimes(tmp_path: Path) -> None:
    for path, least in ((MODEL, 100.0), (quick(tmp_path / "q.onnx"), 15.0)):
        loaded, other = (TARGETS[name].engine.load(path, FEED, 1) for name in ("openvino", "onnxruntime"))
        found, wanted = loaded.run(FEED), other.run(FEED)
        assert found.keys() == wanted.keys()
        assert all(agreement_db(wanted[name], found[name]) > least for name in wanted)


def test_kernels_cover_the_products_and_have_times(tmp_path: Path) -> None:
    kernels = OPENVINO.load(MODEL, FEED, 1).kernels(FEED, 2)
    products = [node.name for node in onnx.load(MODEL).graph.node if node.op_type in ("Conv", "Gemm")]
    for name in products:
        (owner,) = [kernel for kernel in kernels if name in kernel.nodes]
        assert owner.precision == "float32" and owner.seconds >= 0
    assert all(source < index for index, kernel in enumerate(kernels) for source in kernel.sources)


@pytest.mark.slow
def test_products_of_matrices(tmp_path: Path) -> None:
    model, path = text_like(), tmp_path / "q.onnx"
    ids = np.random.default_rng(0).integers(0, 64, (64, 6))
    compress(model, {"ids": ids}, Recipe(solver="baseline", target="openvino"), path, data=DataOptions())
    found = check_file(path, "openvino", {"ids": ids[:2]})
    assert found.count("int8") == (2, 2)


@pytest.mark.slow
def test_what_it_has_no_kernel_for_is_said(tmp_path: Path) -> None:
    report = compress(
        MODEL, CALIBRATION, Recipe(solver="baseline", target="openvino", weights="int4", asymmetric=False), None
    ).report
    assert all(layer.activations == "float" for layer in report.layers)
    assert any("no integer kernel for int4" in note for layer in report.layers for note in layer.notes)
    found = check_file(quick(tmp_path / "w.onnx", weights="int8", activations="none"), "openvino", FEED)
    assert {finding.rule for finding in found.findings} >= {"weights-only"}


@pytest.mark.slow
def test_weights_with_a_zero_point_are_multiplied_in_float(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline", asymmetric=True), path)
    found = check_file(path, "openvino", FEED)
    assert found.count("int8") == (0, 20)
    assert {entry.precision for entry in found.executions} == {"float32", "int8-weights"}  # the Gemm unpacks its own
    named = {finding.node for finding in found.findings if finding.rule == "symmetric"}
    assert {entry.node for entry in found.executions} == named


@pytest.mark.slow
def test_sparse_weights_set_the_rate(tmp_path: Path) -> None:
    assert sparse_rate(MODEL) is None and sparse_rate(quick(tmp_path / "q.onnx")) is None
    rate = sparse_rate(quick(tmp_path / "s.onnx", sparsity="0.8"))
    assert rate is not None and 0.5 <= rate <= 0.9
    OPENVINO.load(tmp_path / "s.onnx", FEED, 1).run(FEED)


@pytest.mark.slow
def test_files_against_each_other(tmp_path: Path) -> None:
    found = bench((MODEL, quick(tmp_path / "q.onnx")), "openvino", FEED, 1, rounds=2)
    assert found.runtime.startswith("openvino 20") and found.files[1].ratio > 0


INTERRUPTED = """
import gc, signal, sys
import numpy as np
from pathlib import Path
from onnx_obc.targets.registry import TARGETS

signal.signal(signal.SIGINT, signal.default_int_handler)
data = np.load(sys.argv[2])
feed = {data.files[0]: data[data.files[0]][:4]}
first, second = (TARGETS["openvino"].engine.load(Path(sys.argv[1]), feed, 1) for _ in range(2))
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
    print("nothing happened")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_an_interrupt_after_two_files_is_an_interrupt() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED, str(MODEL), str(CALIBRATION)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_what_cannot_be_loaded_or_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:1000])
    with pytest.raises(EngineError, match="openvino cannot load"):
        OPENVINO.load(tmp_path / "cut.onnx", FEED, 1)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(EngineError, match=r"install onnx-obc\[openvino\]"):
        OPENVINO.version()
