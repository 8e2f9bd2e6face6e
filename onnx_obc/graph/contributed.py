"""Operators that onnxruntime adds to ONNX: what the ONNX checker and shape inference have to be told of them.

Exporters and optimizers leave them in models: in the domain com.microsoft, and a few in ONNX's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass
from onnxscript.optimizer import _constant_folding

from ..core.arrays import Array
from .tensors import nodes_of

DOMAIN = "com.microsoft"
IN_ONNX = ("SimplifiedLayerNormalization", "LayerNormalization")  # onnxruntime has them in ONNX's domain, in any opset
SAME = (
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FastGelu", "BiasGelu", "QuickGelu", "Gelu"),
    *("RotaryEmbedding", "BiasSoftmax", "BiasDropout", "BiasAdd"),
)  # the first output has the shape of the first input

Dims: TypeAlias = list[int | ir.SymbolicDim]


def has_onnxruntimes_own(model: ir.Model) -> bool:
    """Whether there are nodes that the ONNX checker refuses, though onnxruntime runs them: see `check_model`."""
    opset = model.opset_imports.get("", 0)
    return any(_own(node, opset) for node in nodes_of(model))


def _own(node: ir.Node, opset: int) -> bool:
    """Whether a node stands in ONNX's domain, but only onnxruntime has its operator in this opset."""
    return node.domain == "" and node.op_type in IN_ONNX and not onnx.defs.has(node.op_type, opset, "")


def check_model(model: ir.Model) -> None:
    """Run the ONNX checker, without those nodes that only onnxruntime knows. Raises what the checker raises."""
    opset = model.opset_imports.get("", 0)
    if has_onnxruntimes_own(model):
        model = model.clone()
        model.graph.opset_imports.setdefault(DOMAIN, 1)
        for function in model.functions.values():
            function.opset_imports.setdefault(DOMAIN, 1)
        for node in nodes_of(model):
            if _own(node, opset):
                node.domain = DOMAIN  # which the checker takes as it is
    CheckerPass()(model)


def check_path(path: Path) -> None:
    """The same of a file, weights beside it included. Raises onnx.checker.ValidationError."""
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        if "No Op registered" not in str(error) or not has_onnxruntimes_own(model := ir.load(path)):
            raise
        try:
            check_model(model)
        except Exception as other:  # the pass wraps what the checker raises
            raise onnx.checker.ValidationError(str(other.__cause__ or other)) from other


def shape_of(node: ir.Node) -> Dims | None:
    """The shape of the first output of one of onnxruntime's operators; None where it is not known."""
    if node.op_type in (*SAME, *IN_ONNX):
        return _dims(node, 0)
    if node.op_type in _RULES:
        try:
            return _RULES[node.op_type](node)
        except (IndexError, TypeError):  # an input without a shape, or with too few axes
            return None
    return None


def _attention(node: ir.Node) -> Dims | None:
    data, weight, sizes = _dims(node, 0), _dims(node, 1), tuple(node.attributes.get_ints("qkv_hidden_sizes", ()))
    if data is None or weight is None:
        return None
    width = sizes[2] if sizes else weight[1] // 3 if isinstance(weight[1], int) else ir.SymbolicDim(None)
    return [*data[:2], width]


def _multi_head(node: ir.Node) -> Dims | None:
    query, value = _dims(node, 0), _dims(node, 2)
    if query is None or value is None or len(query) != 3 or len(value) != 3:
        return None
    return [*query[:2], value[2]]


def _grouped_query(node: ir.Node) -> Dims | None:
    return _dims(node, 0) if _dims(node, 1) is not None else None


def _fused_product(node: ir.Node) -> Dims | None:
    left, right = _dims(node, 0), _dims(node, 1)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return None
    rows = left[-1 if node.attributes.get_int("transA", 0) else -2]
    columns = right[-2 if node.attributes.get_int("transB", 0) else -1]
    longer, shorter = (left[:-2], right[:-2]) if len(left) >= len(right) else (right[:-2], left[:-2])
    if any(size != 1 and size != longer[len(longer) - len(shorter) + i] for i, size in enumerate(shorter)):
        longer = [ir.SymbolicDim(None)] * len(longer)
    return [*longer, rows, columns]


def _few_bits(node: ir.Node) -> Dims | None:
    data = _dims(node, 0)
    return None if data is None else [*data[:-1], node.attributes.get_int("N")]


_RULES: dict[str, Callable[[ir.Node], Dims | None]] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped_query,
    "FusedMatMul": _fused_product,
    "MatMulNBits": _few_bits,
}


def _dims(node: ir.Node, index: int) -> Dims | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.shape is None else list(value.shape)


def _infer(node: ir.Node, *_: object) -> None:
    """Give the output of one of onnxruntime's operators, and the sum beside it, type and shape; nothing is replaced."""
    source, sum_of_both = node.inputs[0], node.op_type.startswith("Skip") and len(node.outputs) > 3
    for output in (node.outputs[0], *([node.outputs[3]] if sum_of_both else [])):
        if output.type is None and source is not None and source.dtype is not None:
            output.type = ir.TensorType(source.dtype)
        if output.shape is None and (dims := shape_of(node)) is not None:
            output.shape = ir.Shape(dims)


def teach_shapes() -> None:
    """Have the optimizer, which infers shapes node by node as it folds, know these operators too."""
    for domain, names in (("", IN_ONNX), (DOMAIN, (*SAME, *_RULES))):
        for name in names:
            known = _constant_folding.registry.op_evaluators.get((domain, name), [])
            if not any(evaluator.function is _infer for evaluator in known):
                _constant_folding.register(name, domain)(_infer)


FEW_BITS = ("MatMulNBits", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "QMoE")
INTEGERS = (
    *("QAttention", "QGemm", "QLinearAdd", "QEmbedLayerNormalization", "QOrderedMatMul", "QuantizeBFP"),
    *("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulInteger16"),
)
ANGLES = ("RotaryEmbedding", "GroupQueryAttention")
UNPACKED = ("Attention", "FusedMatMul", "FusedGemm", "FusedConv", "EmbedLayerNormalization")


def why_left_out(node: ir.Node) -> str:
    """Why the constants of a node of another domain than ONNX's are no layer."""
    name = node.op_type
    if node.domain == "com.microsoft.nchwc":
        return f"{name} holds weights in an order of onnxruntime's own: optimize the model no further than `extended`"
    if node.domain == DOMAIN:
        if name in FEW_BITS:
            return f"already int{node.attributes.get_int('bits', 4)}"
        if name in INTEGERS:
            return "already quantized"
        if name in ANGLES:
            return f"the constants of {name} are sines and cosines, not weights"
        if name == "MultiHeadAttention":
            return f"the constants of {name} are biases and masks, not weights"
        if name in UNPACKED:
            return f"{name} in a form that cannot be taken apart into ONNX's operators, its weights stay as they are"
    return f"{name} of domain {node.domain} is not handled, its weights stay as they are"


def unpacked_bytes(node: ir.Node) -> list[Array]:
    """The codes (N, K) and the zero points (N, blocks) of a MatMulNBits of 8 bits, signed; none of others."""
    if node.op_type != "MatMulNBits" or node.attributes.get_int("bits", 4) != 8:
        return []
    columns = (node.attributes.get_int("K"), None)
    tensors = [value.const_value for value in (node.inputs[1], *node.inputs[3:4]) if value is not None]
    arrays = [x.numpy().reshape(node.attributes.get_int("N"), -1) for x in tensors if x is not None]
    return [(x[:, :k].astype(np.int16) - 128).astype(np.int8) for x, k in zip(arrays, columns, strict=False)]
