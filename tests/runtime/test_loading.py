from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from small_graphs import build, random

from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import save_model
from onnx_obc.runtime import loading
from onnx_obc.runtime.session import open_session

X = random(5, 64)


def product(folder: Path, places: tuple[str, str]) -> Path:
    """A model of two products whose weights lie in these files."""
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    weights = {"v": random(64, 64), "w": random(64, 64, seed=1)}
    model = build(nodes, {"x": ("n", 64)}, {"y": ("n", 64)}, weights)
    for tensor, place in zip(model.graph.initializer, places, strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with (folder / place).open("ab") as file:
            start = file.tell()
            file.write(tensor.raw_data)
        set_external_data(tensor, place, start, len(tensor.raw_data))
        tensor.ClearField("raw_data")
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, str]]:
    """What sessions are made of, and whether they keep weights where they are."""
    found: list[tuple[object, str]] = []
    original = onnxruntime.InferenceSession

    def spy(source: object, options: onnxruntime.SessionOptions, **others: object) -> object:
        try:
            mapped = options.get_session_config_entry("session.disable_prepacking")
        except RuntimeError:
            mapped = ""
        found.append((source, mapped))
        return original(source, options, **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    return found


@pytest.mark.parametrize(
    "places", [("a.bin", "a.bin"), ("a.bin", "b.bin"), ("in/a.bin", "in/deep/b.bin"), ("a", "in/b")]
)
def test_weights_beside_the_file_are_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[tuple[object, str]], places: tuple[str, str]
) -> None:
    model = read_model(product(tmp_path, places))
    monkeypatch.setattr(loading, "convert_tensors_to_external", None)  # nothing is copied
    for outputs in (None, ["h", "y"]):
        found = open_session(model, outputs, device="cpu").run({"x": X})["y"]
        np.testing.assert_allclose(found, X @ random(64, 64) @ random(64, 64, seed=1), rtol=1e-3, atol=1e-3)
    assert [type(source) for source, _ in opened] == [bytes, bytes]
    assert all(len(source) < 1000 for source, _ in opened)  # type: ignore[arg-type]
    held = [value.const_value for value in model.graph.initializers.values()]
    assert [str(tensor.location) for tensor in held if isinstance(tensor, ir.ExternalTensor)] == list(places)


def test_weights_of_several_folders_and_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [read_model(product(tmp_path / name, ("a.bin", "b.bin"))) for name in ("one", "two")]
    mixed, other = models
    mixed.graph.initializers["w"].const_value = other.graph.initializers["w"].const_value
    expected = open_session(mixed, device="cpu").run({"x": X})["y"]
    np.testing.assert_allclose(expected, X @ random(64, 64) @ random(64, 64, seed=1), rtol=1e-3, atol=1e-3)
    mixed.graph.initializers["v"].const_value = ir.Tensor(random(64, 64), name="v")
    for limit in (loading.IN_MEMORY_BYTES, 1000):
        monkeypatch.setattr(loading, "IN_MEMORY_BYTES", limit)
        np.testing.assert_array_equal(open_session(mixed, device="cpu").run({"x": X})["y"], expected)


def test_many_weights_in_memory_go_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[tuple[object, str]]
) -> None:
    weight = numpy_helper.to_array(numpy_helper.from_array(random(64, 64)))
    model = ir.from_proto(
        build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ("n", 64)}, {"y": ("n", 64)}, {"w": weight})
    )
    expected = open_session(model, device="cpu").run({"x": X})["y"]
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 4 * 64 * 64)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    np.testing.assert_array_equal(open_session(model, device="cpu").run({"x": X})["y"], expected)
    assert [len(source) < 1000 for source, _ in opened] == [False, True]  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    held = model.graph.initializers["w"].const_value
    assert held is not None
    assert not isinstance(held, ir.ExternalTensor)


def test_large_weights_are_not_rearranged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[tuple[object, str]]
) -> None:
    path = product(tmp_path, ("a.bin", "a.bin"))
    model = read_model(path)
    save_model(model, tmp_path / "copy.onnx")
    for limit in (4 * 2 * 64 * 64, 4 * 2 * 64 * 64 + 1):
        monkeypatch.setattr(loading, "MAPPED_BYTES", limit)
        for each in (model, path, tmp_path / "copy.onnx"):
            open_session(each, device="cpu")
    assert [mapped for _, mapped in opened] == ["1"] * 3 + [""] * 3
