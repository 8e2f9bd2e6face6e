"""The rules of onnxruntime on a CPU.

Source of each rule: onnxruntime's QDQ selectors and fusions (core/optimizer/qdq_transformer), and what its CPU kernels
accept. A quantized node runs in integers only if its surroundings have exactly the form that a selector looks for:
- Conv becomes QLinearConv when its inputs come from DequantizeLinear and its output goes to QuantizeLinear alone; a
  Relu or Clip in between is absorbed by the range of that QuantizeLinear.
- MatMul and Gemm with two dequantized operands run in integers with a float output.
- Bias stays float; onnxruntime quantizes it itself.
- Activations are unsigned with a zero point, weights are 8 bits wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...level import FLOAT, Choice
from ..layers import Layer
from ..qdq import Activation, scale_layout, storage_type

ABSORBED = ("Relu", "Clip")


def refuse(layer: Layer, choice: Choice) -> str | None:
    """Every level can be written for onnxruntime; see `activation_bits` for what it runs in integers."""
    return None


def activation_bits(layer: Layer, choice: Choice) -> tuple[int | None, str | None]:
    """The bits that a layer's input is quantized to, and why they are not the ones asked for."""
    if choice.activation_bits is None:
        return None, None
    if layer.op == "ConvTranspose":
        return None, "onnxruntime has no integer ConvTranspose: its input stays float"
    if any(use.index == 0 for use in layer.uses) and layer.op in ("MatMul", "Gemm"):
        return None, "onnxruntime has no integer kernel for a constant left operand: its input stays float"
    if scale_layout(layer).block is not None:
        return None, "onnxruntime has no integer kernel for batched or grouped weights: its input stays float"
    return choice.activation_bits, None


def place(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> list[Activation]:
    """The inputs of quantized layers, and the outputs of convolutions that run in integers; each value once."""
    readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    widths: dict[ir.Value, int] = {}
    outputs: dict[ir.Value, None] = {}
    float_nodes: set[ir.Node] = set()
    for layer in layers:
        choice = choices.get(layer.name, Choice(FLOAT))
        for use in layer.uses:
            source = use.node.inputs[1 - use.index]
            if choice.activation_bits is None or source is None:
                float_nodes.add(use.node)
                continue
            readers.setdefault(source, []).append((use.node, 1 - use.index))
            widths[source] = max(widths.get(source, 0), choice.activation_bits)
            if layer.op == "Conv" and _runs_in_integers(choice):
                outputs[_absorbing(use.node.outputs[0])] = None
    for output in outputs:
        widths.setdefault(output, 8)
        known = readers.setdefault(output, [])
        known += [use for use in output.uses() if tuple(use) not in known and _may_read(use.node, model, float_nodes)]
    return [
        Activation(
            str(value.name), widths[value], symmetric=False, readers=tuple(found), replaces_output=value in outputs
        )
        for value, found in readers.items()
        if found or value.is_graph_output()
    ]


def _may_read(node: ir.Node, model: ir.Model, float_nodes: set[ir.Node]) -> bool:
    """A layer that stays float must see no Q/DQ, or onnxruntime quantizes its weight by itself."""
    return node not in float_nodes and node.graph is model.graph


def _runs_in_integers(choice: Choice) -> bool:
    bits = choice.level.bits
    return choice.activation_bits == 8 and bits is not None and storage_type(bits, True).bitwidth == 8


def _absorbing(value: ir.Value) -> ir.Value:
    """The value behind a Relu or Clip that reads this one alone: what the QuantizeLinear has to follow."""
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output() and uses[0][0].op_type in ABSORBED and uses[0][1] == 0:
        return uses[0][0].outputs[0]
    return value
