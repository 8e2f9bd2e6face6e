"""The order of channels in a database: found by the first build, kept by all that comes after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import psutil
import pytest
from digits import build as graph
from digits import listing
from onnx import TensorProto, helper

from onnx_obc import DatabaseError, Recipe, build, open_database
from onnx_obc.core.level import Choice, parse_choice
from onnx_obc.correction.transforms.channel_orders import ORDERS, in_same_order
from onnx_obc.database import build as building
from onnx_obc.database.files import content_key, read_arrays, write_arrays
from onnx_obc.database.open import Database
from onnx_obc.database.orders import FILE
from onnx_obc.pipeline.finish import Destination
from onnx_obc.pipeline.plan import prepare
from onnx_obc.runtime.session import open_session

X = np.random.default_rng(1).standard_normal((120, 16)).astype(np.float32)
LEVELS, PATTERN = "8w8a,2:4,sparse-0.50", parse_choice("2:4")
RECIPE = Recipe(device="cpu", threads=1)


def two_products() -> onnx.ModelProto:
    """y = relu(x A) B: the 32 channels between can have any order."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate([(16, 32), (32, 8)])}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["y"], name="second"),
    ]
    return graph(nodes, {"x": (TensorProto.FLOAT, ["N", 16])}, {"y": ["N", 8]}, weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished database. Not to be changed."""
    folder = tmp_path_factory.mktemp("orders") / "db"
    build(two_products(), {"x": X}, LEVELS, folder, RECIPE)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def loss(database: Database, layer: str) -> float:
    (found,) = [one for one in database.layers if one.name == layer]
    return database.solved(found, PATTERN).solution.loss


def outputs(model: object) -> np.ndarray:
    return open_session(model, ["y"]).run({"x": X})["y"]  # type: ignore[arg-type]


def test_the_model_is_the_same_in_another_order_which_costs_its_layer_less(whole: Path, tmp_path: Path) -> None:
    database = open_database(whole)
    given = prepare(database.folded.given)
    before, after = (
        [v.const_value.numpy() for v in m.graph.initializers.values()] for m in (given.model, database.graph)
    )
    assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    np.testing.assert_allclose(outputs(database.graph), outputs(given.model), atol=1e-5)

    build(two_products(), {"x": X}, LEVELS, tmp_path / "as-given", Recipe(device="cpu", threads=1, effort="fast"))
    as_given = open_database(tmp_path / "as-given")
    assert all(
        np.array_equal(one, value.const_value.numpy())
        for one, value in zip(before, as_given.graph.graph.initializers.values(), strict=True)
    )
    assert loss(database, "second") < loss(as_given, "second")
    assert loss(database, "first") == pytest.approx(loss(as_given, "first"), rel=1e-5)  # its input is the model's own


def test_files_and_reports_tell_the_order_where_a_layer_has_groups(whole: Path, tmp_path: Path) -> None:
    database = open_database(whole)
    names = list(database.choices)

    def written(choice: Choice) -> tuple[onnx.ModelProto, list[tuple[str, ...]]]:
        path = tmp_path / "out.onnx"
        result = database.write(dict.fromkeys(names, choice), RECIPE, Destination(path))
        assert all(check.passed for check in result.report.checks)
        return onnx.load(path), [attempt.kinds for attempt in result.report.corrections]

    model, kinds = written(PATTERN)
    assert ("channel permutation",) in kinds
    assert ORDERS in {entry.key for entry in model.metadata_props}
    assert ("channel permutation",) not in written(parse_choice("sparse-0.50"))[1]


def test_building_again_and_adding_levels_keeps_it(whole: Path, copy: Path) -> None:
    built = build(two_products(), {"x": X}, LEVELS, copy, RECIPE)
    assert (built.solved, built.captured) == (0, False) and listing(copy) == listing(whole)
    built = build(two_products(), {"x": X}, "4:8", copy, RECIPE)
    assert built.solved == 2 and not built.captured
    assert (copy / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_database_without_patterns_stays_in_the_models_order(tmp_path: Path) -> None:
    """What it has would otherwise have to be solved anew."""
    folder = tmp_path / "db"
    build(two_products(), {"x": X}, "8w8a", folder, RECIPE)
    built = build(two_products(), {"x": X}, "2:4", folder, RECIPE)
    assert built.manifest.orders is None and not built.captured and (built.reused, built.solved) == (2, 2)


def test_a_build_killed_while_it_adds_levels_goes_on_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        build(two_products(), {"x": X}, "8w8a", folder, RECIPE)
    build(two_products(), {"x": X}, "2:4", folders[0], RECIPE)
    with monkeypatch.context() as patched:
        patched.setattr(building, "_schedule", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(two_products(), {"x": X}, "2:4", folders[1], RECIPE)
    with pytest.raises(DatabaseError, match="is not finished"):
        open_database(folders[1])
    built = build(two_products(), {"x": X}, "2:4", folders[1], RECIPE)
    assert (built.reused, built.captured) == (2, False) and listing(folders[0]) == listing(folders[1])


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["flip", "header", "gone"])
def test_damage_is_found_and_mended_by_building_again(damage: str, copy: Path, whole: Path) -> None:
    file = copy / FILE
    data = bytearray(file.read_bytes())
    data[-3 if damage == "flip" else data.index(b"places")] ^= 1
    file.unlink() if damage == "gone" else file.write_bytes(data)
    with pytest.raises(DatabaseError, match=r"orders\.safetensors is (damaged|missing).*run the same onnx-obc build"):
        open_database(copy)
    build(two_products(), {"x": X}, LEVELS, copy, RECIPE)
    assert listing(copy) == listing(whole)


@pytest.mark.parametrize(("change", "said"), [("twice", "it has no orders"), ("elsewhere", "finds other channels")])
def test_orders_that_fit_no_channels_are_refused(change: str, said: str, copy: Path) -> None:
    manifest = (copy / "manifest.json").read_text()
    key = open_database(copy).manifest.orders
    arrays, info = read_arrays(copy / FILE, key)
    if change == "twice":
        arrays = {name: np.zeros_like(order) for name, order in arrays.items()}
    else:
        info["places"] = [["nowhere", axis, first] for _, axis, first in info["places"]]
    other = content_key(info, *(arrays[str(number)] for number in range(len(arrays))))
    write_arrays(copy / FILE, arrays, other, info)
    (copy / "manifest.json").write_text(manifest.replace(str(key), other))
    with pytest.raises(DatabaseError, match=said):
        open_database(copy)


@pytest.mark.parametrize("option", [{"memory": 1e-6}, {"effort": "fast"}])
def test_what_kept_channels_from_being_reordered_is_told_where_it_might_have_helped(
    option: dict[str, object], tmp_path: Path
) -> None:
    folder = tmp_path / "db"
    build(two_products(), {"x": X}, "2:4,8w8a", folder, RECIPE.model_copy(update=option))
    built = build(two_products(), {"x": X}, "2:4,8w8a", folder, RECIPE)
    assert built.solved == 0
    database = open_database(folder)

    def told(choice: Choice) -> bool:
        report = database.write(dict.fromkeys(database.choices, choice), RECIPE).report
        return any("not reordered" in note and "in another folder" in note for note in report.notes)

    assert told(PATTERN) and not told(parse_choice("8w8a"))


def test_it_does_not_depend_on_free_memory(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    little = psutil.virtual_memory()._replace(available=1000)
    with monkeypatch.context() as patched:
        patched.setattr(psutil, "virtual_memory", lambda: little)
        build(two_products(), {"x": X}, LEVELS, tmp_path / "db", RECIPE)
    assert (tmp_path / "db" / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_the_dense_model_follows_a_written_one(whole: Path) -> None:
    """Its values can then be compared channel by channel."""
    database = open_database(whole)
    follows = in_same_order(database.dense, database.graph)
    hidden = [open_session(m, ["b"]).run({"x": X})["b"] for m in (database.dense, follows, database.graph)]
    assert not np.allclose(hidden[0], hidden[2], atol=1e-3)
    np.testing.assert_allclose(hidden[1], hidden[2], atol=1e-5)
