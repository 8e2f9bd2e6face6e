"""Why a file's products do not run in onnxruntime's integer kernels on a CPU, as far as the graph alone shows it.

The rules are those of rules.py: what onnxruntime's Q/DQ selectors look for, and what its kernels take.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...core.machine import saturates
from ...core.plural import counted
from ..expected import THROUGH, ExpectedKernel, constant_behind, dequantizer, expected_kernels, stretch_to_clip
from ..finding import Finding
from .rules import clipping, in_few_bits

ABSORBED = ("Relu", "Clip")  # between a Conv and its QuantizeLinear
NBITS_BLOCKS = (16, 32, 64, 128, 256)


def check(model: ir.Model) -> list[Finding]:
    """A finding for every product whose form promises integers that onnxruntime will not use."""
    found = []
    for promise in expected_kernels(model):
        if promise.node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm", "ConvInteger", "MatMulInteger"):
            reason = (
                _rescaled(promise)
                if promise.node.op_type in ("ConvInteger", "MatMulInteger")
                else _wide(promise)
                if promise.data_bits == 16
                else _integer(promise)
                if promise.form == "int8"
                else _weights(promise)
                if promise.form == "weights"
                else None
            )
            if reason is not None:
                found.append(Finding("slow", reason[0], promise.name, reason[1], reason[2]))
    return found + (_saturating(expected_kernels(model)) if saturates() else [])


def _integer(promise: ExpectedKernel) -> tuple[str, str, str] | None:
    """Rule, message and remedy for a product of two dequantized 8-bit operands that stays float; None if it fuses."""
    node = promise.node
    if node.op_type == "ConvTranspose":
        return "no-kernel", "onnxruntime has no integer ConvTranspose", "leave its input in float"
    if node.op_type == "MatMul" and _behind_movement(node.inputs[1]):
        return (
            "dequantize-first",
            "its weight is moved after it was dequantized",
            "put the integers themselves in that order, or move them before the DequantizeLinear",
        )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and _depends_on_inputs(bias):
        return "bias", f"its bias {bias.name} is computed from the model's inputs", "add it behind the product"
    if node.op_type == "Conv":
        return _conv(node)
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None and not _goes_to_quantize(node):
        return (
            "gemm-bias",
            "it is a Gemm with a bias and no QuantizeLinear behind it",
            "put the bias into an Add behind it, or quantize the output",
        )
    return None


def _wide(promise: ExpectedKernel) -> tuple[str, str, str]:
    return (
        "wide",
        "onnxruntime has no kernel for 16-bit inputs: they are quantized, dequantized, and multiplied in float",
        "use --activations dynamic or int8 for speed",
    )


def _rescaled(promise: ExpectedKernel) -> tuple[str, str, str] | None:
    """The same for an integer operator whose sums are rescaled behind it."""
    node = promise.node
    if node.op_type == "ConvInteger":
        message = "onnxruntime's ConvInteger has no vector instructions, and is slower than Conv in float"
        return "no-kernel", message, "write it as a Conv between Q/DQ, on ranges of calibration data"
    cast = _only_use(node, "Cast")
    rescaled = None if cast is None else _only_use(cast, "Mul")
    factor = None if rescaled is None else next((x for x in rescaled.inputs if x not in cast.outputs), None)  # type: ignore[union-attr]
    made = None if factor is None else factor.producer()
    if made is None or made.op_type != "Mul":
        message = "onnxruntime fuses MatMulInteger where a Cast, and a Mul by a Mul of both scales, read it alone"
        return "rescaling", message, "write it so, as --activations dynamic does"
    return None


def _only_use(node: ir.Node, op_type: str) -> ir.Node | None:
    """The node of this type that alone reads another."""
    uses = list(node.outputs[0].uses())
    alone = len(uses) == 1 and not node.outputs[0].is_graph_output() and uses[0].node.op_type == op_type
    return uses[0].node if alone else None


def _conv(node: ir.Node) -> tuple[str, str, str] | None:
    if not _goes_to_quantize(node):
        readers = ", ".join(dict.fromkeys(use.node.op_type for use in _end(node).uses())) or "the graph's output"
        return (
            "output",
            f"its output goes to {readers}, not to QuantizeLinear alone",
            "put a QuantizeLinear and a DequantizeLinear behind it",
        )
    if (clip := _end(node).producer()) is not None and clip.op_type == "Clip" and _narrower_than_codes(clip):
        return (
            "clip",
            "the Clip behind it ends inside the range of the QuantizeLinear that follows: onnxruntime keeps both",
            "let that range end where the Clip does",
        )
    weight = dequantizer(node.inputs[1])
    axis = weight.attributes.get_int("axis", 1) if weight is not None else 0
    scale = None if weight is None else constant_behind(weight.inputs[1])
    if scale is not None and scale.size > 1 and axis != 0:
        return "axis", f"the scales of its weight lie along axis {axis}, not along its outputs", "use axis 0"
    return None


def _weights(promise: ExpectedKernel) -> tuple[str, str, str] | None:
    """The same for a product whose weight alone is an integer, or whose integers are not all of 8 bits."""
    node = promise.node
    if promise.data_bits is not None:
        return (
            "few-bits",
            "onnxruntime multiplies integers of 8 bits by such alone: others are dequantized, and multiplied in float",
            "use 8 bits for both, or --activations none",
        )
    if node.op_type in ("Conv", "ConvTranspose"):
        return (
            "weights-only",
            f"onnxruntime computes {node.op_type} in float where the weight alone is an integer: smaller, not faster",
            "quantize its input too for speed",
        )
    if not in_few_bits(node):
        message = "onnxruntime makes no MatMulNBits of a Gemm with transposed operands, or with alpha or beta"
        return "weights-only", message, "write it as MatMul and Add"
    weight = dequantizer(node.inputs[1])
    if weight is None:
        return "weights-only", "its left operand is the integer one, for which there is no kernel", "store it in float"
    codes = weight.inputs[0]
    if len(weight.outputs[0].uses()) > 1 or (codes is not None and len(codes.uses()) > 1):
        return "shared", "other nodes read its integers too, and then it does not become MatMulNBits", "give it a copy"
    block, axis = weight.attributes.get_int("block_size", 0), weight.attributes.get_int("axis", 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.shape is not None and len(bias.shape) != 1:
        return "bias", f"its bias has {counted(len(bias.shape), 'axis', 'axes')}", "give it one"
    if (reader := clipping(node)) is not None:
        message = f"a {reader.op_type} alone reads it, and then it does not become MatMulNBits"
        return "relu", message, "write Relu as Max with 0, and Clip as Max and Min"
    if block and (block not in NBITS_BLOCKS or axis != 0):
        return (
            "block",
            f"its weight has blocks of {block} along axis {axis}; MatMulNBits takes {NBITS_BLOCKS[0]} to "
            f"{NBITS_BLOCKS[-1]}, powers of two, along axis 0",
            "use such blocks",
        )
    return None


def _behind_movement(value: ir.Value | None) -> bool:
    """Whether operators that move elements stand between a DequantizeLinear and its reader."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type in THROUGH and dequantizer(value) is not None


