"""Pages, reports and overlays from the command line: of runs, of files, and what is refused before any work."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import listing, refused, run_cli, small


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(small(), "in.onnx")
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    return tmp_path


RUN = ("in.onnx", "out.onnx", "--calib", "x.npz", "--quiet")


def test_the_page_of_a_run_is_that_of_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(*RUN, "--html", "a.html", "--report", "r.json", "--overlay", "o.json") == 0
    assert capsys.readouterr() == ("", "")
    assert run_cli("report", "r.json", "-o", "b.html", "--overlay", "o.onnx") == 0
    assert capsys.readouterr().out == "written: b.html, o.onnx\n"
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()
    overlays = {f"o-{figure}.json" for figure in ("loss", "level", "bytes", "speed")}
    made = {"a.html", "b.html", "r.json", "out.onnx", "o.onnx", *overlays}
    assert set(listing(folder)) == {"in.onnx", "x.npz"} | made
    plain = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert plain["command"] == [*RUN, "--html", "a.html", "--report", "r.json", "--overlay", "o.json"]
    assert "onnx-obc in.onnx out.onnx --calib x.npz" in Path("a.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_page_of_several_budgets(folder: Path) -> None:
    budgets = ("--budget", "size=0.6x", "--budget", "size=0.4x", "--database", "db")
    assert run_cli(*RUN, *budgets, "--html", "a.html", "--overlay", "o.json") == 0
    text = Path("a.html").read_text(encoding="utf-8")
    assert "size=0.6x" in text and "size=0.4x" in text and text.count('class="strip') == 2
    assert {"o-size-0.6x-loss.json", "o-size-0.4x-loss.json"} <= set(listing(folder))
    search = ("search", "db", "-o", "s.onnx", *budgets[:4], "--quiet")
    assert run_cli(*search, "--html", "b.html", "--report", "r.json") == 0
    assert run_cli("report", "r.json", "-o", "c.html") == 0
    assert Path("b.html").read_bytes() == Path("c.html").read_bytes()


def test_pages_of_check_and_bench(folder: Path) -> None:
    assert run_cli("check", "in.onnx", "--target", "onnxruntime", "--html", "c.html") == 0
    assert "in.onnx for onnxruntime" in Path("c.html").read_text(encoding="utf-8")
    assert run_cli("bench", "in.onnx", "in.onnx", "--rounds", "1", "--quiet", "--html", "b.html") == 0
    assert "in.onnx against in.onnx" in Path("b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--html", "out.onnx"), "cannot write the report to out.onnx: the model goes there"),
        (("--html", "in.onnx"), "cannot write in.onnx: it is the model itself"),
        (("--html", "x.npz"), "cannot write x.npz: --calib reads it"),
        (("--html", "r", "--report", "r"), "r is named twice; give every result a file of its own"),
        (("--html", "nowhere/r.html"), "folder nowhere does not exist"),
        (
            ("--overlay", "o.txt"),
            "--overlay o.txt: name a .json file, for Model Explorer, or an .onnx file, for Netron",
        ),
        (("--overlay", "in.onnx"), "cannot write in.onnx: it is the model itself"),
        (("--overlay", "out.onnx"), "cannot write the report to out.onnx: the model goes there"),
        (("--overlay", "nowhere/o.json"), "folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    before = listing(folder)
    assert message in refused(capsys, *RUN, *options)
    assert listing(folder) == before


FILES: dict[str, tuple[bytes | None, str]] = {
    "no file": (None, "r.json: not found; give the file that --report wrote"),
    "empty": (b"", "r.json: is no JSON (Expecting value"),
    "no JSON": (b"{", "r.json: is no JSON (Expecting property name"),
    "no text": (b"\xff\xfe\x00", "r.json: is not UTF-8 text"),
    "deep": (b"[" * 200_000, "r.json: is no JSON"),
    "something else": (b'{"nodes": []}', "r.json: is no report of a run of onnx-obc"),
    "of debugging": (b'{"schema": 1, "layers": [], "unmatched": []}', "r.json: is no report of a run of onnx-obc that"),
    "a number": (b"3", "r.json: is no report of a run of onnx-obc"),
    "a list of nothing": (b"[]", "r.json: a list without a report"),
    "a list of something else": (b"[1]", "r.json, report 1: is no report of a run of onnx-obc"),
    "half a report": (b'{"schema": 1, "layers": []}', "r.json: version: Field required"),
    "a later one": (b'{"schema": 2, "layers": []}', "r.json: schema 2, but this version reads 1"),
    "numbers that none are": (b'{"schema": NaN, "layers": []}', "r.json: schema nan"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_report_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = FILES[name]
    if content is not None:
        Path("r.json").write_bytes(content)
    before = listing(tmp_path)
    assert message in refused(capsys, "report", "r.json", "-o", "r.html")
    assert listing(tmp_path) == before


def test_a_folder_or_a_pipe_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    assert "folder: is a folder; give the file" in refused(capsys, "report", "folder", "-o", "r.html")
    assert "pipe: is not a regular file; give the file" in refused(capsys, "report", "pipe", "-o", "r.html")


def report_of(folder: Path) -> dict[str, Any]:
    assert run_cli(*RUN, "--report", "r.json") == 0
    plain: dict[str, Any] = json.loads(Path("r.json").read_text(encoding="utf-8"))
    return plain


def test_where_a_page_cannot_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(folder)
    before = listing(folder)
    for output, message in (
        ("r.json", "cannot write r.json: it is the report itself; name another file"),
        ("nowhere/r.html", "folder nowhere does not exist"),
        (".", "it is a folder"),
    ):
        assert message in refused(capsys, "report", "r.json", "-o", output)
    assert "OUTPUT is missing" in refused(capsys, "report", "r.json")
    for overlay, message in (
        ("o.txt", "--overlay o.txt: name a .json file"),
        ("out.onnx", "out.onnx: the model goes there"),
        ("nowhere/o.json", "folder nowhere does not exist"),
    ):
        assert message in refused(capsys, "report", "r.json", "-o", "p.html", "--overlay", overlay)
    Path("out.onnx").unlink()
    assert "model out.onnx does not exist" in refused(capsys, "report", "r.json", "-o", "p.html", "--overlay", "o.onnx")
    assert {name for name in before if name != "out.onnx"} == set(listing(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who may not write everywhere, and this one may")
def test_a_folder_that_is_read_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_of(folder)
    Path("closed").mkdir(0o500)
    message = refused(capsys, "report", "r.json", "-o", "closed/r.html")
    assert re.search(r"cannot write into closed: Permission denied; choose another folder", message)
