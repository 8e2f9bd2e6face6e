from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from small_graphs import assert_same, build, random, run

from onnx_obc.core.errors import ModelError, OutputError
from onnx_obc.graph import save as save_module
from onnx_obc.graph.model import InputSpec, input_specs, read_model
from onnx_obc.graph.save import save_model
from onnx_obc.runtime.session import open_session

node = helper.make_node


def product(**options: int) -> onnx.ModelProto:
    """y = x @ w with a weight of 64 × 64."""
    return build(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 64)}, {"y": ("N", 64)}, {"w": random(64, 64)}, **options
    )


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model whose weight lies in weights.bin beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(product(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def refused(model: object, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(model)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# ------------------------------------------------ reading


def test_all_forms_read_the_same(tmp_path: Path) -> None:
    proto = product()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    x = random(3, 64)
    for form in (path, str(path), path.read_bytes(), proto, ir.from_proto(proto)):
        assert_same(run(read_model(form), {"x": x}), run(proto, {"x": x}), 0)


def test_the_argument_stays_as_it_is() -> None:
    proto, model = product(), ir.from_proto(product())
    before = proto.SerializeToString(deterministic=True), ir.to_proto(model).SerializeToString(deterministic=True)
    for read in (read_model(proto), read_model(model)):
        read.graph.remove(list(read.graph))
        read.graph.initializers["w"].const_value = ir.tensor(np.zeros((64, 64), np.float32))
        read.metadata_props["new"] = "entry"
    assert before[0] == proto.SerializeToString(deterministic=True)
    assert before[1] == ir.to_proto(model).SerializeToString(deterministic=True)


def test_the_long_name_of_the_onnx_domain() -> None:
    proto = product()
    proto.opset_import[0].domain = "ai.onnx"
    assert dict(read_model(proto).opset_imports) == {"": 17}


@pytest.mark.parametrize("imported", ["", "ai.onnx"])
def test_the_long_name_of_the_onnx_domain_in_nodes(imported: str, tmp_path: Path) -> None:
    proto = product()
    proto.opset_import[0].domain = imported
    for entry in proto.graph.node:
        entry.domain = "ai.onnx"
    onnx.save(proto, tmp_path / "m.onnx")
    for model in (read_model(proto), read_model(tmp_path / "m.onnx"), read_model(ir.from_proto(proto))):
        assert {entry.domain for entry in model.graph} == {""}
        assert dict(model.opset_imports) == {"": 17}


def test_sizes_of_minus_one_are_free() -> None:
    proto = product()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    model = read_model(proto)
    assert input_specs(model)[0].shape == (None, 64)
    assert -1 not in [size for value in model.graph.outputs for size in value.shape or ()]


def test_graphs_out_of_order_and_cyclic() -> None:
    proto = product()
    nodes = [helper.make_node("Relu", ["b"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["b"])]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [n.op_type for n in read_model(proto).graph] == ["MatMul", "Relu"]  # as onnxruntime runs it
    body = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["n"])], "body", [], [helper.make_tensor_value_info("n", 1, None)]
    )
    proto.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    assert [n.op_type for n in read_model(proto).graph] == ["MatMul", "If"]
    proto.graph.node[0].CopyFrom(nodes[0])
    proto.graph.node[1].input[0] = "y"
    refused(proto, "topologically sorted", "'b'")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    proto = product()
    proto.graph.node[0].name = "name-of-node"
    data = proto.SerializeToString().replace(b"name-of-node", b"name-\xff\xfe-node")
    (tmp_path / "m.onnx").write_bytes(data)
    refused(tmp_path / "m.onnx", "not UTF-8")


@pytest.mark.parametrize("location", ["a\0b", "a" * 5000])
def test_weights_in_files_that_cannot_be(location: str, outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    outside.write_bytes(proto.SerializeToString())
    refused(outside, "no file can have the name")


def test_no_such_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "none.onnx does not exist")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize(
    "data", [b"", b"not a model at all", b"\xff\xd8\xff\xe0" * 50, product().SerializeToString()[:999]]
)
def test_not_onnx(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(data)
    refused(tmp_path / "bad.onnx", "bad.onnx is truncated or not ONNX", "again")
    refused(data, "truncated or not ONNX")


def test_checker_message() -> None:
    proto = product()
    proto.graph.node[0].op_type = "NoSuchOperator"
    refused(proto, "is not a valid ONNX model", "NoSuchOperator")
    refused(ir.from_proto(proto), "is not a valid ONNX model", "NoSuchOperator")


def test_data_shorter_than_declared() -> None:
    proto = product()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:100]
    refused(proto, "not a valid ONNX model")


@pytest.mark.parametrize(
    ("opset", "words"),
    [(6, ("opset 6", "older than 7", "17")), (1000, ("opset 1000", "older opset or upgrade onnx"))],
)
def test_opsets(opset: int, words: tuple[str, ...]) -> None:
    refused(product(opset=opset), *words)


def test_opset_that_onnxruntime_does_not_run() -> None:
    newest = onnx.defs.onnx_opset_version()
    proto = product(opset=newest, ir_version=onnx.IR_VERSION)
    try:
        run(proto, {"x": random(1, 64)})
    except Exception:
        refused(proto, f"opset {newest}", "onnxruntime", "does not run")
    else:
        assert read_model(proto).opset_imports[""] == newest


def test_sparse_initializers() -> None:
    proto = product()
    values, indices = helper.make_tensor("w", 1, [1], [2.0]), helper.make_tensor("i", 7, [1], [0])
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64, 64]))
    refused(proto, "sparse_initializer", "dense")


