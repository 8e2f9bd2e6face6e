"""The layers of the dense model, where they are in both graphs, and what their weights became."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Float32
from ..graph.constants import Constant, trace
from ..graph.layers import Layer, find_layers
from .match import PRODUCTS, Matched
from .normal import constant_array
from .parts import Part, on_its_own_range, output_of, part_of
from .record import LayerRow

FEWEST_ZEROS = 0.1  # the share of zeros, beyond those of the dense weight, from which a layer counts as pruned
FULL_BITS = 8


@dataclass(frozen=True, eq=False)
class Located:
    """A layer with its parts of the graphs, one for each node that uses its weight; none if it could not be matched."""

    row: LayerRow
    layer: Layer | None
    parts: tuple[Part, ...]

    @property
    def narrow(self) -> bool:
        """Whether its weights have fewer than 8 bits, or were pruned."""
        return (self.row.bits or FULL_BITS) < FULL_BITS or self.row.zeros is not None


def locate(matched: Matched, named: Sequence[Layer]) -> list[Located]:
    """Every layer, by the names that the folded dense model has for them, in its graph and in the compressed one."""
    own, _ = find_layers(matched.dense.model)
    by_name = {layer.name: layer for layer in own}
    by_weight = {layer.weight_name: layer for layer in own}
    found = []
    for one in named:
        layer = by_name.get(one.name) or by_weight.get(one.weight_name)
        found.append(_located(matched, one, layer))
    names = {use.node: one.row.name for one in found if one.layer is not None for use in one.layer.uses}
    return [_with_others(one, names) for one in found]


def _located(matched: Matched, folded: Layer, layer: Layer | None) -> Located:
    name, op = folded.name, folded.op
    if layer is None:
        return Located(
            LayerRow(name, op, None, reason="it is not in the graph before its operators are fused"), None, ()
        )
    ends = [output_of(matched, use.node) for use in layer.uses]
    known = list(dict.fromkeys(end for end in ends if end is not None))
    if not known:
        return Located(LayerRow(name, op, None, reason="the compressed graph has no value like its output"), layer, ())
    parts = tuple(part_of(matched, end) for end in known)
    form, bits, zeros, error = _form(matched, parts[0], (folded, layer))
    dynamic = any(on_its_own_range(value) for value in parts[0].reads.values())
    row = LayerRow(name, op, str(known[0].name), form, bits, zeros, error, dynamic=dynamic)
    return Located(row, layer, parts)


def _with_others(one: Located, names: dict[ir.Node, str]) -> Located:
    """It with the names of the layers that its parts of the graph hold besides."""
    others = dict.fromkeys(names[node] for part in one.parts for node in part.dense if node in names)
    others.pop(one.row.name, None)
    row = LayerRow(**{**vars(one.row), "others": tuple(others)})
    return Located(row, one.layer, one.parts)


def _form(
    matched: Matched, part: Part, forms: tuple[Layer, Layer]
) -> tuple[str, int | None, float | None, float | None]:
    """What a layer's weight is in the compressed graph: in words, its bits, its share of zeros if it was pruned, and
    its relative error where it has the form of the dense one. forms: the layer with what follows it
    folded into its weight, and without."""
    layer = forms[1]
    nodes = [node for node in part.compressed if node.op_type in PRODUCTS]
    operand = next(
        (x for node in nodes for x in node.inputs[:2] if x is not None and x not in matched.compressed.root), None
    )
    if len(nodes) != 1 or operand is None:
        return "fused", None, None, None
    array, bits = weight_behind(operand)
    if array is None:
        return "unknown", bits, None, None
    zeros = float((array == 0).mean()) if array.size else 0.0
    pruned = zeros if zeros > float((layer.weight == 0).mean()) + FEWEST_ZEROS and not (bits and bits < 4) else None
    name = f"int{bits}" if bits is not None else str(array.dtype)
    errors = [error for form in forms if (error := _weight_error(form, array, nodes[0].op_type)) is not None]
    return name + (f", {100 * zeros:.0f} % zero" if pruned is not None else ""), bits, pruned, min(errors, default=None)


def weight_behind(value: ir.Value) -> tuple[Array | None, int | None]:
    """A constant operand as floats, and the bits of the integers that it was dequantized from, None if from none."""
    node, integers = value.producer(), None
    seen = value
    while node is not None and integers is None:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            integers = node
        if not node.inputs or node.inputs[0] is None:
            break
        seen = node.inputs[0]
        node = seen.producer()
    constant = _evaluated(value)
    if integers is None or integers.inputs[0] is None:
        return constant, None
    found = trace(integers.inputs[0])  # numpy has no type for what onnxruntime would give of 4 bits
    codes = found.array if isinstance(found, Constant) else _evaluated(integers.inputs[0])
    return constant, None if codes is None else _bits(codes)


def _bits(codes: Array) -> int:
    """The fewest bits, of 2 or more, whose integers span these codes; 8 for 7, which are rather 8 whose range was not
    used."""
    wide = codes.astype(np.int64)
    bits = max(2, int(np.ceil(np.log2(max(int(wide.max(initial=0)) - int(wide.min(initial=0)) + 1, 2)))))
    return 8 if bits == 7 else bits


def _evaluated(value: ir.Value) -> Array | None:
    """What a value that depends on constants alone is."""
    if (array := constant_array(value)) is not None:
        return array
    node = value.producer()
    if node is None or node.graph is None:
        return None
    from ..runtime.session import open_session

    model = ir.Model(ir.convenience.extract(node.graph, [], [value]), ir_version=10)
    return open_session(model, device="cpu", fuse=False).run({})[str(value.name)]


def _weight_error(layer: Layer, array: Array, op: str) -> float | None:
    """The relative error of a weight, if it has the shape of the dense one, or that turned."""
    wanted = layer.weight.astype(np.float64)
    found = array.astype(np.float64)
    if found.shape != wanted.shape and found.ndim == 2 and found.T.shape == wanted.shape and op != layer.op:
        found = found.T
    if found.shape != wanted.shape:
        return None
    norm = float(np.sqrt((wanted**2).sum()))
    return float(np.sqrt(((wanted - found) ** 2).sum())) / norm if norm > 0 else None


def rounded_to_int8(layer: Layer) -> Float32:
    """A layer's weight rounded to 8 bits, a scale for each row, as the nodes see it."""
    weights = layer.matrix()  # (groups, rows, columns)
    scale = np.abs(weights).max(axis=2, keepdims=True) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.asarray(layer.tensor(np.rint(weights / scale) * scale), np.float32)
