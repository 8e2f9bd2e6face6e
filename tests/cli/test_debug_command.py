"""`onnx-obc debug`, as it is typed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from digits import CALIBRATION, MODEL, listing, refused, run_cli, small

from onnx_obc import Recipe, compress
from onnx_obc.pipeline.recipe import read_recipe

DATA = ("--calib", CALIBRATION, "--samples", 32)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("debug") / "small.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline", weights="int4"), output=path)
    return path


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_table_the_page_the_figures_and_the_recipe(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "debug",
        MODEL,
        compressed,
        *DATA,
        "--fix",
        2,
        "-o",
        "fix.yaml",
        "--html",
        "p.html",
        "--report",
        "r.json",
    ]
    assert run_cli(*command) == 0
    said = capsys.readouterr().out
    assert "The first value below 20 dB" in said and "written: fix.yaml, which returns 2 layers" in said
    figures = json.loads(Path("r.json").read_text())
    assert figures["schema"] == 1 and len(figures["layers"]) == 20 and len(figures["returns"]) == 10
    page = Path("p.html").read_text()
    assert page.lower().startswith("<!doctype html>") and 'id="layers"' in page and "accumulated" in page
    rules = read_recipe("fix.yaml").layers
    assert [rule.match for rule in rules] == [row["layer"] for row in figures["returns"][:2]]
    command = [MODEL, "again.onnx", "--calib", CALIBRATION, "--recipe", "fix.yaml", "--solver", "baseline", "--quiet"]
    assert run_cli(*command) == 0


@pytest.mark.slow
def test_the_recipe_has_a_name_of_its_own(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("debug", MODEL, compressed, *DATA, "--fix", 1, "--quiet") == 0
    assert capsys.readouterr().out == "" and [p.name for p in Path().iterdir()] == ["small-fix.yaml"]


@pytest.mark.slow
def test_the_same_file_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("debug", MODEL, MODEL, *DATA, "--fix", 1) == 0
    said = capsys.readouterr().out
    assert "Both files compute the same" in said and "no layer's return gains anything" in said
    assert [path.name for path in Path().iterdir()] == [f"{MODEL.stem}-fix.yaml"]
    assert all(rule.skip for rule in read_recipe(f"{MODEL.stem}-fix.yaml").layers)


@pytest.mark.slow
def test_random_numbers_are_warned_of(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("debug", MODEL, compressed, "--samples", 4) == 0
    assert "note: random numbers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([MODEL, "nowhere.onnx"], "nowhere.onnx"),
        (["nowhere.onnx", MODEL], "nowhere.onnx"),
        ([MODEL], "COMPRESSED is missing"),
        ([MODEL, MODEL, "--fix", 0], "--fix 0: a recipe returns 1 to 10 layers"),
        ([MODEL, MODEL, "--fix", 11], "--fix 11"),
        ([MODEL, MODEL, "-o", "r.yaml"], "say how many layers"),
        ([MODEL, MODEL, "--threshold", "nan"], "--threshold nan: give decibels"),
        ([MODEL, MODEL, "--threads", 0], "--threads 0: ask for at least 1"),
        ([MODEL, MODEL, "--fix", 1, "-o", MODEL], "it is the model itself"),
        ([MODEL, MODEL, "--html", "same", "--report", "same"], "is named twice"),
        ([MODEL, MODEL, "--html", "no/such/page.html"], "no/such"),
        ([MODEL, MODEL, "--calib", "gone.npz"], "gone.npz: not found"),
        ([MODEL, MODEL, "--calib", CALIBRATION, "--report", CALIBRATION], "--calib reads it"),
        ([MODEL, MODEL, "--samples", 0], "--samples 0: ask for at least 1"),
    ],
)
def test_bad_input(arguments: list[object], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refused(capsys, "debug", *arguments)
    assert not list(Path().iterdir())


def test_models_and_data_that_cannot_be_used(
    tmp_path: Path, compressed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.onnx").write_bytes(MODEL.read_bytes()[:1000])
    (tmp_path / "other.onnx").write_bytes(small().SerializeToString())
    np.savez(tmp_path / "nan.npz", image=np.full((8, 1, 8, 8), np.nan, np.float32))
    (tmp_path / "mine.onnx").write_bytes(compressed.read_bytes())
    before = listing(tmp_path)
    assert "truncated or not ONNX" in refused(capsys, "debug", MODEL, "cut.onnx", *DATA)
    assert "these are not the same model" in refused(capsys, "debug", MODEL, "other.onnx", *DATA)
    assert "NaN" in refused(capsys, "debug", MODEL, compressed, "--calib", "nan.npz")
    said = refused(capsys, "debug", MODEL, "mine.onnx", *DATA, "--html", "mine.onnx")
    assert "it is the compressed model" in said and listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for option in (["--fix", 1, "-o"], ["--html"], ["--report"]):
        assert "cannot write into" in refused(capsys, "debug", MODEL, compressed, *DATA, *option, "locked/x")


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(
    compressed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_obc.debug.debug.returns", interrupted)
    assert run_cli("debug", MODEL, compressed, *DATA, "--fix", 1, "--html", "p.html") == 130
    assert "nothing was written" in capsys.readouterr().err and not list(Path().iterdir())
