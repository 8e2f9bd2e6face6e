"""Files against each other in one engine, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import CALIBRATION, MODEL, refused, run_cli, small

from onnx_obc import Recipe, compress
from onnx_obc.core.errors import EngineError
from onnx_obc.targets.bench import bench, compare

NAME = np.load(CALIBRATION).files[0]
FEED = {NAME: np.load(CALIBRATION)[NAME][:4]}


@pytest.mark.slow
def test_a_file_against_itself_and_another(tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    compress(MODEL, CALIBRATION, Recipe(solver="baseline"), out)
    seen: list[int] = []
    found = bench((MODEL, MODEL, out), "onnxruntime", FEED, rounds=3, progress=lambda _, done, total: seen.append(done))
    dense, same, quantized = found.files
    assert dense.ratio == 1 and dense.low == dense.high == 1 and same.sqnr_db == np.inf and same.top1 == 1
    assert 10 < quantized.sqnr_db < np.inf and quantized.bytes == out.stat().st_size
    assert all(entry.seconds > 0 and entry.low <= entry.ratio <= entry.high for entry in found.files)
    assert found.batch == 4 and found.rounds == 3 and sum(seen) == 3
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (
        plain["files"][1]["sqnr_db"] is None
        and plain["files"][1]["equal"]
        and plain["runtime"].startswith("onnxruntime ")
    )


def test_outputs_are_compared_by_name_or_else_in_order() -> None:
    y = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert compare({"y": y}, {"x": y[::-1], "y": y}) == (np.inf, 1.0)
    db, top1 = compare({"y": y}, {"z": y[::-1]})
    assert db == pytest.approx(-3.01, abs=0.01) and top1 == 0.0
    assert compare({"y": y}, {"y": y[:1]}) == (-np.inf, None)
    db, top1 = compare({"n": np.array([1, 2])}, {"n": np.array([1, 2])})
    assert np.isnan(db) and top1 is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.json"
    assert run_cli("bench", MODEL, MODEL, "--calib", CALIBRATION, "--batch", 8, "--rounds", 2, "--json", out) == 0
    printed = capsys.readouterr()
    assert "equal" in printed.out and "batch 8" in printed.out and printed.err == ""
    plain = json.loads(out.read_text())
    assert len(plain["files"]) == 2 and not plain["synthetic"] and "random" not in printed.out


def test_on_random_numbers_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "b.json", tmp_path / "b.html"
    assert run_cli("bench", MODEL, MODEL, "--rounds", 1, "--json", out, "--html", page) == 0
    assert "outputs are of random numbers" in " ".join(capsys.readouterr().out.split())
    assert json.loads(out.read_text())["synthetic"] and "of random numbers" in page.read_text(encoding="utf-8")


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "two or more" in refused(capsys, "bench", MODEL)
    assert "at least 1" in refused(capsys, "bench", MODEL, MODEL, "--rounds", 0)
    assert "--threads 0: ask for at least 1" in refused(capsys, "bench", MODEL, MODEL, "--threads", 0)
    assert "--threads -3" in refused(capsys, "check", MODEL, "--target", "onnxruntime", "--threads", -3)
    assert "does not exist" in refused(capsys, "bench", MODEL, tmp_path / "none.onnx")
    other = tmp_path / "other.onnx"
    onnx.save(small(), other)
    name = np.load(CALIBRATION).files[0]
    line = f"error: {other} takes input 'x', which {MODEL} has not; name files with the same inputs"
    assert refused(capsys, "bench", MODEL, other) == line
    assert f"takes input {name!r}, which {other} has not" in refused(capsys, "bench", other, MODEL)
    onnx.save(small(columns=3), tmp_path / "narrow.onnx")
    line = (
        f"error: {tmp_path / 'narrow.onnx'} takes float32[any, 3] for input 'x', but {other} was given float32[1, 4]; "
    )
    assert refused(capsys, "bench", other, tmp_path / "narrow.onnx").startswith(line)
    with pytest.raises(EngineError):
        bench((MODEL, tmp_path / "none.onnx"), "onnxruntime", FEED)
