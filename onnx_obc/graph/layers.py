"""Finds the layers of a graph and views each weight as a matrix, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Float32
from ..core.level import NM, Block, Level
from .constants import ACTIVATION, Constant, trace
from .contributed import why_left_out
from .half import float_bytes

ALREADY_INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
UNHANDLED = (*ALREADY_INTEGER, "LSTM", "GRU", "RNN", "Einsum", "DeformConv")
EMBEDDING_SIZE = 1024  # elements; a smaller table is not worth a level


@dataclass(frozen=True)
class Window:
    """How a Conv or ConvTranspose sees its input: a sliding window. Columns are ordered (kernel…, channels/groups)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # begin of every axis, then end of every axis, as in ONNX
    auto_pad: str  # NOTSET, VALID, SAME_UPPER, SAME_LOWER
    groups: int
    transposed: bool  # ConvTranspose
    output_padding: tuple[int, ...] = ()  # ConvTranspose only
    output_shape: tuple[int, ...] = ()  # ConvTranspose only; spatial


@dataclass(frozen=True)
class Contraction:
    """How a MatMul or Gemm sees its input: vectors along `axis`, negative, counted from the end.

    `batch` is the weight's own batch shape: one group for every entry, aligned with the input's leading dimensions
    by broadcasting from the right; () for one group.
    """

    axis: int
    batch: tuple[int, ...] = ()

    def along(self, rank: int) -> int:
        """The axis, counted from the front, in an input of so many axes: a vector has only the first."""
        return max(rank + self.axis, 0)


@dataclass(frozen=True)
class Tap:
    """One layer input: the value's name, and how it unfolds into X (groups, columns, positions).

    Layers with equal taps share one Hessian.
    """

    value: str
    unfold: Window | Contraction


@dataclass(frozen=True)
class Use:
    """One node that uses a layer's weight, and the index of the weight among the node's inputs."""

    node: ir.Node
    index: int
    tap: Tap


@dataclass(frozen=True)
class View:
    """How a weight tensor becomes a weight matrix: reshape to `split`, transpose by `order`, reshape to
    (groups, rows, columns)."""

    split: tuple[int, ...]
    order: tuple[int, ...]
    groups: int
    rows: int
    columns: int
    channels: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One compressible weight and the nodes that use it. See `matrix` for its view as a weight matrix."""

    name: str
    op: str  # Conv, ConvTranspose, MatMul, Gemm
    uses: tuple[Use, ...]
    weight: Float32  # as the nodes see it (behind any Transpose, Reshape, Cast)
    groups: int
    rows: int
    columns: int
    channels: int  # input channels per group: how many consecutive columns lie at one kernel position
    view: View
    weight_name: str  # the initializer (or Constant output) that the weight comes from
    shared: bool  # something else reads that initializer too: it stays in the file beside the compressed weight
    float_bytes: int = 4  # of a weight in the user's file

    def matrix(self) -> Float32:
        """The weight as (groups, rows, columns) float32, a copy.

        Conv: columns ordered (kernel…, C/groups). ConvTranspose: rows M/groups, columns (kernel…, C/groups).
        MatMul and Gemm: rows are outputs, columns the axis that is summed over; one group for each entry of a batched
        constant. Gemm's alpha only scales its outputs and is left out.
        """
        view = self.view
        parts = self.weight.reshape(view.split).transpose(view.order)  # (groups, rows…, columns…)
        return np.array(parts.reshape(view.groups, view.rows, view.columns), dtype=np.float32)

    def tensor(self, matrix: np.ndarray) -> np.ndarray:
        """The inverse of `matrix`: (groups, rows, columns) of any dtype back to the shape that the nodes see."""
        view = self.view
        parts = matrix.reshape([view.split[axis] for axis in view.order])  # (groups, rows…, columns…)
        return np.ascontiguousarray(parts.transpose(np.argsort(view.order))).reshape(self.weight.shape)

    def impossible(self, level: Level) -> str | None:
        """Why this layer cannot take this level on any target; None if it can."""
        match level.sparsity:
            case NM(m=length) | Block(size=length) if self.channels % length:
                short = str(level.sparsity).split("-")[0]
                what = "C/groups" if "Conv" in self.op else "the number of columns"
                return f"{short}: {what} = {self.channels} is not a multiple of {length}"
        if level.block is not None:
            if "Conv" in self.op:
                return "blocks that share a scale are for MatMul and Gemm; no runtime has them for convolutions"
            if self.groups > 1 or self.weight.ndim != 2:
                return "blocks that share a scale need a weight of two axes"
            if self.columns % level.block:
                return f"blocks of {level.block}: the number of columns = {self.columns} is not a multiple of it"
        return None


@dataclass(frozen=True)
class LeftOut:
    """A weight that stays as it is, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Embedding:
    """A table that Gather looks rows up in. Its name is the initializer's."""

    name: str
    weight_name: str
    nodes: tuple[ir.Node, ...]
    shape: tuple[int, int]  # rows, columns
    float_bytes: int = 4  # of a number in the user's file

    def table(self) -> Float32:
        """The table itself, of this shape."""
        value = self.nodes[0].inputs[0]
        assert value is not None and value.const_value is not None
        return value.const_value.numpy()


