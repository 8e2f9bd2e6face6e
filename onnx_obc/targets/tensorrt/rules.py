"""The rules of TensorRT for explicitly quantized (Q/DQ) networks.

Source: the TensorRT developer guide, "Working with Quantized Types" and "Q/DQ Layer-Placement Recommendations".
- Symmetric only, the zero point written out as 0; weights per channel, activations per tensor, both signed.
- All inputs of a weighted node are quantized, its output is not.
- The skip branch into a residual Add is quantized, and nothing stands between a convolution and its Add.
- Bias stays float.
- 2:4 sparse kernels look at the input channels: C/groups must be a multiple of 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...core.level import Choice
from ...graph.layers import Layer
from ...graph.scales import runs_in_integers, scale_layout
from ...graph.write import Activation
from .check import CHANNEL_AXIS, FEW_CHANNELS, INT4_BLOCKS


def unsupported(layer: Layer, choice: Choice) -> str | None:
    """Why TensorRT cannot take this layer so, or None."""
    level = choice.level
    if level.bits is None:
        return None
    if choice.dynamic:
        return "TensorRT reads no DynamicQuantizeLinear; use --activations int8"
    if not level.symmetric:
        return "TensorRT takes symmetric weights only; leave out --asymmetric"
    if level.bits == 4 and level.block is not None:
        if level.block not in INT4_BLOCKS:
            return f"TensorRT takes 4-bit weights in blocks of 64 or 128, not of {level.block}"
        if choice.activation_bits is not None:
            return "TensorRT's 4-bit weights go with float inputs; give --activations none"
        return None
    if level.bits < 8:
        return f"TensorRT has no kernel for int{level.bits} weights with one scale for each channel; see --block"
    if level.block is not None:
        return "TensorRT takes blocks that share a scale for 4-bit weights only"
    if choice.activation_bits not in (None, 8):
        return f"TensorRT takes no {choice.activation_bits}-bit integer activations"
    layout = scale_layout(layer)
    if layout is None or layout.block is not None or layout.axis not in (None, CHANNEL_AXIS.get(layer.op, layout.axis)):
        return "TensorRT takes one scale for each output channel, along one axis; this weight needs more"
    if choice.activation_bits is not None and not runs_in_integers(layer):
        return "nothing here can check integer products of a weight of three axes with many scales; it stays float"
    return None


def activation_bits(layer: Layer, choice: Choice) -> tuple[int | None, str | None]:
    """TensorRT has a use for all activations that it does not refuse."""
    return choice.activation_bits, None


def prepare(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> None:
    """TensorRT takes the graph as it is."""


def unprofitable(layer: Layer, choice: Choice) -> str | None:
    """Why a layer is better left in float, unless the user names it; None if it is not."""
    if layer.op == "Conv" and choice.activation_bits is not None and layer.groups == 1:
        channels = layer.weight.shape[1]
        if min(channels, layer.rows) <= FEW_CHANNELS:
            what = f"{channels} input and {layer.rows} output channels"
            return (
                f"TensorRT's int8 kernels are slower than float for {what}; a rule that names the layer overrides this"
            )
    return None


def place_qdq(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> list[Activation]:
    """The inputs of quantized layers, and the skip branches that are added to the outputs of quantized convolutions."""
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    quantized = [layer for layer in layers if layer.name in choices and choices[layer.name].activation_bits]
    nodes = {use.node: use for layer in quantized for use in layer.uses}
    for node, use in nodes.items():
        source = node.inputs[1 - use.index]
        assert source is not None
        readers.setdefault(source, []).append((node, 1 - use.index))
    for node in model.graph:
        if node.op_type != "Add" or len(node.inputs) != 2:
            continue
        for index in (0, 1):
            branch, skip = node.inputs[index], node.inputs[1 - index]
            if branch is None or skip is None or skip.const_value is not None:
                continue
            producer = branch.producer()
            if producer in nodes and producer.op_type == "Conv" and len(list(branch.uses())) == 1:
                readers.setdefault(skip, []).append((node, 1 - index))
                break
    return [Activation(str(value.name), 8, symmetric=True, readers=tuple(found)) for value, found in readers.items()]
