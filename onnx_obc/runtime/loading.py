"""Hands models to onnxruntime so that their weights are in memory once at most, and not at all where files hold them.

onnxruntime maps weights that lie in a file, if it is told the file and does not rearrange them ("prepacking").
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

IN_MEMORY_BYTES = 1 << 30  # more goes to onnxruntime through a file, since a protobuf holds 2 GiB at most
MAPPED_BYTES = 1 << 30  # of weights in files: from here on they stay there, as a rearranged copy takes as much memory
SMALL_BYTES = 1024  # tensors up to here are shapes and axes, which onnxruntime reads in the protobuf alone


def load(model: ir.Model, options: Any, providers: list[str]) -> Any:
    """A session of a model. Weights in files are read from there; those in memory go into a temporary file if they are
    many. Nothing is copied where the model is one that was read with its weights beside it."""
    import onnxruntime

    weights = _initializers(model)
    beside = {value: tensor for value, tensor in weights.items() if isinstance(tensor, ir.ExternalTensor)}
    inside = {value: tensor for value, tensor in weights.items() if value not in beside}
    crowded = sum(tensor.nbytes for tensor in inside.values()) >= IN_MEMORY_BYTES
    if not beside and not crowded:
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="onnx-obc-", ignore_cleanup_errors=True) as folder:
        if crowded:
            large = {value: tensor for value, tensor in inside.items() if tensor.nbytes > SMALL_BYTES}
            beside |= _in_file(large, Path(folder))
        try:
            root = os.path.commonpath([Path(tensor.path).resolve().parent for tensor in beside.values()])
        except ValueError:  # drives without a common folder
            beside, root = _in_file(beside, Path(folder)), folder
        if sum(tensor.nbytes for tensor in beside.values()) >= MAPPED_BYTES:
            keep_mapped(options)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
        small = _from(model, beside, Path(root)).SerializeToString()
        return onnxruntime.InferenceSession(small, options, providers=providers)


def load_file(path: Path, options: Any, providers: list[str]) -> Any:
    """A session of a file."""
    import onnxruntime

    if bytes_beside(path) >= MAPPED_BYTES:
        keep_mapped(options)
    return onnxruntime.InferenceSession(path, options, providers=providers)


def keep_mapped(options: Any) -> None:
    """Let a session leave weights in their files. Without rearranged copies products take a little longer."""
    options.add_session_config_entry("session.disable_prepacking", "1")


def bytes_beside(path: Path) -> int:
    """The bytes of weights that lie beside a file of ours, by the name that they then have, or beside any small one."""
    if (data := path.with_name(f"{path.name}.data")).is_file():
        return data.stat().st_size
    if not path.is_file() or path.stat().st_size >= MAPPED_BYTES:
        return 0
    proto = onnx.load(path, load_external_data=False)
    entries = (entry for tensor in proto.graph.initializer for entry in tensor.external_data)
    return sum(int(entry.value) for entry in entries if entry.key == "length")


def _initializers(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return {value: value.const_value for value in values if value.const_value is not None}


def _in_file(tensors: Mapping[ir.Value, ir.TensorProtocol], folder: Path) -> dict[ir.Value, ir.ExternalTensor]:
    """The same tensors in a file in this folder, written one by one."""
    return dict(zip(tensors, convert_tensors_to_external(list(tensors.values()), folder, "weights.data"), strict=True))


def _from(model: ir.Model, beside: Mapping[ir.Value, ir.ExternalTensor], root: Path) -> onnx.ModelProto:
    """The model, with these weights named by where they lie below `root`. It is as it was afterwards."""
    before = {value: value.const_value for value in beside}
    try:
        for value, tensor in beside.items():
            where = Path(tensor.path).resolve().relative_to(root.resolve()).as_posix()
            value.const_value = ir.ExternalTensor(
                where, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=str(value.name)
            )
        return ir.to_proto(model)
    finally:
        for value, held in before.items():
            value.const_value = held
