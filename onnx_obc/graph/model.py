"""Reads and writes models: whole files, bytes or objects, with weights inside the file or beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message
from onnx_ir.analysis import analyze_implicit_usage

from ..core.errors import ModelError, first_line, one_line
from .contributed import check_model, has_onnxruntimes_own
from .layers import bodies
from .tensors import nodes_of, own_copy, tensors, values_of

OLDEST_OPSET = 7
LONGEST_NAME = 255  # bytes of a file's name
SMALL_BYTES = 1024  # tensors beside the file are read at once up to here: onnx_ir wants to do it, to save and to check
PROTOBUF_LIMIT = 1_900_000_000  # bytes of tensors; protobuf itself ends at 2³¹


def read_model(model: str | Path | bytes | onnx.ModelProto | ir.Model) -> ir.Model:
    """Read a model and check it. The result is independent of the argument, which stays as it is.

    Weights beside the file are mapped, not read, but for small ones, and only after every location was found to lie in
    the model's folder. Raises ModelError.
    """
    if isinstance(model, ir.Model):
        loaded, name = _normal(own_copy(model)), "the model"
        _check_external(loaded, name)
        _read_small(loaded)
        _check_opset(loaded, name)
        _check_valid(loaded, name)
        return loaded
    if isinstance(model, onnx.ModelProto):
        return _from_proto(model, "the model", None)
    if isinstance(model, bytes):
        return _from_proto(_decode(model, "the model"), "the model", None)
    path = Path(model)
    if not path.is_file():
        kind = "is not a regular file; name another" if path.exists() else "does not exist; check the path"
        kind = "is a folder; name the .onnx file in it" if path.is_dir() else kind
        raise ModelError(f"model {path} {kind}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror}; check its permissions") from error
    return _from_proto(_decode(data, f"model {path}"), f"model {path}", path)


@dataclass(frozen=True)
class InputSpec:
    """A model input as the graph declares it: None in `shape` is a dimension that is free."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    @property
    def words(self) -> str:
        """Its type and shape, in messages: float32[any, 3, 224, 224]."""
        return f"{self.dtype.name}[{', '.join('any' if size is None else str(size) for size in self.shape)}]"


def input_specs(model: ir.Model) -> list[InputSpec]:
    """The inputs that a user must feed.

    Inputs with a default value (initializers that old exporters list as inputs) are not among them.
    Raises ModelError for an input that is not a tensor of known rank.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise ModelError(f"input {value.name!r} is not a tensor; re-export the model with tensor inputs only")
        if value.shape is None:
            raise ModelError(f"input {value.name!r} has no declared shape; re-export the model with one")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        specs.append(InputSpec(str(value.name), np.dtype(value.dtype.numpy()), shape))
    return specs


def _decode(data: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{name} is truncated or not ONNX; export or download it again") from error
    return proto


def _from_proto(proto: onnx.ModelProto, name: str, path: Path | None) -> ir.Model:
    if not proto.graph.node:
        raise ModelError(f"{name} is truncated or not ONNX: its graph has no nodes; export or download it again")
    if proto.graph.sparse_initializer:
        raise ModelError(f"{name} stores weights as sparse_initializer; export it again with dense weights")
    _check_text(proto, name)
    try:
        model = ir.from_proto(proto)
        changed = _sort(model) or _has_long_domain(proto)
        model = _normal(own_copy(model))
    except Exception as error:
        said = _checkers_word(proto) or first_line(error)
        raise ModelError(f"{name} is not a valid ONNX model: {said}; export it again") from error
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if path is None:
                raise ModelError(
                    f"{name} keeps the weight {tensor.name!r} in the file {tensor.location}; pass the model's path"
                )
            tensor.base_dir = path.parent.absolute()
    _check_external(model, name)
    _read_small(model)
    _check_opset(model, name)
    if changed or (path is None and proto.ByteSize() > PROTOBUF_LIMIT) or has_onnxruntimes_own(model):
        _check_valid(model, name)
        return model
    try:
        onnx.checker.check_model(proto if path is None else str(path))
    except Exception as error:  # the checker raises a type of its own, and RuntimeError and ValueError
        raise ModelError(f"{name} is not a valid ONNX model: {_brief(error)}; export it again") from error
    return model


def _normal(model: ir.Model) -> ir.Model:
    """Write the ONNX domain as "" where the file says "ai.onnx", and sizes that are free as such where it says -1."""
    for imports in (model.graph.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
    for node in nodes_of(model):
        if node.domain == "ai.onnx":
            node.domain = ""
    for value in values_of(model):
        if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])
    return model


def _sort(model: ir.Model) -> bool:
    """Put nodes behind those that they read, in place, and say whether that was needed.

    onnxruntime runs such a graph, and its float16 converter writes it, but the ONNX checker refuses it; and cycles.
    """
    place = {node: number for number, node in enumerate(model.graph)}
    captured = analyze_implicit_usage(model.graph)
    inside = {node: [value for body in bodies(node) for value in captured[body]] for node in place}
    read = ((node, value) for node in place for value in (*node.inputs, *inside[node]) if value is not None)
    sources = ((node, value.producer()) for node, value in read)
    if not any(source is not None and place.get(source, -1) >= place[node] for node, source in sources):
        return False
    try:
        model.graph.sort()
    except ValueError:  # a cycle, which the checker tells of
        return False
    return True


def _has_long_domain(proto: onnx.ModelProto) -> bool:
    """Whether a node has the domain "ai.onnx", which the checker does not know for ""."""
    pending: list[Any] = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while pending:
        node = pending.pop()
        if node.domain == "ai.onnx":
            return True
        for attribute in node.attribute:
            pending += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]
    return False


def _check_text(message: Any, name: str) -> None:
    """Refuse a model with text that is no UTF-8, which protobuf hands out as bytes or not at all."""
    try:
        for field, value in message.ListFields():
            if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
                continue
            for entry in [value] if isinstance(value, (str, bytes, Message)) else value:
                if isinstance(entry, Message):
                    _check_text(entry, name)
                elif not isinstance(entry, str):
                    raise ModelError(f"{name} holds a {field.name} that is not UTF-8 text; export it again")
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} holds text that is not UTF-8; export it again") from error


def _checkers_word(proto: onnx.ModelProto) -> str:
    """What the ONNX checker has against a model that cannot be read; empty if nothing."""
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # the checker raises a type of its own, and RuntimeError and ValueError
        return _brief(error)
    return ""


def _brief(error: BaseException) -> str:
    """An error's message up to the context that the checker adds, on one line."""
    return one_line(ValueError(str(error).split("==> Context")[0]))[:300].rstrip(".") or type(error).__name__


