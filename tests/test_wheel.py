"""The wheel, installed alone in an environment of its own, with the dependencies of this one in sight."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from digits import MODEL

ROOT = Path(__file__).parents[1]
# What mypy need not read to see our types: the packages of others.
CONFIG = """
[mypy]
strict = true
[mypy-torch.*,onnx.*,onnx_ir.*,scipy.*,rich.*,cyclopts.*,matplotlib.*,PIL.*,jinja2.*,numba.*,onnxruntime.*,tokenizers.*]
follow_imports = skip
ignore_missing_imports = true
"""
USER = """
from collections.abc import Mapping

import numpy as np

from onnx_obc import Database, Evaluation, ObcError, Recipe, Result, Rule, compress, debug_models, open_database


def score(outputs: Mapping[str, np.ndarray]) -> float:
    return float(outputs["y"].mean())


def use(path: str) -> float | None:
    recipe = Recipe(weights="int4", activations="none", layers=(Rule(match="a", skip=True),))
    try:
        result: Result = compress(path, {"x": np.zeros((4, 2), np.float32)}, recipe, evaluation=Evaluation(score))
    except ObcError as error:
        return float(error.exit_code)
    opened: Database = open_database(path)
    reveal_type(debug_models(path, path))
    reveal_type(result.report.layers)
    return result.report.output_loss


wrong: int = compress("a")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and sees the packages here but not this copy of ours."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    (Path(site) / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True)
    return python


def run(python: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_runs(python: Path, tmp_path: Path) -> None:
    where = run(python, tmp_path, "-c", "import onnx_obc; print(onnx_obc.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(python.parents[1]), where
    script = python.with_name(f"onnx-obc{python.suffix}")
    assert run(script, tmp_path, "--version").stdout.strip()
    shown = run(script, tmp_path, "inspect", MODEL)
    assert shown.returncode == 0 and "Conv" in shown.stdout, shown.stderr


@pytest.mark.slow
def test_users_have_its_types(python: Path, tmp_path: Path) -> None:
    """mypy from outside, strictly: names are typed, and a wrong use is told."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    checker = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", ".cache"]
    found = run(Path(checker[0]), tmp_path, *checker[1:], "user.py").stdout
    assert found.count("error:") == 2 and "call-arg" in found, found  # the last line: no data, and no int
    assert '"onnx_obc.debug.record.Debug"' in found, found
    assert '"tuple[onnx_obc.' in found or '"list[onnx_obc.' in found or '"Sequence[onnx_obc.' in found, found
