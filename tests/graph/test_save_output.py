from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnx_obc.core.errors import OutputError
from onnx_obc.graph.save import check_output, place_model


def test_a_place_that_can_be_written(tmp_path: Path) -> None:
    assert check_output(str(tmp_path / "out.onnx"), "in.onnx") == tmp_path / "out.onnx"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_until_it_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    check_output(target, tmp_path / "in.onnx")
    assert target.read_bytes() == b"old"


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder; name a file in it"):
        check_output(tmp_path, "in.onnx")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(OutputError, match=f"cannot write {path}: it is not a regular file; name another file"):
            check_output(path, "in.onnx")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"folder .*nowhere does not exist; create it first"):
        check_output(tmp_path / "nowhere" / "out.onnx", "in.onnx")


def test_the_model_itself(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"model")
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "sub").mkdir()
    for same in (source, tmp_path / "link.onnx", tmp_path / "sub" / ".." / "m.onnx"):
        with pytest.raises(OutputError, match="it is the model itself; name another file"):
            check_output(same, source)
    assert check_output(source, b"bytes of a model") == source


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnx_obc.graph.save.tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="Permission denied; choose another folder"):
        check_output(tmp_path / "out.onnx", "in.onnx")


@pytest.mark.parametrize("data", [False, True])
def test_moves_the_model_and_its_data(data: bool, tmp_path: Path) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "folder"
    scratch.mkdir()
    folder.mkdir()
    (scratch / "out.onnx").write_bytes(b"new")
    (folder / "out.onnx").write_bytes(b"old")
    (folder / "other").write_bytes(b"other")
    if data:
        (scratch / "out.onnx.data").write_bytes(b"weights")
    place_model(scratch / "out.onnx", folder / "out.onnx")
    assert (folder / "out.onnx").read_bytes() == b"new"
    assert sorted(path.name for path in folder.iterdir()) == ["other", "out.onnx", *["out.onnx.data"] * data]
    assert list(scratch.iterdir()) == []


def test_a_move_that_fails(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "out.onnx").write_bytes(b"new")
    with pytest.raises(OutputError, match=r"cannot write .*out.onnx: .*; choose another folder or make room"):
        place_model(scratch / "out.onnx", tmp_path / "nowhere" / "out.onnx")
    assert (scratch / "out.onnx").read_bytes() == b"new"
