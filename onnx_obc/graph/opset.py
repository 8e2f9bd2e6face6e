"""Raises a model's ONNX opset, one node at a time, so that large weights and all names stay untouched."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, version_converter
from onnx_ir.passes import common

from ..core.errors import ModelError, first_line
from .edit import names_of, take_name
from .tensors import own_copy

SMALL = 4096  # elements; a larger constant is never an axis, a shape or a scale, so the converter need not see it
FLATTENING = ("Softmax", "LogSoftmax", "Hardmax")
CONTROL_FLOW = ("If", "Loop", "Scan")  # later versions only allow more types


def raise_opset(model: ir.Model, version: int) -> ir.Model:
    """A copy of the model at ONNX opset `version`, with the IR version that it needs; an older one stays as it is.

    Nodes that changed between the two versions are converted one by one by onnx's version converter; what they need
    in addition becomes Constant nodes before them. Raises ModelError if a node cannot be converted.
    """
    model = own_copy(model)
    old = model.opset_imports.get("", 0)
    if old >= version:
        return model
    if model.functions:
        try:
            inline_functions(model)
        except Exception as error:  # of the pass, or of what it wraps
            cause = first_line(error.__cause__ or error)
            raise ModelError(
                f"{cause}; export the model without functions, or choose a level that needs no newer opset"
            ) from error
    names = set(names_of(model))
    for node in list(model.graph.all_nodes()):
        try:
            if node.domain == "" and _changed(node.op_type, old, version):
                _convert(node, old, version, names)
        except Exception as error:  # the converter raises ConvertError, RuntimeError and ValueError
            cause = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelError(
                f"{node.op_type} {node.name!r} cannot be raised from opset {old} to {version} ({cause}); export "
                f"the model with opset {version}, or choose a level that needs no newer opset"
            ) from error
    model.graph.opset_imports[""] = version
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for([helper.make_opsetid("", version)]))
    return model


def inline_functions(model: ir.Model) -> None:
    """Inline all functions, in place. Raises ValueError where one means operators of another opset than the model's."""
    opset = model.opset_imports.get("", 0)
    for function in model.functions.values():
        own = function.opset_imports.get("", opset)
        for node in function.all_nodes() if own != opset else ():
            if node.domain == "" and _changed(node.op_type, own, opset):
                raise ValueError(f"function {function.name} has {node.op_type} of opset {own}, the model opset {opset}")
        if "" in function.opset_imports:
            function.opset_imports[""] = opset
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


def _changed(op_type: str, old: int, new: int) -> bool:
    """Whether the operator's definition differs between two opsets. A control-flow node's own does not matter."""
    if (op_type in CONTROL_FLOW and old > 8) or not onnx.defs.has(op_type, old, ""):
        return False  # the latter: onnxruntime's own
    return bool(onnx.defs.get_schema(op_type, old).since_version != onnx.defs.get_schema(op_type, new).since_version)


def _convert(node: ir.Node, old: int, new: int, names: set[str]) -> None:
    """Replace `node` in its graph by what the version converter makes of it alone. Raises ValueError and others."""
    if node.op_type in CONTROL_FLOW:
        raise ValueError(f"{node.op_type} changed its form after opset 8")
    if node.op_type in FLATTENING and old < 13 <= new and _along_last(node):
        node.attributes["axis"] = ir.AttrInt64("axis", -1)  # saves the Flatten and Reshape that other axes need
        return
    if node.op_type == "Hardmax" and old < 13 <= new:
        raise ValueError("it flattens all axes from its own on, which later opsets cannot express")
    if node.op_type == "Dropout" and old < 10 <= new and len(node.outputs) > 1 and node.outputs[1].uses():
        raise ValueError("its mask is read as numbers, and later opsets make it true or false")
    if node.op_type == "BatchNormalization" and old < 14 <= new and any(output.name for output in node.outputs[1:]):
        raise ValueError("it has the outputs of training, and with them each batch's own statistics")
    if node.op_type == "GroupNormalization" and old < 21 <= new:
        _widen_group_norm(node, names)
        return
    alone = _alone(node, old)
    converted = version_converter.convert_version(alone, new)
    _restore_sampling(node, old, converted.graph.node)
    if list(converted.graph.node) != list(alone.graph.node):
        _splice(node, ir.from_proto(converted), names)


