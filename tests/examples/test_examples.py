"""Every example runs as it stands."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PYTHON = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "torch" in path.read_text(encoding="utf-8") and importlib.util.find_spec("torch") is None:
        pytest.skip("needs torch")
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out and list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_the_gate_refuses_what_is_too_bad(tmp_path: Path) -> None:
    """The script itself, with `onnx-obc` that is this package."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    command = tmp_path / "bin" / "onnx-obc"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnx_obc.cli.main "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "GATE": "90dB"}
    more = ["--quiet", "--weights", "int4", "--activations", "none", "--solver", "baseline", "--samples", "128"]
    found = subprocess.run(["bash", EXAMPLES / "ci_gate.sh", tmp_path, *more], env=environment, capture_output=True)
    assert found.returncode == 3, found.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert not report["gates"][0]["passed"] and (tmp_path / "small.onnx.rejected").is_file()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        assert not cell.get("outputs")  # as a diff can show it
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    assert "<iframe" in names["result"]._repr_html_() and (tmp_path / "digits-int4.onnx").is_file()  # type: ignore[attr-defined]


def test_the_list_names_all_examples() -> None:
    named = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb")}
