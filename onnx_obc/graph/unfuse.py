"""Takes apart what onnxruntime and its optimizers fuse around a weight, so that it is a MatMul's, Gemm's or Conv's.

FusedMatMul, FusedGemm, FusedConv, EmbedLayerNormalization and, with the packed weights of queries, keys and values,
Attention, of the domain com.microsoft. The values that were there keep their names. onnxruntime fuses
again what it gains by, and nothing else need know these operators. Those of two activations stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.plural import counted
from .constants import Constant, trace
from .contributed import DOMAIN
from .edit import add_initializer, names_of, supersede, take_name

MASK_RANKS = (1, 2, 3)  # of the masks that MultiHeadAttention takes as Attention does
ACTIVATIONS = {"HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "Elu": ("alpha",)}  # and their parameters
PLAIN = ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign")


def unfuse(model: ir.Model) -> str | None:
    """Take such operators of the main graph apart, in place."""
    builder = _Builder(model, set(names_of(model)), model.opset_imports.get("", 0))
    done = 0
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in _PARTS:
            done += _PARTS[node.op_type](node, builder)
    return f"{counted(done, 'fused operator')} taken apart into ONNX's own" if done else None


@dataclass(frozen=True)
class _Builder:
    """Puts nodes in front of another, under free names."""

    model: ir.Model
    taken: set[str]
    opset: int

    def name(self, name: str) -> str:
        return take_name(name, self.taken)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        array = np.ascontiguousarray(array) if array.ndim else array
        return add_initializer(self.model.graph, self.name(name), array)

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
        outputs: int = 1,
        domain: str = "",
    ) -> list[ir.Value]:
        """A new node in front of `before`, named after it."""
        base = before.name or str(before.outputs[0].name)
        node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=outputs)
        node.name = self.name(f"{base}/{op_type}")
        for index, value in enumerate(node.outputs):
            value.name = self.name(f"{base}/{op_type}_{index}" if outputs > 1 else f"{base}/{op_type}_output")
        self.model.graph.insert_before(before, node)
        return list(node.outputs)

    def replace(self, node: ir.Node, values: Sequence[ir.Value | None], product: ir.Value) -> None:
        """Let the values take the places and names of the node's outputs; what makes `product` gets the node's name."""
        name, made = node.name, values[0]
        for output, value in zip(node.outputs[1:], values[1:], strict=False):
            if value is not None and output.name:
                ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
                value.name, value.type, value.shape = output.name, output.type, output.shape or value.shape
        assert made is not None
        supersede(self.model, node, made)
        if name and (producer := product.producer()) is not None:
            producer.name = name

    def multiplied(self, value: ir.Value, name: str, factor: float, turned: bool) -> ir.Value | None:
        """A constant matrix times a factor, its last two axes swapped if `turned`; None if that is not to be had."""
        if factor == 1 and not turned:
            return value
        found = trace(value)
        if not isinstance(found, Constant) or found.array.dtype != np.float32 or (turned and found.array.ndim < 2):
            return None
        array = found.array.swapaxes(-1, -2) if turned else found.array
        scaled = array if factor == 1 else (array.astype(np.float64) * factor).astype(np.float32)
        return self.constant(f"{value.name}_{name}", scaled)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and isinstance(trace(value), Constant)


def _fused_matmul(node: ir.Node, builder: _Builder) -> bool:
    """alpha · A′B′: alpha and the transposition of the constant go into it; the other is transposed in front."""
    flags = [bool(node.attributes.get_int(key, 0)) for key in ("transA", "transB")]
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return False
    left, right = node.inputs
    constant = [_is_constant(left), _is_constant(right)]
    if left is None or right is None or constant[0] == constant[1]:
        return False
    index = constant.index(True)
    weight, data = (left, right)[index], (left, right)[1 - index]
    if flags[1 - index]:
        if data.shape is None or len(data.shape) < 2:
            return False
        rank = len(data.shape)
        perm = [*range(rank - 2), rank - 1, rank - 2]
    new = builder.multiplied(weight, "scaled", node.attributes.get_float("alpha", 1.0), flags[index])
    if new is None:
        return False
    if flags[1 - index]:
        (data,) = builder.add(node, "Transpose", [data], {"perm": perm})
    operands = [new, data] if index == 0 else [data, new]
    (product,) = builder.add(node, "MatMul", operands)
    builder.replace(node, [product], product)
    return True


def _activated(node: ir.Node, builder: _Builder, value: ir.Value, parameters: Sequence[float]) -> ir.Value | None:
    """A value behind the activation function that a fused node has; itself without one, None for an unknown one."""
    kind = node.attributes.get_string("activation", "")
    if not kind:
        return value
    if kind == "Clip" and len(parameters) == 2 and builder.opset >= 11:
        bounds = [builder.constant(f"{node.name}_{key}", np.array(x, np.float32)) for key, x in
                  zip(("min", "max"), parameters, strict=True)]  # fmt: skip
        return builder.add(node, "Clip", [value, *bounds])[0]
    if kind in PLAIN:
        return builder.add(node, kind, [value])[0]
    if kind in ACTIVATIONS:
        named = dict(zip(ACTIVATIONS[kind], parameters, strict=False))
        return builder.add(node, kind, [value], named)[0]
    return None


def _known_activation(node: ir.Node, opset: int) -> bool:
    kind = node.attributes.get_string("activation", "")
    return kind in ("", *PLAIN, *ACTIVATIONS) or (kind == "Clip" and opset >= 11)


def _fused_gemm(node: ir.Node, builder: _Builder) -> bool:
    if not _known_activation(node, builder.opset):
        return False
    keys = ("transA", "transB", "alpha", "beta")
    attributes = {key: node.attributes[key].value for key in keys if key in node.attributes}
    (product,) = builder.add(node, "Gemm", list(node.inputs), attributes)
    given = [f"activation_{key}" for key in ("alpha", "beta") if f"activation_{key}" in node.attributes]
    end = _activated(node, builder, product, [node.attributes[key].as_float() for key in given])
    builder.replace(node, [end], product)
    return True


def _fused_conv(node: ir.Node, builder: _Builder) -> bool:
    if not _known_activation(node, builder.opset):
        return False
    keys = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    attributes = {key: node.attributes[key].value for key in keys if key in node.attributes}
    (product,) = builder.add(node, "Conv", [x for x in node.inputs[:3] if x is not None], attributes)
    added = _input(node, 3)
    value = product if added is None else builder.add(node, "Add", [product, added])[0]
    parameters = tuple(node.attributes.get_floats("activation_params", ()))
    builder.replace(node, [_activated(node, builder, value, parameters)], product)
    return True


def _attention(node: ir.Node, builder: _Builder) -> bool:
    """Attention with packed weights (hidden, queries + keys + values) as MatMul, Add, Split and MultiHeadAttention."""
    data, weight, bias, mask, past, extra = (_input(node, index) for index in range(6))
    if data is None or weight is None or not _is_constant(weight) or _input(node, 6) is not None:
        return False
    if node.attributes.get_int("do_rotary", 0) or node.attributes.get_int("past_present_share_buffer", 0):
        return False
    if mask is not None and not _takes(mask, data, past is not None):
        return False
    found = trace(weight)
    assert isinstance(found, Constant)
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ())) or [found.array.shape[1] // 3] * 3
    (product,) = builder.add(node, "MatMul", [data, weight])
    value = product if bias is None else builder.add(node, "Add", [product, bias])[0]
    if builder.opset >= 13:
        parts = builder.add(
            node, "Split", [value, builder.constant(f"{weight.name}_sizes", np.array(sizes))], {"axis": -1}, 3
        )
    else:
        parts = builder.add(node, "Split", [value], {"axis": -1, "split": sizes}, 3)
    before: list[ir.Value | None] = [None, None]
    if past is not None:
        picks = [builder.constant(f"{node.name}_{index}", np.array(index)) for index in (0, 1)]
        before = [builder.add(node, "Gather", [past, pick], {"axis": 0})[0] for pick in picks]
    keys = ("num_heads", "scale", "mask_filter_value", "unidirectional")
    attributes = {key: node.attributes[key].value for key in keys if key in node.attributes}
    wants_present = len(node.outputs) > 1 and bool(node.outputs[1].name)
    inputs = [*parts, None, mask, extra, *before]
    while inputs[-1] is None:
        inputs.pop()
    outputs = builder.add(node, "MultiHeadAttention", inputs, attributes, 3 if wants_present else 1, DOMAIN)
    present = None
    if wants_present:
        axis = {"axis": 0}
        both = [_unsqueezed(node, builder, value) for value in outputs[1:]]
        (present,) = builder.add(node, "Concat", both, axis)
    builder.replace(node, [outputs[0], present], product)
    return True


def _takes(mask: ir.Value, data: ir.Value, has_past: bool) -> bool:
    """Whether MultiHeadAttention takes a mask of Attention's: (batch,), (3 · batch + 2,), or with a place for each key.

    Attention also takes (2 · batch,), and masks of one key that stands for all.
    """
    if mask.shape is None or len(mask.shape) not in MASK_RANKS:
        return False
    batch, tokens, _ = data.shape if data.shape is not None and len(data.shape) == 3 else [ir.SymbolicDim(None)] * 3
    last = mask.shape[-1]
    if isinstance(last, ir.SymbolicDim):  # a size without a name may be any
        return len(mask.shape) > 1 or last.value is None or last == batch
    if len(mask.shape) == 1:
        return isinstance(batch, int) and last in (batch, 3 * batch + 2)
    return last != 1 and (last == tokens or has_past or not isinstance(tokens, int))


def _unsqueezed(node: ir.Node, builder: _Builder, value: ir.Value) -> ir.Value:
    """A value with an axis of one entry in front."""
    if builder.opset < 13:
        return builder.add(node, "Unsqueeze", [value], {"axes": [0]})[0]
    return builder.add(node, "Unsqueeze", [value, builder.constant(f"{node.name}_axes", np.array([0]))])[0]


def _embed(node: ir.Node, builder: _Builder) -> bool:
    """Word, position and segment embeddings as Gather, their sum and SkipLayerNormalization."""
    ids, segments, words, positions, kinds, gamma, beta, mask, where = (_input(node, index) for index in range(9))
    wanted = [value for value in node.outputs[1:] if value.name and (value.uses() or value.is_graph_output())]
    counts = len(node.outputs) > 1 and node.outputs[1] in wanted
    if builder.opset < 13 or None in (ids, words, positions, gamma, beta) or (counts and mask is None):
        return False
    if not all(_is_constant(table) for table in (words, positions)) or bool(
        node.attributes.get_int("mask_index_type", 0)
    ):
        return False
    (word,) = builder.add(node, "Gather", [words, ids])
    if where is not None:
        (place,) = builder.add(node, "Gather", [positions, where])
    else:  # the first rows, as many as there are words
        zero, axis = (builder.constant(f"{node.name}_{key}", np.array([x])) for key, x in (("start", 0), ("axis", 0)))
        (shape,) = builder.add(node, "Shape", [ids])
        (length,) = builder.add(node, "Gather", [shape, builder.constant(f"{node.name}_second", np.array([1]))])
        (place,) = builder.add(node, "Slice", [positions, zero, length, axis])
    skip = place
    if segments is not None and kinds is not None:
        (word,) = builder.add(node, "Add", [word, place])
        (skip,) = builder.add(node, "Gather", [kinds, segments])
    epsilon = {"epsilon": node.attributes.get_float("epsilon", 1e-12)}
    outputs = builder.add(node, "SkipLayerNormalization", [word, skip, gamma, beta], epsilon, 4, DOMAIN)
    count = None
    if counts:
        axes = builder.constant(f"{node.name}_axes", np.array([1]))
        (count,) = builder.add(node, "ReduceSum", [mask, axes], {"keepdims": 0})
        count.shape = ir.Shape([None])
    builder.replace(node, [outputs[0], count, outputs[3]], outputs[0])
    return True


_PARTS: dict[str, Callable[[ir.Node, _Builder], bool]] = {
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "FusedGemm": _fused_gemm,
    "FusedConv": _fused_conv,
    "Attention": _attention,
    "EmbedLayerNormalization": _embed,
}