def _depends_on_inputs(value: ir.Value) -> bool:
    """Whether a value is no constant, however it is computed."""
    node = value.producer()
    if node is None:
        return value.const_value is None
    return any(_depends_on_inputs(source) for source in node.inputs if source is not None)


def _end(node: ir.Node) -> ir.Value:
    """The value behind the Relu or Clip that follows a node alone."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in ABSORBED and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _goes_to_quantize(node: ir.Node) -> bool:
    end = _end(node)
    uses = list(end.uses())
    return bool(uses) and not end.is_graph_output() and all(use.node.op_type == "QuantizeLinear" for use in uses)


def _narrower_than_codes(clip: ir.Node) -> bool:
    """Whether the integers that a Clip's output becomes reach further than the Clip."""
    return any(stretch_to_clip(clip, use.node) < 1 for use in clip.outputs[0].uses())


def _saturating(promised: Sequence[ExpectedKernel]) -> list[Finding]:
    """Products whose weights reach beyond 7 bits, for a processor on which sums of them saturate."""
    message = "this processor has no VNNI, and 8-bit products can saturate on it, which no check of the file shows"
    remedy = "use --weights int7, or a processor with VNNI"
    wide = [one for one in promised if one.form == "int8" and one.largest > 64]
    return [Finding("note", "saturation", one.name, message, remedy) for one in wide]
