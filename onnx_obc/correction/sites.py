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
    layer: the layer whose output it is; None for norm. gain, shift: the node and the index of its input that hold γ and
    β or the bias; shift is None where a value can only be scaled. A Conv or LayerNormalization without one gets one.
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
    it was folded into the layer. Left out: products with a constant left factor or a batched weight, and layers and
    norms whose constants are computed, not float32, or of another shape than one entry for every channel.
    """
    uses = {use.node: (layer, use) for layer in layers for use in layer.uses}
    found = {}
    for node in model.graph:
        site = _of_layer(*uses[node], batchnorms) if node in uses else _of_norm(node, model.opset_imports.get("", 0))
        if site is not None:
            found[site.node] = site
    return [found[node] for node in model.graph if node in found]


def bias_sites(model: ir.Model, layers: Sequence[Layer]) -> dict[str, Site]:
    """Where the bias of a layer's first use is, by the layer's name; layers whose output can take none are missing."""
    found: dict[str, Site] = {}
    for site in find_sites(model, layers, ()):
        if site.layer is not None and site.shift is not None:
            found.setdefault(site.layer, site)
    return found


def _of_layer(layer: Layer, use: Use, batchnorms: Collection[str]) -> Site | None:
    node, channels = use.node, layer.groups * layer.rows
    output, bias = node.outputs[0], _input(node, 2)
    # A weight with several uses cannot take a factor for one of them; each of them can have a bias of its own.
    kind: Kind = "batchnorm" if output.name in batchnorms and len(layer.uses) == 1 else "bias"
    if node.op_type in ("Conv", "ConvTranspose"):
        if bias is not None and not _vector(bias, channels):
            return None
        return Site(kind, node, str(output.name), 1, channels, layer.name, shift=(node, 2))
    if use.index != 1 or layer.weight.ndim != 2:  # a constant left factor has its rows along another axis
        return None
    if node.op_type == "Gemm" and bias is not None:
        if not _vector(bias, channels) or node.attributes.get_float("beta", 1.0) != 1:
            return None
        return Site(kind, node, str(output.name), -1, channels, layer.name, shift=(node, 2))
    readers = list(output.uses())
    if len(readers) != 1 or output.is_graph_output():
        return None
    add, other = readers[0].node, 1 - readers[0].idx
    if not _is_add(add, node.graph) or not _vector(add.inputs[other], channels):
        return None
    return Site("bias", add, str(add.outputs[0].name), -1, channels, layer.name, shift=(add, other))


def _of_norm(node: ir.Node, opset: int) -> Site | None:
    if node.domain != "" or (node.op_type == "GroupNormalization" and opset < 21):  # which has a γ for each group
        return None
    if node.op_type == "Mul":
        return _of_decomposed_norm(node)
    last = node.op_type == "LayerNormalization" and _is_last_axis(node)
    if not last and node.op_type not in CHANNEL_NORMS:
        return None
    channels, shift = _length(node.inputs[1]), _input(node, 2)
    if channels is None or (shift is not None and not _vector(shift, channels)):
        return None
    name = str(node.outputs[0].name)
    return Site("norm", node, name, -1 if last else 1, channels, gain=(node, 1), shift=(node, 2))


def _is_last_axis(norm: ir.Node) -> bool:
    """Whether a LayerNormalization is over the last axis alone."""
    axis, shape = norm.attributes.get_int("axis", -1), norm.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _of_decomposed_norm(scale: ir.Node) -> Site | None:
    """Mul(x / sqrt(…), γ), and the Add of β behind it if there is one, as LayerNorm and RMSNorm are exported."""
    for index in (0, 1):
        value, gain = scale.inputs[index], scale.inputs[1 - index]
        channels = _length(gain)
        if channels is None or value is None or not _is_normalised(value):
            continue
        output, readers = scale.outputs[0], list(scale.outputs[0].uses())
        if len(readers) == 1 and not output.is_graph_output():
            add, other = readers[0].node, 1 - readers[0].idx
            if _is_add(add, scale.graph) and _vector(add.inputs[other], channels):
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


def _is_add(node: ir.Node, graph: ir.Graph | ir.Function | None) -> bool:
    """Whether a node is an Add of this graph, not of a body that reads from it."""
    return node.op_type == "Add" and node.domain == "" and node.graph is graph


def _input(node: ir.Node, index: int) -> ir.Value | None:
    """An optional input of a node, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


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