class _NoLayer(Exception):
    """Why a node that has a weight is not a use of a layer."""


def find_layers(model: ir.Model) -> tuple[list[Layer], list[LeftOut]]:
    """All layers in the order of the graph, and everything with a weight that cannot be one, with the reason.

    A weight is an initializer or a Constant, directly or behind Identity, Transpose, Reshape, Cast, Squeeze,
    Unsqueeze and Flatten. Nodes that see the same one in the same way are uses of one layer. An initializer that is
    also a graph input (old exporters list all of them) counts as constant: who replaces the weight removes the input.
    """
    found: dict[tuple[object, ...], list[tuple[Use, View, Constant]]] = {}
    left: list[LeftOut] = []
    for node in model.graph:
        try:
            use = _use(node)
        except _NoLayer as reason:
            left.append(LeftOut(_node_name(node), node.op_type, str(reason)))
            use = None
        if use is not None:
            weight = use[2]
            found.setdefault((node.op_type, use[1], weight.root, weight.chain), []).append(use)
        left += _inside_bodies(node)
    for function in model.functions.values():
        why = f"inside the function {function.name}, which was not inlined"
        left += [LeftOut(_node_name(node), node.op_type, why) for node in function.all_nodes() if _has_weight(node)]
    taken: set[str] = set()
    size = float_bytes(model)
    return [_layer(index, group, taken, size) for index, group in enumerate(found.values())], left


def find_embeddings(model: ir.Model) -> list[Embedding]:
    """The float32 tables of at least 1024 elements that Gather looks rows up in, in the order of the graph."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type != "Gather" or node.domain != "" or node.attributes.get_int("axis", 0) not in (0, -2):
            continue
        table = node.inputs[0]
        tensor = table.const_value if table is not None and table.is_initializer() else None
        if table is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if len(tensor.shape) == 2 and tensor.size >= EMBEDDING_SIZE:
            readers.setdefault(table, []).append(node)
    embeddings = []
    for table, nodes in readers.items():
        assert table.const_value is not None
        rows, columns = table.const_value.shape.numpy()
        embeddings.append(
            Embedding(str(table.name), str(table.name), tuple(nodes), (rows, columns), float_bytes(model))
        )
    return embeddings


def _use(node: ir.Node) -> tuple[Use, View, Constant] | None:
    """The weight that a node of the main graph multiplies by; None if it has none.

    Raises _NoLayer where the node has a weight that cannot be a layer.
    """
    if node.domain != "":
        if any(weight.array.ndim >= 2 for weight in _constants(node)):
            raise _NoLayer(why_left_out(node))
        return None
    if node.op_type in UNHANDLED and any(weight.array.ndim >= 2 for weight in _constants(node)):
        if node.op_type in ALREADY_INTEGER:
            raise _NoLayer("already quantized")
        raise _NoLayer(f"{node.op_type} weights are not handled, they stay float")
    if node.op_type in ("Conv", "ConvTranspose"):
        return _conv(node, _weight(node, 1))
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    sides = [_trace_input(node, index) for index in (0, 1)]
    index = 1 if sides[0] is ACTIVATION else 0
    if all(side is ACTIVATION for side in sides):
        if node.op_type == "MatMul":
            return None
        index = 1
    return _product(node, index, _weight(node, index))


def _weight(node: ir.Node, index: int) -> Constant:
    """The constant that input `index` of `node` is. Raises _NoLayer unless it can be a layer's weight."""
    weight, data = _trace_input(node, index), 1 - index
    if isinstance(weight, str):
        raise _NoLayer(weight)
    if _trace_input(node, data) is not ACTIVATION:
        raise _NoLayer("both of its inputs are constant")
    dtype = weight.array.dtype
    if dtype != np.float32:
        floating = dtype.name == "float64"
        raise _NoLayer(f"weights are {dtype.name}" + ("; write --cast float32" if floating else ""))
    if weight.array.size == 0:
        raise _NoLayer("the weight is empty")
    return weight