def _splice(node: ir.Node, part: ir.Model, names: set[str]) -> None:
    """Put the nodes of `part` in the place of `node`; values of the same name are the same values."""
    outer = {value.name: value for value in node.inputs if value is not None}
    outputs = {value.name: value for value in node.outputs if value.name}
    inner = list(part.graph)
    part.graph.outputs.clear()
    part.graph.remove(inner)
    constants = []
    for value in [v for v in part.graph.initializers.values() if v.name not in outer]:
        assert value.const_value is not None
        constants.append(ir.Node("", "Constant", [], [ir.AttrTensor("value", value.const_value)]))
        constants[-1].outputs[0].name = value.name
        ir.convenience.replace_all_uses_with(value, constants[-1].outputs[0])
    for new in inner:
        for index, read in enumerate(new.inputs):
            if read is not None and read.producer() is None:
                new.replace_input_with(index, outer[read.name])
    made = constants + inner
    by_name = {value.name: value for new in made for value in new.outputs}
    for new in made:
        for value in new.outputs:
            if value.name and value.name not in outputs:
                value.name = take_name(f"{node.outputs[0].name}_{new.op_type}", names)
    main = next((new for new in inner if new.op_type == node.op_type), inner[-1])
    main.name, main.doc_string = node.name, node.doc_string
    main.metadata_props.update(node.metadata_props)
    replaced = [by_name[name] for name in outputs]
    assert isinstance(node.graph, ir.Graph)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], made, list(outputs.values()), replaced)


def _along_last(node: ir.Node) -> bool:
    """Whether a Softmax of opset 12 or older, which flattens from `axis` on, works along the last axis alone."""
    axis = node.attributes.get_int("axis", 1)
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _widen_group_norm(node: ir.Node, names: set[str]) -> None:
    """Opset 21 wants a scale and a bias for every channel, older ones for every group."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None or not isinstance(shape[1], int):
        raise ValueError("the number of its channels is not known")
    for index in (1, 2):
        value = node.inputs[index]
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is None or tensor is None:
            raise ValueError("its scale and bias are not constant")
        wide = np.repeat(tensor.numpy(), shape[1] // node.attributes.get_int("num_groups"))  # (channels,)
        constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.Tensor(wide))])
        constant.outputs[0].name = take_name(f"{value.name}_per_channel", names)
        constant.outputs[0].type, constant.outputs[0].shape = value.type, ir.Shape(wide.shape)
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, constant)
        node.replace_input_with(index, constant.outputs[0])


def _alone(node: ir.Node, opset: int) -> onnx.ModelProto:
    """A model of this node only: small constants as initializers, everything else as inputs."""
    inputs, initializers = [], []
    for value in dict.fromkeys(v for v in node.inputs if v is not None):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size <= SMALL:
            proto = ir.to_proto(tensor)
            proto.name = value.name
            initializers.append(proto)
        elif value.type is not None:
            inputs.append(ir.serde.serialize_value(value))
        else:
            inputs.append(helper.make_tensor_value_info(str(value.name), onnx.TensorProto.FLOAT, None))
    outputs = [helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs if value.name]
    graph = helper.make_graph([ir.to_proto(node)], "node", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _restore_sampling(node: ir.Node, old: int, made: Iterable[onnx.NodeProto]) -> None:
    """Resize 10 and Upsample sample at `index / scale` and round down; the converter forgets to say so."""
    if node.op_type == "Upsample" or (node.op_type == "Resize" and old < 11):
        for resize in made:
            if resize.op_type == "Resize":
                resize.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                resize.attribute.append(helper.make_attribute("nearest_mode", "floor"))
