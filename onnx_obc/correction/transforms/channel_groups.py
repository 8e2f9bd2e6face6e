"""Finds the channels of a graph that can be reordered together: what each operator ties, as a rule for its kind.

Operators that work channel by channel tie the axes of their inputs, constants and outputs; a product ties the axis that
it sums over with that of its weight; Concat and Split put axes together and take them apart. The model's inputs and
outputs keep their order, and so does whatever an operator reads or makes that has no rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import onnx_ir as ir

from ...graph.constants import Constant, trace
from ...graph.layers import bodies
from .channel_axes import UNKNOWN, Channels

ELEMENTWISE = (
    *("Abs", "Add", "And", "BiasGelu", "Cast", "Ceil", "Celu", "Clip", "Div", "Dropout", "Elu", "Equal", "Erf"),
    *("Exp", "FastGelu", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity"),
    *("LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not"),
    *("Or", "PRelu", "Pow", "QuickGelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax"),
    *("Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor"),
)  # Softmax too: it goes along with whatever order its axis has
CONTRIBUTED = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")  # of these, in onnxruntime's own domain
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def find_channels(graph: ir.Graph) -> Channels:
    """The axes of a graph that have one order, tied by its operators."""
    channels = Channels()
    for end in (*graph.inputs, *graph.outputs):
        channels.fix(end)
    for node in graph:
        rule = RULES.get((node.domain, node.op_type))
        if rule is None or not rule(node, channels):
            for value in (*node.inputs, *node.outputs, *_captured(node)):
                channels.fix(value)
    return channels


def _captured(node: ir.Node) -> list[ir.Value]:
    """What the bodies of a node read."""
    inner = [one for body in bodies(node) for one in body.all_nodes()]
    return [value for one in inner for value in one.inputs if value is not None]


def _elementwise(node: ir.Node, channels: Channels) -> bool:
    over = channels.axes(node.outputs[0])
    if over is None or _read(node.outputs[1:]):
        return False
    return all(channels.spread(value, over) for value in node.inputs)


def _conv(node: ir.Node, channels: Channels) -> bool:
    x, weight, y = (channels.axes(value) for value in (*node.inputs[:2], node.outputs[0]))
    if x is None or weight is None or y is None:
        return False
    groups, turned = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
    if groups == 1:
        channels.tie(x[1], weight[0 if turned else 1])
        channels.tie(y[1], weight[1 if turned else 0])
    elif not turned and groups == channels.size(x[1]) == channels.size(y[1]):  # one filter for each channel
        channels.tie(x[1], y[1], weight[0])
    else:
        return False
    channels.tie(x[0], y[0])
    for value in (node.inputs[0], node.outputs[0], node.inputs[1]):
        channels.fix(value, but=(0, 1))
    return len(node.inputs) < 3 or channels.spread(node.inputs[2], [y[1]])


def _by_channel(node: ir.Node, channels: Channels) -> bool:
    """BatchNormalization and InstanceNormalization; pools, which mix positions of a channel."""
    x, y = channels.axes(node.inputs[0]), channels.axes(node.outputs[0])
    if x is None or y is None or len(x) != len(y) or len(x) < 2 or _read(node.outputs[1:]):
        return False
    channels.tie(x[0], y[0])
    for value in (node.inputs[0], node.outputs[0]):
        channels.fix(value, but=(0, 1))
    channels.tie(x[1], y[1])
    return all(channels.spread(value, [x[1]]) for value in node.inputs[1:])


def _matmul(node: ir.Node, channels: Channels) -> bool:
    a, b, y = (channels.axes(value) for value in (*node.inputs, node.outputs[0]))
    if a is None or b is None or y is None or not a or not b:
        return False
    channels.tie(a[-1], b[-2 if len(b) > 1 else 0])
    kept = [*a[-2:-1], *(b[-1:] if len(b) > 1 else [])]
    for own, other in zip(kept, y[len(y) - len(kept) :], strict=True):
        channels.tie(own, other)
    for batch in (a[:-2], b[:-2]):
        for own, other in zip(batch[::-1], y[: len(y) - len(kept)][::-1], strict=False):
            if channels.size(own) != 1:
                channels.tie(own, other)
    return True


def _gemm(node: ir.Node, channels: Channels) -> bool:
    a, b, y = (channels.axes(value) for value in (*node.inputs[:2], node.outputs[0]))
    if a is None or b is None or y is None:
        return False
    rows, inner = a[::-1] if node.attributes.get_int("transA", 0) else a
    other, columns = b[::-1] if node.attributes.get_int("transB", 0) else b
    channels.tie(inner, other)
    channels.tie(rows, y[0])
    channels.tie(columns, y[1])
    return len(node.inputs) < 3 or channels.spread(node.inputs[2], y)


def _transpose(node: ir.Node, channels: Channels) -> bool:
    x, y = channels.axes(node.inputs[0]), channels.axes(node.outputs[0])
    if x is None or y is None:
        return False
    for own, source in zip(y, node.attributes.get_ints("perm", range(len(x))[::-1]), strict=True):
        channels.tie(own, x[source])
    return True


def _reshape(node: ir.Node, channels: Channels) -> bool:
    """Those that only drop or add axes of one entry: all others keep their sizes, of which one may be unknown."""
    x, y = channels.axes(node.inputs[0]), channels.axes(node.outputs[0])
    if x is None or y is None:
        return False
    for value in node.inputs[1:]:
        channels.fix(value)
    before, after = ([axis for axis in axes if channels.size(axis) != 1] for axes in (x, y))
    unlike = sum(channels.size(one or ()) != channels.size(other or ()) for one, other in zip_longest(before, after))
    unknown = sum(UNKNOWN in map(channels.size, pair) for pair in zip(before, after, strict=False))
    if len(before) != len(after) or unlike > unknown or unknown > 1:
        return False
    for own, other in zip(before, after, strict=True):
        channels.tie(own, other)
    return True


def _concat(node: ir.Node, channels: Channels) -> bool:
    y, parts = channels.axes(node.outputs[0]), [channels.axes(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    if y is None or len(known) < len(parts):
        return False
    return _joined(y, known, node.attributes["axis"].as_int() % len(y), channels)


def _split(node: ir.Node, channels: Channels) -> bool:
    x, parts = channels.axes(node.inputs[0]), [channels.axes(value) for value in node.outputs]
    known = [part for part in parts if part is not None]
    if x is None or len(known) < len(parts):
        return False
    for value in node.inputs[1:]:
        channels.fix(value)
    return _joined(x, known, node.attributes.get_int("axis", 0) % len(x), channels)


def _joined(
    whole: Sequence[Sequence[int]], parts: Sequence[Sequence[Sequence[int]]], along: int, channels: Channels
) -> bool:
    for axis, own in enumerate(whole):
        if axis == along:
            channels.tie(own, [piece for part in parts for piece in part[axis]])
        else:
            channels.tie(own, *(part[axis] for part in parts))
    return True


def _pad(node: ir.Node, channels: Channels) -> bool:
    """What is added to an axis is all alike, but for the modes that repeat the edge."""
    x, y, pads = channels.axes(node.inputs[0]), channels.axes(node.outputs[0]), _integers(node, 1)
    some = len(node.inputs) > 3 and node.inputs[3] is not None  # a list of axes
    if x is None or y is None or pads is None or some or len(pads) != 2 * len(x):
        return False
    for value in node.inputs[1:]:
        channels.fix(value)
    for axis, (own, other) in enumerate(zip(x, y, strict=True)):
        before, after = pads[axis], pads[axis + len(x)]
        if before == after == 0:
            channels.tie(own, other)
        elif node.attributes.get_string("mode", "constant") == "constant" and min(before, after) >= 0:
            ends = [channels.free(size) if size else [] for size in (before, after)]
            channels.tie(other, [*ends[0], *own, *ends[1]])
        else:
            channels.fix(node.inputs[0], but=[i for i in range(len(x)) if i != axis])
            channels.fix(node.outputs[0], but=[i for i in range(len(x)) if i != axis])
    return True


def _slice(node: ir.Node, channels: Channels) -> bool:
    """The axes that are not sliced; those that are stay in order."""
    x, y = channels.axes(node.inputs[0]), channels.axes(node.outputs[0])
    if x is None or y is None:
        return False
    named = _integers(node, 3) if len(node.inputs) > 3 else tuple(range(len(x)))
    if named is None:
        return False
    for value in node.inputs[1:]:
        channels.fix(value)
    kept = set(range(len(x))) - {axis % len(x) for axis in named}
    for value in (node.inputs[0], node.outputs[0]):
        channels.fix(value, but=tuple(kept))
    for axis in kept:
        channels.tie(x[axis], y[axis])
    return True


def _reduce(node: ir.Node, channels: Channels) -> bool:
    x, y = channels.axes(node.inputs[0]), channels.axes(node.outputs[0])
    attribute: tuple[int, ...] | None = tuple(node.attributes.get_ints("axes", ()))
    given = attribute or (_integers(node, 1) if len(node.inputs) > 1 else ())
    if x is None or y is None or given is None or node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return False
    for value in node.inputs[1:]:
        channels.fix(value)
    reduced = {axis % len(x) for axis in given} or set(range(len(x)))
    kept = [axis for axis in range(len(x)) if axis not in reduced]
    places = kept if node.attributes.get_int("keepdims", 1) else list(range(len(kept)))
    for axis, place in zip(kept, places, strict=True):
        channels.tie(x[axis], y[place])
    return True


def _gather(node: ir.Node, channels: Channels) -> bool:
    table, indices, y = (channels.axes(value) for value in (*node.inputs, node.outputs[0]))
    if table is None or indices is None or y is None:
        return False
    along = node.attributes.get_int("axis", 0) % len(table)
    channels.fix(node.inputs[0], but=[axis for axis in range(len(table)) if axis != along])
    for own, other in zip(y, [*table[:along], *indices, *table[along + 1 :]], strict=True):
        channels.tie(own, other)
    return True


def _shape(node: ir.Node, channels: Channels) -> bool:
    """The sizes of axes are the same in any order."""
    channels.fix(node.outputs[0])
    return True


def _read(values: Sequence[ir.Value]) -> bool:
    return any(value.is_graph_output() or len(list(value.uses())) > 0 for value in values)


def _integers(node: ir.Node, index: int) -> tuple[int, ...] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    constant = None if value is None else trace(value)
    return tuple(int(i) for i in constant.array.reshape(-1)) if isinstance(constant, Constant) else None


def _rules() -> dict[tuple[str, str], Callable[[ir.Node, Channels], bool]]:
    named: dict[Callable[[ir.Node, Channels], bool], Iterable[str]] = {
        _elementwise: (*ELEMENTWISE, *NORMS),
        _conv: ("Conv", "ConvTranspose"),
        _by_channel: ("BatchNormalization", "InstanceNormalization", *POOLS),
        _matmul: ("MatMul",),
        _gemm: ("Gemm",),
        _transpose: ("Transpose",),
        _reshape: RESHAPES,
        _concat: ("Concat",),
        _split: ("Split",),
        _pad: ("Pad",),
        _slice: ("Slice",),
        _reduce: REDUCTIONS,
        _gather: ("Gather",),
        _shape: ("Shape", "Size"),
    }
    found = {("", name): rule for rule, names in named.items() for name in names}
    return found | {("com.microsoft", name): _elementwise for name in CONTRIBUTED}


RULES = _rules()