# ------------------------------------------------ weights beside the file


def point_to(path: Path, location: str, **entries: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    stored = {entry.key: entry.value for entry in proto.graph.initializer[0].external_data}
    del proto.graph.initializer[0].external_data[:]
    for key, value in {**stored, "location": location, **entries}.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def test_external_weights_are_mapped(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outside.parent)  # a relative path has an empty folder
    for path in (outside, Path("model.onnx")):
        tensor = read_model(path).graph.initializers["w"].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(tensor.numpy(), random(64, 64))


@pytest.mark.parametrize("form", [Path, ir.load])
def test_small_external_weights_are_read_and_the_model_can_be_saved_while_they_are_viewed(
    form: Callable[[Path], Path | ir.Model], tmp_path: Path
) -> None:
    nodes = [node("MatMul", ["x", "small"], ["h"]), node("MatMul", ["h", "large"], ["y"])]
    weights = {"small": random(4, 8), "large": random(8, 64)}
    proto = build(nodes, {"x": ("N", 4)}, {"y": ("N", 64)}, weights)
    x = random(3, 4)
    expected = run(proto, {"x": x})
    onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
    model = read_model(form(tmp_path / "in.onnx"))
    views = {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}
    kinds = {name: isinstance(model.graph.initializers[name].const_value, ir.ExternalTensor) for name in weights}
    assert kinds == {"small": False, "large": True}
    save_model(model, tmp_path / "out.onnx")
    for same in (model, read_model(tmp_path / "out.onnx")):
        assert_same([open_session(same, device="cpu").run({"x": x})["y"]], expected)
    for name, weight in weights.items():
        np.testing.assert_array_equal(views[name], weight)


def test_external_weights_need_a_path(outside: Path) -> None:
    refused(outside.read_bytes(), "'w'", "weights.bin", "pass the model's path")
    refused(onnx.load(outside, load_external_data=False), "pass the model's path")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "link", "folder/secret"])
def test_external_weights_outside_the_folder(outside: Path, location: str) -> None:
    secret = outside.parent.parent / "secret"
    secret.write_bytes(bytes(4 * 64 * 64))
    (outside.parent / "link").symlink_to(secret)
    (outside.parent / "folder").symlink_to(secret.parent)
    point_to(outside, location)
    refused(outside, "'w'", "outside the model's folder", "not read")
    model = ir.load(outside)
    refused(model, "outside the model's folder")


def test_external_weights_with_a_hard_link(outside: Path) -> None:
    os.link(outside.parent / "weights.bin", outside.parent.parent / "other")
    refused(outside, "hard links", "replace it by a copy")


def test_external_weights_behind_a_link_inside_the_folder(outside: Path) -> None:
    (outside.parent / "weights.bin").rename(outside.parent / "real.bin")
    (outside.parent / "weights.bin").symlink_to("real.bin")
    try:
        model = read_model(outside)
    except ModelError as error:  # the checker of some onnx releases refuses all links
        assert "link" in str(error)
    else:
        np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), random(64, 64))


