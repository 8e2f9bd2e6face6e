"""The rules of OpenVINO on a CPU.

Source: OpenVINO's low precision transformations (documentation, "OpenVINO Low Precision Transformations"), which take
over QuantizeLinear and DequantizeLinear as FakeQuantize; all were tried on OpenVINO 2026.4.
- Activations are unsigned with a zero point and per tensor, weights are signed, 8 bits wide, and per output channel.
- A product runs in integers if both of its operands come from DequantizeLinear; its bias stays float, and its output
  needs no QuantizeLinear, though one is fused into it where it is there. So Q/DQ stand where onnxruntime has them.
- Weights alone of 8 or 4 bits are decompressed on the way in MatMul, and there OpenVINO quantizes the input itself, on
  the range of each 32 values (its property DYNAMIC_QUANTIZATION_GROUP_SIZE); Conv has no such kernel and computes in
  float. A DynamicQuantizeLinear in the file is taken apart, and what it feeds is multiplied in float.
- Of 16-bit Q/DQ nothing is left: the product runs as with its weight alone an integer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...core.level import Choice
from ...graph.layers import Layer, Use
from ...graph.scales import runs_in_integers
from ...graph.write import Activation
from ..expected import dequantizer, expected_kernels
from ..finding import Finding
from ..onnxruntime import rules as onnxruntime


def unsupported(layer: Layer, choice: Choice) -> str | None:
    """Why OpenVINO cannot take this layer so, or None."""
    level = choice.level
    if level.bits is not None and level.bits < 4:
        return f"OpenVINO reads no int{level.bits} weights"
    if level.bits is not None and any(_has_more_axes(use) for use in layer.uses):
        return "OpenVINO drops the leading axes of an integer weight that has more of them than the data"
    if choice.activation_bits is not None and not level.symmetric and (not choice.dynamic or not_dynamic(layer)):
        return "OpenVINO's integer kernels take symmetric weights only; leave out --asymmetric"
    return None


def _has_more_axes(use: Use) -> bool:
    """Whether the weight of a product has more axes than its data, so that the output takes its leading ones."""
    data, weight = (use.node.inputs[index] for index in (1 - use.index, use.index))
    shapes = [None if value is None else value.shape for value in (data, weight)]
    return use.node.op_type == "MatMul" and all(shapes) and len(shapes[1]) > max(len(shapes[0]), 2)  # type: ignore[arg-type]


def activation_bits(layer: Layer, choice: Choice) -> tuple[int | None, str | None]:
    """The bits that a layer's input is quantized to, and why they are not the ones asked for."""
    if choice.activation_bits is None or choice.level.bits is None:
        return None, None
    if any(use.index == 0 for use in layer.uses) and layer.op in ("MatMul", "Gemm"):
        return None, "OpenVINO has no integer kernel for a constant left operand: its input stays float"
    if choice.dynamic and not_dynamic(layer) is None:
        return None, "OpenVINO quantizes the input itself, on ranges of its own: in the file it stays float"
    if layer.op == "ConvTranspose" or choice.level.block is not None or not runs_in_integers(layer):
        return None, "OpenVINO has no integer kernel for this layer: its input stays float"
    if choice.level.bits < 5:
        return None, f"OpenVINO has no integer kernel for int{choice.level.bits} weights: its input stays float"
    if choice.activation_bits > 8:
        return None, "OpenVINO drops 16-bit quantization: its input stays float"
    if choice.activation_bits < 8:
        return 8, f"OpenVINO has no kernel for {choice.activation_bits}-bit activations: 8 bits"
    return 8, None


def not_dynamic(layer: Layer) -> str | None:
    """Why a layer's input has a range of calibration data though that of each input was asked for, or None."""
    if "Conv" in layer.op:
        return "OpenVINO quantizes no input of Conv by itself: it has a range of calibration data"
    return None


def prepare(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> None:
    """OpenVINO takes the graph as it is."""


def place_qdq(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> list[Activation]:
    """Where onnxruntime has them: the inputs of layers, and all between layers that has integer kernels."""
    return onnxruntime.place_qdq(model, layers, choices)


def check(model: ir.Model) -> list[Finding]:
    """A finding for every product whose form promises integers that OpenVINO will not use, or that it refuses."""
    found = []
    for promise in expected_kernels(model):
        node = promise.node
        if node.op_type in ("ConvInteger", "MatMulInteger"):
            message = f"OpenVINO takes {node.op_type} and its rescaling apart, and multiplies in float"
            found.append(Finding("slow", "no-kernel", promise.name, message, "write it between Q/DQ"))
        elif promise.data_bits == 16:
            message = "OpenVINO has no kernel for 16-bit inputs, and drops their quantization"
            found.append(Finding("slow", "wide", promise.name, message, "quantize its input to 8 bits, or not at all"))
        elif promise.form == "weights" and node.op_type in ("Conv", "ConvTranspose"):
            message = f"OpenVINO computes {node.op_type} in float where the weight alone is an integer"
            found.append(Finding("slow", "weights-only", promise.name, message, "quantize its input too for speed"))
        elif promise.form != "float" and node.op_type in ("MatMul", "Gemm") and dequantizer(node.inputs[1]) is None:
            message = "its left operand is the integer one, for which OpenVINO has no kernel"
            found.append(Finding("slow", "left-operand", promise.name, message, "store it in float"))
        elif promise.form == "int8" and node.op_type == "ConvTranspose":
            message = "OpenVINO has no integer kernel for ConvTranspose with Q/DQ"
            found.append(Finding("slow", "no-kernel", promise.name, message, "leave its input in float"))
        elif promise.form == "int8" and _asymmetric(node.inputs[1]):
            message = "its weight has zero points that are not 0, which OpenVINO's integer kernels do not take"
            found.append(Finding("slow", "symmetric", promise.name, message, "quantize the weight symmetrically"))
    return found


def _asymmetric(weight: ir.Value | None) -> bool:
    node = dequantizer(weight)
    zero = node.inputs[2] if node is not None and len(node.inputs) > 2 else None
    tensor = None if zero is None else ir.convenience.get_const_tensor(zero)
    return tensor is not None and bool((tensor.numpy() != 0).any())
