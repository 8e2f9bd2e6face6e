"""The rules of DeepSparse 1.8, its last release.

All found by trying on that release; figures are in docs/runtimes.md.
- It runs integer operators, not Q/DQ: a layer between Q/DQ goes to a slow fallback. So a finished model is lowered
  (`lower`): QuantizeLinear → ConvInteger or MatMulInteger → Add of an int32 bias → Cast → Mul by the scales.
- Mul by one scale is fused into what follows. By a scale for every channel it is a pass over the data of its own, which
  takes longer than a sparse convolution. So all rows of a weight share a scale, but for depthwise convolutions, whose
  few weights in a row cannot make up for a coarse one.
- Activations are unsigned with a zero point, weights are signed and symmetric, 8 bits wide.
- Convolutions in groups have an integer kernel only where a group is one channel; others do not load.
- Blocks of four zeros along the input channels are skipped.
- It reads opsets up to 17, IR versions up to 8, and no operators of other domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ...core.errors import ModelError
from ...core.level import Choice
from ...graph.layers import Layer
from ...graph.scales import runs_in_integers
from ...graph.write import Activation
from ..expected import constant_behind, expected_kernels
from ..finding import Finding
from ..onnxruntime import rules as onnxruntime

OPSET, IR_VERSION = 17, 8
BLOCK = 4


def unsupported(layer: Layer, choice: Choice) -> str | None:
    """Why DeepSparse cannot take this layer so, or None."""
    level = choice.level
    if level.bits is None:
        return None
    if level.bits < 5:
        return f"DeepSparse reads no int{level.bits} weights"
    if choice.activation_bits is None:
        return "DeepSparse runs integer weights only where the input is quantized too; leave out --activations none"
    if choice.dynamic:
        return "DeepSparse is given inputs on ranges of calibration data only; use --activations int8"
    if not level.symmetric:
        return "DeepSparse takes symmetric weights only; leave out --asymmetric"
    if layer.op == "ConvTranspose" or level.block is not None or not runs_in_integers(layer):
        return "DeepSparse has no integer kernel for this layer"
    if layer.groups > 1 and (layer.op != "Conv" or layer.rows > 1):
        return "DeepSparse has no integer kernel for groups of several channels"
    if any(use.index == 0 for use in layer.uses) and layer.op in ("MatMul", "Gemm"):
        return "DeepSparse has no integer kernel for a constant left operand"
    return None


def activation_bits(layer: Layer, choice: Choice) -> tuple[int | None, str | None]:
    """The bits that a layer's input is quantized to, and why they are not the ones asked for."""
    if choice.activation_bits is None or choice.level.bits is None or choice.activation_bits == 8:
        return choice.activation_bits, None
    return 8, f"DeepSparse has no kernel for {choice.activation_bits}-bit activations: 8 bits"


def prepare(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> None:
    """The graph stays as it is. Raises ModelError if DeepSparse cannot read its opset."""
    opset = model.opset_imports.get("", 0)
    if opset > OPSET:
        raise ModelError(f"DeepSparse reads opsets up to {OPSET}, not {opset}; export the model again at {OPSET}")


def place_qdq(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> list[Activation]:
    """Where onnxruntime has them: the inputs of layers, and all between layers that runs in integers."""
    return onnxruntime.place_qdq(model, layers, choices)


def check(model: ir.Model) -> list[Finding]:
    """What DeepSparse refuses in a file, and what it will not accelerate."""
    found = []
    opset = model.opset_imports.get("", 0)
    if opset > OPSET:
        message = f"it has opset {opset}, and DeepSparse reads up to {OPSET}"
        found.append(Finding("error", "opset", "", message, f"export the model at opset {OPSET}"))
    if model.ir_version > IR_VERSION:
        message = f"it has IR version {model.ir_version}, and DeepSparse reads up to {IR_VERSION}"
        found.append(Finding("error", "ir-version", "", message, f"save it with IR version {IR_VERSION}"))
    for domain in model.opset_imports:
        if domain not in ("", "ai.onnx"):
            message = f"it imports operators of {domain}, which DeepSparse refuses even where none is used"
            found.append(Finding("error", "domain", "", message, "remove the import"))
    for promise in expected_kernels(model):
        node = promise.node
        if promise.form == "int8" and node.op_type in ("Conv", "MatMul", "Gemm", "ConvTranspose", "QLinearConv"):
            message = f"DeepSparse does not accelerate {node.op_type} with Q/DQ or QLinear inputs"
            remedy = "write it with ConvInteger or MatMulInteger, as --target deepsparse does"
            found.append(Finding("slow", "form", promise.name, message, remedy))
        elif promise.form == "weights":
            message = "DeepSparse does not accelerate weights that alone are integers"
            found.append(Finding("slow", "weights-only", promise.name, message, "quantize its input too"))
        elif promise.node.op_type in ("ConvInteger", "MatMulInteger") and _rescaled_by_channel(promise.node):
            message = "its output is multiplied by a scale for every channel, a pass over the data of its own"
            found.append(Finding("slow", "scales", promise.name, message, "give all rows of its weight one scale"))
    return found


def _rescaled_by_channel(node: ir.Node) -> bool:
    """Whether the Mul behind an integer product has many scales. A depthwise convolution may: see above."""
    if node.attributes.get_int("group", 1) > 1:
        return False
    while node.op_type != "Mul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type not in ("Add", "Cast", "Mul"):
            return False
        node = uses[0].node
    constants = [constant_behind(value) for value in node.inputs]
    return any(tensor is not None and tensor.size > 1 for tensor in constants)
