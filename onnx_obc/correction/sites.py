"""Finds where statistics can be corrected: values whose channels can be scaled and shifted by constants before them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from ..graph.layers import Layer, Use

Kind: TypeAlias = Literal["batchnorm", "norm", "bias"]

CHANNEL_NORMS = ("GroupNormalization", "InstanceNormalization")


@dataclass(frozen=True, eq=False)
class Site:
    """A value whose channels can be corrected.

    kind: batchnorm: the output of a layer that had a BatchNormalization behind it: its weight's rows take a factor, its
    bias a shift. norm: the output of another normalisation, whose γ takes the factor and whose β the shift. bias: the
    output of a layer with a bias: a shift only.
    node: whose first output the value is. value: its name before anything was written: a graph output may change its
    name then. axis: of the channels, from the end for products and LayerNorm. channels: how many.
    layer: the layer of `batchnorm`. gain, shift: the node and the index of its input that hold γ and β or the bias;
    shift is None where there is nothing to shift, and a Conv without a bias gets one.
    """

    kind: Kind
    node: ir.Node
    value: str
    axis: int
    channels: int
    layer: str | None = None
    gain: tuple[ir.Node, int] | None = None
    shift: tuple[ir.Node, int] | None = None


def find_sites(model: ir.Model, layers: Sequence[Layer], batchnorms: Collection[str]) -> list[Site]:
    """The sites of a folded model, before weights are written into it, in the order of the graph.

    layers: all layers of this model. batchnorms: the names of the values that came out of a BatchNormalization before
    it was folded into the layer.
    """
    uses = {use.node: (layer, use) for layer in layers for use in layer.uses}
    found = {}
    for node in model.graph:
        site = _of_layer(*uses[node], batchnorms) if node in uses else _of_norm(node, model.opset_imports.get("", 0))
        if site is not None:
            found[site.node] = site
    return [found[node] for node in model.graph if node in found]


def _of_layer(layer: Layer, use: Use, batchnorms: Collection[str]) -> Site | None:
    node, channels = use.node, layer.groups * layer.rows
    if use.index != 1 or len(layer.uses) > 1:  # a constant left factor has its rows elsewhere; one weight, one factor
        return None
    output = node.outputs[0]
    if node.op_type in ("Conv", "ConvTranspose"):
        kind: Kind = "batchnorm" if output.name in batchnorms else "bias"
        return Site(kind, node, str(output.name), 1, channels, layer.name, shift=(node, 2))
    if layer.groups > 1 or layer.weight.ndim != 2:
        return None
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        if _vector(node.inputs[2], channels) and node.attributes.get_float("beta", 1.0) == 1:
            kind = "batchnorm" if output.name in batchnorms else "bias"
            return Site(kind, node, str(output.name), -1, channels, layer.name, shift=(node, 2))
        return None
    readers = list(output.uses())
    if len(readers) != 1 or output.is_graph_output():
        return None
    add = readers[0].node
    other = add.inputs[1 - readers[0].idx] if add.op_type == "Add" and add.domain == "" else None
    if add.graph is not node.graph or other is None or not _vector(other, channels):
        return None
    return Site("bias", add, str(add.outputs[0].name), -1, channels, layer.name, shift=(add, 1 - readers[0].idx))


def _of_norm(node: ir.Node, opset: int) -> Site | None:
    if node.domain != "" or (node.op_type == "GroupNormalization" and opset < 21):  # which has a γ for each group
        return None
    output = node.outputs[0]
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) == -1:
        channels = _length(node.inputs[1])
        if channels is None:
            return None
        shift = (node, 2) if len(node.inputs) > 2 and _vector(node.inputs[2], channels) else None
        return Site("norm", node, str(output.name), -1, channels, gain=(node, 1), shift=shift)
    if node.op_type in CHANNEL_NORMS:
        channels = _length(node.inputs[1])
        if channels is None or not _vector(node.inputs[2], channels):
            return None
        return Site("norm", node, str(output.name), 1, channels, gain=(node, 1), shift=(node, 2))
    if node.op_type == "Mul":
        return _of_decomposed_norm(node)
    return None


def _of_decomposed_norm(scale: ir.Node) -> Site | None:
    """Mul(x / sqrt(…), γ), and the Add of β behind it if there is one, as LayerNorm and RMSNorm are exported."""
    for index in (0, 1):
        value, gain = scale.inputs[index], scale.inputs[1 - index]
        channels = _length(gain)
        if channels is None or value is None or not _is_normalised(value):
            continue
        output, readers = scale.outputs[0], list(scale.outputs[0].uses())
        if len(readers) == 1 and readers[0].node.op_type == "Add" and not output.is_graph_output():
            add, other = readers[0].node, 1 - readers[0].idx
            if add.graph is scale.graph and _vector(add.inputs[other], channels):
                name = str(add.outputs[0].name)
                return Site("norm", add, name, -1, channels, gain=(scale, 1 - index), shift=(add, other))
        return Site("norm", scale, str(output.name), -1, channels, gain=(scale, 1 - index))
    return None


def _is_normalised(value: ir.Value) -> bool:
    """Whether a value is something divided by a square root."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in ("Div", "Mul"):
        return False
    for source in node.inputs if node.op_type == "Mul" else node.inputs[1:]:
        root = None if source is None else source.producer()
        if node.op_type == "Mul" and root is not None and root.op_type in ("Reciprocal", "Div"):
            inner = root.inputs[0 if root.op_type == "Reciprocal" else 1]
            root = None if inner is None else inner.producer()
        if root is not None and root.op_type == "Sqrt":
            return True
    return False


def _length(value: ir.Value | None) -> int | None:
    """The length of a constant float32 vector of more than one element; None for anything else."""
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 1 or tensor.size < 2:
        return None
    return int(tensor.size)


def _vector(value: ir.Value | None, length: int) -> bool:
    """Whether a value is a constant with an entry for every channel along its last axis, and no other axis."""
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return tensor.size == length and (len(tensor.shape) == 0 or tensor.shape.numpy()[-1] == length)
