from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from digits import CALIBRATION, MODEL, TEST, run_cli, top1

from onnx_obc import compress
from onnx_obc.cli.demo import LEVELS, accuracy, demo_folder
from onnx_obc.core.errors import ModelError, RecipeError
from onnx_obc.pipeline.recipe import make_recipe

ROOT = Path(__file__).parents[2]


def test_the_files_are_found() -> None:
    assert (demo_folder() / "digits.onnx").read_bytes() == MODEL.read_bytes()
    assert 0.98 < accuracy(MODEL, TEST) < 1


def test_without_its_files_the_demo_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnx_obc.cli.demo.__file__", str(tmp_path / "onnx_obc" / "cli" / "demo.py"))
    with pytest.raises(ModelError, match="install onnx-obc again"):
        demo_folder()


@pytest.mark.slow
def test_the_demo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_cli("demo", "--quiet") == 0
    shown = capsys.readouterr().out
    rows = [re.findall(r"([\d.]+) %", line) for line in shown.splitlines() if line.count("%") == 3]
    assert len(rows) == len(LEVELS)
    for dense, baseline, exact in [[float(share) for share in row] for row in rows]:
        assert dense > 98 and exact > 90 and exact > baseline - 1
    assert float(rows[-1][2]) > float(rows[-1][1]) + 30  # magnitude pruning of blocks breaks the model
    assert all(name in shown for name, _ in LEVELS)


def test_the_demo_compares_like_with_like() -> None:
    """Both columns of its table are the same recipe but for the solver."""
    values = dict(LEVELS)["int3"]
    exact, baseline = (make_recipe({**values, "solver": solver}) for solver in ("exact", "baseline"))
    assert exact == baseline.model_copy(update={"solver": "exact"})


@pytest.mark.slow
def test_the_wheel_holds_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    held = {path.name for path in (tmp_path / "site" / "onnx_obc" / "cli" / "demo_data").iterdir()}
    assert held == {"README.md", MODEL.name, CALIBRATION.name, TEST.name}
    code = "import onnx_obc.cli.demo as demo; print(demo.demo_folder(), demo.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", check=True, capture_output=True, text=True
    )
    assert [Path(path).parent for path in found.stdout.split()] == [tmp_path / "site" / "onnx_obc" / "cli"] * 2
    assert (tmp_path / "site" / "onnx_obc" / "py.typed").is_file()


@pytest.mark.slow
def test_a_model_of_the_demo_can_be_compressed_again(tmp_path: Path) -> None:
    """Compressing what is compressed already says so instead of doing it twice."""
    compress(MODEL, CALIBRATION, output=tmp_path / "a.onnx")
    before = top1(tmp_path / "a.onnx")
    with pytest.raises(RecipeError, match="already quantized"):
        compress(tmp_path / "a.onnx", CALIBRATION, output=tmp_path / "b.onnx")
    assert top1(tmp_path / "a.onnx") == before and not (tmp_path / "b.onnx").exists()
