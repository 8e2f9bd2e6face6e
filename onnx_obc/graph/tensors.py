"""All tensors of a model, and copies of a model whose tensors are its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx_ir as ir


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All tensors of the model: initializers and attributes, in bodies and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for attribute in _attributes(model):
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.as_tensors()


def own_copy(model: ir.Model) -> ir.Model:
    """A copy of the model in which nothing is shared but the bytes of the weights.

    `Model.clone` shares the tensors and the types too. onnx_ir renames a tensor along with its value, and behind it may
    be the TensorProto of a caller; setting the dtype of a value changes its type object.
    """
    model = model.clone()
    for value in values_of(model):
        value.type = copy.deepcopy(value.type)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _own(value.const_value)
    for node in nodes_of(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _own(attribute.as_tensor()))
            elif attribute.type == ir.AttributeType.TENSORS:
                node.attributes[name] = ir.AttrTensors(name, [_own(tensor) for tensor in attribute.as_tensors()])
    return model


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.serde.TensorProtoTensor):  # whose numpy() copies the bytes anew at every call
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)
    return copy.copy(tensor)


def nodes_of(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, in bodies and functions too."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        yield from owner.all_nodes()


def values_of(model: ir.Model) -> Iterator[ir.Value]:
    """All values, in bodies and functions too."""
    owners: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for owner in owners:
        yield from owner.inputs
    for graph in model.graphs():
        yield from graph.initializers.values()
    for node in nodes_of(model):
        yield from node.outputs


def _attributes(model: ir.Model) -> Iterator[ir.Attr]:
    for node in nodes_of(model):
        yield from (attribute for attribute in node.attributes.values() if not attribute.is_ref())
