"""Models whose weights lie beside them go the way of large ones: mapped, with solutions in files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.external_data_helper import set_external_data
from small_graphs import build, random

from onnx_obc.core import mapped
from onnx_obc.core.errors import ModelError
from onnx_obc.core.level import parse_level
from onnx_obc.pipeline import kept, permutation
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.kept import Shelf
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.runtime import loading
from onnx_obc.solver.baselines import uncompensated

FEEDS = {"x": random(40, 64)}


def mlp() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["m"], name="second"),
        helper.make_node("Relu", ["m"], ["s"]),
        helper.make_node("MatMul", ["s", "c"], ["y"], name="third"),
    ]
    weights = {"a": random(64, 96), "b": random(96, 64, seed=1), "c": random(64, 32, seed=2)}
    return build(nodes, {"x": ("n", 64)}, {"y": ("n", 32)}, weights)


def beside(model: onnx.ModelProto, path: Path) -> Path:
    """The model with each weight in a file of its own, two of them in a folder."""
    path.parent.mkdir()
    for tensor, place in zip(model.graph.initializer, ("a.bin", "in/b.bin", "in/c.bin"), strict=True):
        (path.parent / place).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / place).write_bytes(tensor.raw_data)
        set_external_data(tensor, place, 0, len(tensor.raw_data))
        tensor.ClearField("raw_data")
    onnx.save(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int4", "activations": "none", "block": 32, "sequential": False},
        {"weights": "int8"},
        {"weights": "float", "activations": "none", "sparsity": "0.5"},
        # without an order of channels, which the last digits can decide
        {"weights": "int4", "activations": "none", "sequential": True, "block": 32, "effort": "fast"},
    ],
    ids=["int4", "int8", "sparse", "in order"],
)
def test_a_large_model_becomes_what_a_small_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    recipe = Recipe.model_validate({**options, "target": "onnxruntime", "device": "cpu", "measure_speed": False})
    expected = compress(mlp(), FEEDS, recipe, tmp_path / "small.onnx")
    monkeypatch.setattr(loading, "MAPPED_BYTES", 1)
    monkeypatch.setattr(loading, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(kept, "MAPPED_BYTES", 1)
    monkeypatch.setattr(permutation, "HELD", 0)  # channels are reordered all the same
    monkeypatch.setattr(Recipe, "memory_bytes", lambda self: 1.0)
    source = beside(mlp(), tmp_path / "model" / "model.onnx")
    found = compress(source, FEEDS, recipe, tmp_path / "large.onnx")
    assert all(check.passed for check in found.report.checks)
    assert [layer.level for layer in found.report.layers] == [layer.level for layer in expected.report.layers]
    losses = [[layer.loss for layer in result.report.layers] for result in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    one, other = (onnx.load(tmp_path / name) for name in ("small.onnx", "large.onnx"))
    weights = [
        {x.name: onnx.numpy_helper.to_array(x).astype(np.float64) for x in m.graph.initializer} for m in (one, other)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():  # products are summed up in another order, which may move a code by a step
        if recipe.sequential and not name.startswith("first"):
            continue  # and what one layer's codes compute is what those behind it are solved on: losses are alike
        different = array != weights[1][name]
        assert different.mean() < 0.02 or array.dtype.kind == "f", name
        np.testing.assert_allclose(
            array, weights[1][name], atol=1.01 if different.mean() < 0.02 else 1e-3, err_msg=name
        )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_solutions_beyond_the_memory_wait_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAPPED_BYTES", 1000)
    solution = uncompensated(random(1, 32, 64), parse_level("int4-asym"), "minmax")
    size = 32 * 64 * 5 + 32 * 8
    shelf = Shelf(size)
    first, second = shelf.keep(solution), shelf.keep(solution)
    assert [isinstance(x.weights, np.memmap) for x in (first, second)] == [False, True]
    assert solution.codes is not None
    for each in (first, second):
        assert each.codes is not None
        assert each.codes.dtype == np.uint8
        np.testing.assert_array_equal(each.codes, solution.codes)
        np.testing.assert_array_equal(each.weights, solution.weights)
        assert each.grid is not None
        np.testing.assert_array_equal(each.grid.dequantize(each.codes), each.weights)


def test_no_room_for_the_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> object:
        return Path("/dev/full").open("wb")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(mapped.tempfile, "TemporaryFile", full)
    with pytest.raises(ModelError, match=r"no room for .* solved weights in .*; set TMPDIR") as caught:
        mapped.in_temporary_file(random(1000, 1000), "solved weights")
    assert "\n" not in str(caught.value)


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import save_model
from onnx_obc.pipeline.plan import prepare
from onnx_obc.runtime import loading
from onnx_obc.runtime.session import open_session

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

loading.MAPPED_BYTES = 1 << 20
x = {"x": np.ones((2, 2048), np.float32)}
path = Path(sys.argv[1])
before = own()
dense = read_model(path)
folded = prepare(dense)
assert all(np.isfinite(layer.weight).all() for layer in find_layers(folded.model)[0])
sessions = [open_session(model, device="cpu") for model in (dense, folded.model, path)]
sessions.append(open_session(folded.model, ["h0", "h5"], device="cpu"))
for session in sessions:
    session.run(x)
save_model(folded.model, path.with_name("copy.onnx"))
print(own() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory without pages of files is told by Linux alone"
)
def test_reading_running_and_writing_keep_weights_out_of_memory(tmp_path: Path) -> None:
    """Four sessions, a fold and a copy of a model of 200 MB take less than half of it."""
    from onnx import TensorProto

    tensors, nodes = [], []
    with (tmp_path / "weights.bin").open("wb") as file:
        for index in range(12):
            tensor = onnx.TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[2048, 2048])
            tensor.raw_data = b"-"
            set_external_data(tensor, "weights.bin", file.tell(), 4 * 2048 * 2048)
            tensor.ClearField("raw_data")
            (random(2048, 2048, seed=index) / 45).tofile(file)
            tensors.append(tensor)
            source, out = f"h{index - 1}" if index else "x", f"h{index}" if index < 11 else "y"
            nodes.append(helper.make_node("MatMul", [source, f"w{index}"], [out], name=out))
    model = build(nodes, {"x": ("n", 2048)}, {"y": ("n", 2048)})
    model.graph.initializer.extend(tensors)
    onnx.save(model, tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100e6
    copied = ir.load(tmp_path / "copy.onnx").graph.initializers["w3"].const_value
    assert copied is not None
    np.testing.assert_array_equal(copied.numpy(), random(2048, 2048, seed=3) / 45)