def _check_valid(model: ir.Model, name: str) -> None:
    """Run the ONNX checker without serialising large tensors."""
    try:
        check_model(model)
    except Exception as error:
        raise ModelError(f"{name} is not a valid ONNX model: {first_line(error.__cause__ or error)}") from error


def _check_opset(model: ir.Model, name: str) -> None:
    version = model.opset_imports.get("")
    if version is None:
        raise ModelError(f"{name} declares no ONNX opset; export it again with opset {OLDEST_OPSET} or newer")
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{name} uses opset {version}, older than {OLDEST_OPSET}; export it again with opset 17 or newer"
        )
    if version > onnx.defs.onnx_opset_version():
        known = f"onnx {onnx.__version__} knows opset {onnx.defs.onnx_opset_version()} at most"
        raise ModelError(f"{name} uses opset {version}, {known}; export it with an older opset or upgrade onnx")
    with suppress(ImportError):
        import onnxruntime

        if not _runs(version, onnxruntime):
            raise ModelError(
                f"{name} uses opset {version}, which onnxruntime {onnxruntime.__version__} does not run; export it "
                "with an older opset or upgrade onnxruntime"
            )


def _runs(opset: int, onnxruntime: object) -> bool:
    """Whether the installed onnxruntime accepts a model of this opset: nothing but a trial tells."""
    if opset <= 21:
        return True
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    imports = [onnx.helper.make_opsetid("", opset)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "trial", [x], [y]), opset_imports=imports)
    proto.ir_version = onnx.helper.find_min_ir_version_for(imports)
    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    except Exception:  # each kind of refusal has a type of its own, without a common base
        return False
    return True


def _check_external(model: ir.Model, name: str) -> None:
    """Refuse weights outside the model's folder, missing or too short, before anything is read from them."""
    for tensor in tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        folder, location = Path(tensor.base_dir or ".").absolute(), Path(tensor.location)
        what = f"{name}: weight {tensor.name!r} lies in {location}"
        if "\0" in str(location) or max(len(part.encode()) for part in ("", *location.parts)) > LONGEST_NAME:
            raise ModelError(
                f"{name}: no file can have the name of the one with weight {tensor.name!r}; export it again"
            )
        if location.is_absolute() or ".." in location.parts:
            raise ModelError(f"{what}, outside the model's folder, and is not read; put the file beside the model")
        path = folder / location
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{what}, a link to outside the model's folder, and is not read; copy the file there")
        if not path.is_file():
            raise ModelError(f"{what}, which is missing from {folder}; copy it there")
        if path.stat().st_nlink > 1:
            raise ModelError(f"{what}, a file with several hard links, and is not read; replace it by a copy")
        start, length = tensor.offset or 0, tensor.length or tensor.nbytes
        if length < tensor.nbytes or start + tensor.nbytes > path.stat().st_size:
            raise ModelError(f"{what}, which is too short for it; export or download the model again")


def _read_small(model: ir.Model) -> None:
    """Replace small tensors beside the file by copies in memory, independent of the file."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL_BYTES:
                array = tensor.numpy().copy()
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
