"""Traces a value back to the constant it is, through operators that only rearrange it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array

CHAIN = ("Identity", "Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten")
QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant as a node sees it.

    root: the initializer or Constant output it comes from. chain: what was done to it on the way, comparable.
    nodes: the nodes that did it. array: the result, a view of the root's data where that is possible.
    """

    root: ir.Value
    chain: tuple[tuple[object, ...], ...]
    nodes: tuple[ir.Node, ...]
    array: Array


ACTIVATION = "the weight is computed from the model's inputs"


def trace(value: ir.Value) -> Constant | str:
    """The constant that `value` is; ACTIVATION if it depends on the model's inputs; else the reason, for the report."""
    node = value.producer()
    if node is None or node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
        return ACTIVATION if tensor is None else Constant(value, (), (), tensor.numpy())
    if node.domain == "" and node.op_type in CHAIN and node.inputs[0] is not None:
        inner = trace(node.inputs[0])
        if isinstance(inner, str):
            return inner
        step = rearranged(node, inner.array)
        if step is not None:
            parameters, array = step
            chain = inner.chain if node.op_type == "Identity" else (*inner.chain, parameters)
            return Constant(inner.root, chain, (*inner.nodes, node), array)
    if _depends_on_inputs(value):
        return ACTIVATION
    if node.op_type in QUANTIZED:
        return "already quantized"
    return f"the weight comes out of {node.op_type}, which was not folded into a constant"


def rearranged(node: ir.Node, array: Array) -> tuple[tuple[object, ...], Array] | None:
    """What `node` does to `array`, as comparable parameters, and the result; None if it is none of the handled ones, or
    not possible: a shape of another size is an error only where the node runs."""
    try:
        return _rearranged(node, array)
    except (ValueError, IndexError):
        return None


def _rearranged(node: ir.Node, array: Array) -> tuple[tuple[object, ...], Array] | None:
    match node.op_type:
        case "Identity":
            return (), array
        case "Transpose":
            perm = tuple(node.attributes.get_ints("perm", range(array.ndim)[::-1]))
            return ("Transpose", perm), array.transpose(perm)
        case "Cast":
            dtype = ir.DataType(node.attributes["to"].as_int())
            return ("Cast", dtype), array.astype(dtype.numpy())
        case "Flatten":
            axis = node.attributes.get_int("axis", 1)
            shape = (int(np.prod(array.shape[:axis])), int(np.prod(array.shape[axis:])))
            return ("Reshape", shape), array.reshape(shape)
        case "Reshape" if (target := _integers(node, 1)) is not None:
            if not node.attributes.get_int("allowzero", 0):
                target = tuple(size or array.shape[axis] for axis, size in enumerate(target))
            reshaped = array.reshape(target)
        case "Squeeze" | "Unsqueeze":
            axes = tuple(node.attributes.get_ints("axes", ())) or _integers(node, 1)
            if node.op_type == "Unsqueeze" and axes is not None:
                reshaped = np.expand_dims(array, axes)
            elif axes is not None or len(node.inputs) < 2 or node.inputs[1] is None:
                reshaped = array.squeeze(axes)
            else:
                return None
        case _:
            return None
    return ("Reshape", reshaped.shape), reshaped


def _integers(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    constant = None if value is None else trace(value)
    return tuple(int(i) for i in constant.array) if isinstance(constant, Constant) else None


def _depends_on_inputs(value: ir.Value) -> bool:
    """Whether any input of the graph, or of the body it stands in, is among the value's ancestors."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        node = current.producer()
        if node is None:
            if ir.convenience.get_const_tensor(current) is None:
                return True
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return True
        for parent in node.inputs:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return False