def test_external_weights_missing_or_short(outside: Path) -> None:
    data = (outside.parent / "weights.bin").read_bytes()
    (outside.parent / "weights.bin").write_bytes(data[:-1])
    refused(outside, "weights.bin", "too short")
    (outside.parent / "weights.bin").unlink()
    refused(outside, "weights.bin", "missing", "copy it there")


@pytest.mark.parametrize("entries", [{"offset": "16"}, {"length": "16"}])
def test_external_weights_beyond_the_end(outside: Path, entries: dict[str, str]) -> None:
    point_to(outside, "weights.bin", **entries)
    refused(outside, "too short")


def test_external_constant_in_a_body(outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    tensor = proto.graph.initializer[0]
    tensor.external_data[0].value = "../elsewhere"
    inner = helper.make_graph(
        [node("Constant", [], ["c"], value=tensor)], "body", [], [helper.make_tensor_value_info("c", 1, [64, 64])]
    )
    choice = node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    bad = build([choice], {"x": (1,)}, {"y": (64, 64)}, {"yes": np.array(True)})
    outside.write_bytes(bad.SerializeToString())
    refused(outside, "outside the model's folder")


# ------------------------------------------------ inputs


def test_input_specs() -> None:
    proto = build(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": ("N", 2, None, 4), "w": (4, 4)},
        {"y": ("N", 2, None, 4)},
        {"w": random(4, 4)},
    )
    proto.graph.input.append(helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, []))
    assert input_specs(read_model(proto)) == [
        InputSpec("x", np.dtype(np.float32), (None, 2, None, 4)),
        InputSpec("tokens", np.dtype(np.int64), ()),
    ]


def test_inputs_that_cannot_be_fed() -> None:
    proto = build([node("Relu", ["x"], ["y"])], {"x": None}, {"y": None})
    with pytest.raises(ModelError, match="'x' has no declared shape"):
        input_specs(ir.from_proto(proto))
    sequence = helper.make_tensor_sequence_value_info("x", onnx.TensorProto.FLOAT, [1])
    proto = build([node("SequenceLength", ["x"], ["y"])], {}, {"y": None})
    proto.graph.input.append(sequence)
    with pytest.raises(ModelError, match="'x' is not a tensor"):
        input_specs(ir.from_proto(proto))


# ------------------------------------------------ writing


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    save_model(read_model(product()), path)
    assert sorted(tmp_path.iterdir()) == [path]
    assert_same(run(onnx.load(path), {"x": random(2, 64)}), run(product(), {"x": random(2, 64)}), 0)


def test_large_weights_go_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    save_model(read_model(product()), path, external_threshold=4 * 64 * 64 - 1)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "out.onnx.data"]
    assert path.stat().st_size < 1000
    assert path.stat().st_mode == (tmp_path / "out.onnx.data").stat().st_mode
    assert_same(run(onnx.load(path), {"x": random(2, 64)}), run(product(), {"x": random(2, 64)}), 0)
    assert read_model(path).graph.initializers["w"].const_value.size == 64 * 64


def test_external_stays_external_even_onto_itself(outside: Path) -> None:
    for target in (outside.parent / "copy.onnx", outside):
        save_model(read_model(outside), target)
        assert (outside.parent / f"{target.name}.data").stat().st_size == 4 * 64 * 64
        save_model(read_model(target), target)  # reads from the data file that it replaces
        np.testing.assert_array_equal(read_model(target).graph.initializers["w"].const_value.numpy(), random(64, 64))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_failure_while_writing_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def interrupted(model: object, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise error

    monkeypatch.setattr(save_module.ir, "save", interrupted)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        save_model(read_model(product()), path)
    assert sorted(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("existing", [False, True])
def test_failure_between_the_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    path, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    if existing:
        path.write_bytes(b"old model")
        data.write_bytes(b"old data")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if Path(target) == path:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(read_model(product()), path, external_threshold=0)
    assert sorted(tmp_path.iterdir()) == ([path, data] if existing else [])
    if existing:
        assert (path.read_bytes(), data.read_bytes()) == (b"old model", b"old data")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = read_model(product())
    with pytest.raises(OutputError, match="does not exist; create it"):
        save_model(model, tmp_path / "none" / "out.onnx")
    with pytest.raises(OutputError, match="it is a folder"):
        save_model(model, tmp_path)


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(save_module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(OutputError, match=r"out\.onnx: Permission denied; choose another folder"):
        save_model(read_model(product()), tmp_path / "out.onnx")