def _conv(node: ir.Node, weight: Constant) -> tuple[Use, View, Constant]:
    attributes, shape = node.attributes, weight.array.shape
    kernel, groups = shape[2:], attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    if groups < 1:
        raise _NoLayer(f"it has {groups} groups")
    if shape[0] % groups:
        raise _NoLayer(f"its {shape[0]} channels do not divide into {groups} groups")
    rest = tuple(range(3, 3 + len(kernel)))
    if transposed:  # (C, M/groups, kernel…)
        split, order = (groups, shape[0] // groups, shape[1], *kernel), (0, 2, *rest, 1)
        rows, channels = shape[1], shape[0] // groups
    else:  # (M, C/groups, kernel…)
        split, order = (groups, shape[0] // groups, shape[1], *kernel), (0, 1, *rest, 2)
        rows, channels = shape[0] // groups, shape[1]
    view = View(split, order, groups, rows, channels * int(np.prod(kernel)), channels)
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    window = Window(
        kernel=kernel,
        strides=_ints(node, "strides", [1] * len(kernel)),
        dilations=_ints(node, "dilations", [1] * len(kernel)),
        pads=_ints(node, "pads", [0] * 2 * len(kernel)) if auto_pad == "NOTSET" else (0,) * 2 * len(kernel),
        auto_pad=auto_pad,
        groups=groups,
        transposed=transposed,
        output_padding=_ints(node, "output_padding", []) if transposed else (),
        output_shape=_ints(node, "output_shape", [])[-len(kernel) :] if transposed else (),
    )
    return Use(node, 1, Tap(_name(node.inputs[0]), window)), view, weight


def _product(node: ir.Node, index: int, weight: Constant) -> tuple[Use, View, Constant]:
    """A MatMul or Gemm with the weight as its left (index 0) or right (1) factor."""
    shape, data = weight.array.shape, node.inputs[1 - index]
    if node.op_type == "Gemm":
        turned = [bool(node.attributes.get_int(key, 0)) for key in ("transA", "transB")]
        rows_first = (index == 0) != turned[index]
        axis = -1 if (index == 0) == turned[1 - index] else -2
    else:
        rows_first = index == 0
        axis = -1 if index == 1 else -2
    batch, last = shape[:-2], shape[-2:]
    if len(shape) == 1:  # a vector: one row
        last, rows_first = (1, *last), True
    groups = int(np.prod(batch, dtype=np.int64))
    rows, columns = last if rows_first else last[::-1]
    order = (0, 1, 2) if rows_first else (0, 2, 1)
    view = View((groups, *last), order, groups, rows, columns, channels=columns)
    return Use(node, index, Tap(_name(data), Contraction(axis, batch))), view, weight


def _layer(index: int, group: Sequence[tuple[Use, View, Constant]], taken: set[str], size: int) -> Layer:
    uses = tuple(use for use, _, _ in group)
    _, view, weight = group[0]
    node = uses[0].node
    own = {use.node for use in uses} | {step for _, _, constant in group for step in constant.nodes}
    values = {weight.root} | {value for _, _, constant in group for step in constant.nodes for value in step.outputs}
    shared = any(value.is_graph_output() or any(user not in own for user, _ in value.uses()) for value in values)
    base = (node.name if len(uses) == 1 else None) or weight.root.name or f"{node.op_type}_{index}"
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return Layer(
        name=name,
        op=node.op_type,
        uses=uses,
        weight=weight.array,
        groups=view.groups,
        rows=view.rows,
        columns=view.columns,
        channels=view.channels,
        view=view,
        weight_name=_name(weight.root),
        shared=shared,
        float_bytes=size,
    )


def _trace_input(node: ir.Node, index: int) -> Constant | str:
    value = node.inputs[index] if index < len(node.inputs) else None
    return ACTIVATION if value is None else trace(value)


def _constants(node: ir.Node) -> list[Constant]:
    traced = [_trace_input(node, index) for index in range(len(node.inputs))]
    return [constant for constant in traced if isinstance(constant, Constant)]


def _has_weight(node: ir.Node) -> bool:
    """Whether a node that cannot be a layer where it stands would have a weight."""
    if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm", *UNHANDLED):
        return any(_trace_input(node, index) is not ACTIVATION for index in (0, 1))
    return False


def _inside_bodies(node: ir.Node) -> list[LeftOut]:
    """The weights inside the bodies of an If, Loop or Scan."""
    found = []
    for graph in bodies(node):
        for inner in graph.all_nodes():
            if _has_weight(inner):
                where = f"{node.op_type} {node.name!r}" if node.name else node.op_type
                found.append(LeftOut(_node_name(inner), inner.op_type, f"inside the body of {where}"))
    return found


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that an If, Loop or Scan holds; none for other nodes."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            graphs.extend(attribute.as_graphs())
    return graphs


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, default))


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def _node_name(node: ir.Node) -> str:
    return node.name or (_name(node.outputs[0]) if node.outputs else "")
