"""DeepSparse: a worker that answers, says what is wrong, dies or hangs; and the engine itself, where it is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.runtime.sqnr import agreement_db
from onnx_obc.targets.bench import bench
from onnx_obc.targets.check import check_file
from onnx_obc.targets.deepsparse import engine as deepsparse
from onnx_obc.targets.registry import TARGETS

NAME = np.load(CALIBRATION).files[0]
FEED = {NAME: np.load(CALIBRATION)[NAME][:4]}


def worker(tmp_path: Path, body: str, timeout: float = 20.0) -> deepsparse.Worker:
    """A worker that runs these lines for each request."""
    path = tmp_path / "worker.py"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    path.write_text(f"import json, os, sys\nfor line in sys.stdin:\n    request = json.loads(line)\n{lines}\n")
    return deepsparse.Worker([sys.executable, str(path)], timeout)


def alive(worker: deepsparse.Worker) -> bool:
    return worker._process.poll() is None


def test_it_answers(tmp_path: Path) -> None:
    one = worker(tmp_path, "print(json.dumps({'twice': 2 * request['x'], 'long': 'y' * 300000}), flush=True)")
    assert one.ask({"do": "double", "x": 4})["twice"] == 8
    assert len(one.ask({"do": "double", "x": 5})["long"]) == 300000
    folder = one.folder
    one.close()
    assert not alive(one) and not folder.exists()
    one.close()  # once more does no harm


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print(json.dumps({'error': 'ValueError: no such thing'}), flush=True)", "cannot load the file: ValueError"),
        ("sys.stderr.write('Stack trace: 0x1\\n'); sys.stderr.flush(); os.abort()", r"signal 6.*Stack trace: 0x1"),
        ("sys.exit(3)", r"exit code 3.*it said nothing"),
        ("print('Segmentation', flush=True)", "the worker answered b'Segmentation"),
        ("sys.stdin.read()", "within 0.5 s and was ended"),
    ],
)
def test_whatever_goes_wrong_there_is_an_error_here(tmp_path: Path, body: str, said: str) -> None:
    one = worker(tmp_path, body, 0.5 if "read" in body else 20.0)
    with pytest.raises(EngineError, match=said):
        one.ask({"do": "load"})
    one.close()
    assert not alive(one)


def test_a_worker_that_is_gone_before_it_is_asked(tmp_path: Path) -> None:
    one = deepsparse.Worker([sys.executable, "-c", "raise SystemExit('no engine here')"])
    one._process.wait()
    with pytest.raises(EngineError, match="no engine here"):
        one.ask({"do": "load"})
    one.close()


def test_no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(deepsparse.SETTING, str(tmp_path))
    with pytest.raises(EngineError, match=r"tools/make_deepsparse_env\.sh"):
        deepsparse.version()
    monkeypatch.setenv(deepsparse.SETTING, sys.executable)  # a Python without it
    with pytest.raises(EngineError, match="has no deepsparse"):
        deepsparse.version()
    found = check_file(MODEL, "deepsparse", FEED)
    assert not found.ran and "has no deepsparse" in found.engine


def test_the_worker_starts_without_this_package() -> None:
    """It gets by with what DeepSparse's environment has: it fails for want of deepsparse, and of nothing else."""
    command = [sys.executable, "-I", str(deepsparse.WORKER)]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert "No module named 'deepsparse'" in done.stderr


def installed() -> bool:
    try:
        deepsparse.version()
    except EngineError:
        return False
    return True


needs_deepsparse = pytest.mark.skipif(
    not installed(), reason="DeepSparse's environment is not there: tools/make_deepsparse_env.sh"
)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deepsparse") / "s.onnx"
    options: dict[str, Any] = {"sparsity": "block4:0.8", "solver": "baseline"}
    compress(MODEL, CALIBRATION, Recipe(target="deepsparse", **options), out)
    return out


@needs_deepsparse
def test_the_engine_runs_our_files_in_integers(sparse: Path) -> None:
    found = check_file(sparse, "deepsparse", FEED)
    kept, promised = found.count("int8")
    assert found.ran and kept == promised > 10 and not found.failed
    skipped = [entry.skipped for entry in found.executions if entry.skipped]
    assert skipped and max(skipped) > 0.7


@needs_deepsparse
def test_the_file_stays_as_it_is() -> None:
    """DeepSparse itself writes the input's shape into the file that it is given."""
    before = MODEL.read_bytes()
    TARGETS["deepsparse"].engine.load(MODEL, FEED, 1).close()
    assert MODEL.read_bytes() == before


@needs_deepsparse
def test_its_outputs_are_onnxruntimes(sparse: Path) -> None:
    for path, least in ((MODEL, 80.0), (sparse, 10.0)):
        loaded = TARGETS["deepsparse"].engine.load(path, FEED, 1)
        found, wanted = loaded.run(FEED), TARGETS["onnxruntime"].engine.load(path, FEED, 1).run(FEED)
        loaded.close()
        assert all(agreement_db(wanted[name], found[name]) > least for name in wanted)


@needs_deepsparse
def test_files_against_each_other(sparse: Path) -> None:
    found = bench((MODEL, sparse), "deepsparse", FEED, 1, rounds=2)
    assert found.runtime == "deepsparse 1.8.0" and all(entry.seconds > 0 for entry in found.files)


@needs_deepsparse
def test_what_it_refuses_is_an_error(tmp_path: Path) -> None:
    foreign = onnx.load(MODEL)
    foreign.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert {finding.rule for finding in check_file(tmp_path / "foreign.onnx", "deepsparse").findings} == {"domain"}
    with pytest.raises(EngineError, match="deepsparse"):
        TARGETS["deepsparse"].engine.load(tmp_path / "foreign.onnx", FEED, 1)
