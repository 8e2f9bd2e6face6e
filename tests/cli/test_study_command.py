"""`onnx-obc study`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from digits import CALIBRATION, MODEL, run_cli


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_weights_alone_write_a_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("study", MODEL, "--bits", "4,2") == 0
    said = capsys.readouterr().out
    assert "At 4 bits per weight" in said and "written: digits-study.html, digits-study.json" in said
    figures = json.loads(Path("digits-study.json").read_text())
    assert figures["bits"] == [2, 4] and len(figures["layers"]) == 20
    assert Path("digits-study.html").read_text().lstrip().lower().startswith("<!doctype html>")


@pytest.mark.slow
def test_with_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["study", MODEL, "--calib", CALIBRATION, "--bits", "4", "--size", "paper", "--prove", "5"]
    assert run_cli(*command, "--html", "s.html", "--report", "s.json", "--recipe", "r.yaml", "--quiet") == 0
    assert capsys.readouterr().out == "" and sorted(p.name for p in tmp_path.iterdir()) == [
        "r.yaml",
        "s.html",
        "s.json",
    ]
    figures = json.loads(Path("s.json").read_text())
    assert figures["size"] == "paper" and figures["chunks"] and len(figures["whole"]) == 3
    assert run_cli(MODEL, "small.onnx", "--calib", CALIBRATION, "--recipe", "r.yaml", "--quiet") == 0


@pytest.mark.slow
def test_the_theory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("study", "--distributions") == 0
    said = capsys.readouterr().out
    assert "19.258" in said or "19.26" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distributions.html", "distributions.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a model, or ask for --distributions"),
        ([MODEL, "--distributions"], "about no model"),
        ([MODEL, "--bits", "4;8"], "write numbers of 2 to 8"),
        ([MODEL, "--bits", "9"], "2 to 8 bits"),
        ([MODEL, "--bits", "²"], "write numbers of 2 to 8"),
        ([MODEL, "--html", "same", "--report", "same"], "is named twice"),
        ([MODEL, "--prove", "10"], "needs --calib"),
        ([MODEL, "--html", "no/such/page.html"], "no/such"),
        ([MODEL, "--report", MODEL], "it is the model itself"),
        (["nowhere.onnx"], "nowhere.onnx"),
        ([MODEL, "--size", "inches"], "--size"),
    ],
)
def test_bad_input(arguments: list[object], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("study", *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said and "\n" not in said and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rows_and_chunks_of_another_size(tmp_path: Path) -> None:
    command = ["study", MODEL, "--calib", CALIBRATION, "--bits", "4", "--rows", "2", "--chunk", "9", "--prove", "5"]
    assert run_cli(*command, "--quiet") == 0
    figures = json.loads(Path("digits-study.json").read_text())
    assert figures["chunk"] == 9 and figures["how"]["rows"] == 2
    assert all(layer["studied"] <= max(2, layer["groups"]) for layer in figures["layers"])
    assert figures["chunks"] and all(chunk["columns"][1] <= 9 for chunk in figures["chunks"])


def test_the_size_of_images_has_a_name_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for command, both in (("build", True), ("study", False)):
        assert run_cli(command, "--help-all") == 0
        said = capsys.readouterr().out
        assert "--image-size" in said and ("--image-size --size" in said) == both
