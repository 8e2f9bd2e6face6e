"""The float types of a model, and models in float16 and bfloat16 widened to float32 to be worked on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from .tensors import nodes_of, own_copy, values_of

FLOAT, FLOAT16, BFLOAT16, DOUBLE = (ir.DataType[name] for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))
HALVES = (FLOAT16, BFLOAT16)
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
STORED_BYTES = "onnx_obc.stored_bytes"  # the metadata of a widened model, which survives copies and files
NORMAL = {FLOAT16: 2.0**-14, BFLOAT16: 2.0**-126}  # the smallest number with all digits of its type

# Operators without an ONNX schema whose float inputs and outputs have one type, which may be a half one.
UNSCHEMED = {
    *("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"),
    *("EmbedLayerNormalization", "FusedMatMul", "FastGelu", "BiasGelu", "Gelu", "QuickGelu", "MatMulNBits"),
    "GatherBlockQuantized",
}


@dataclass(frozen=True)
class FloatTypes:
    """The float types that a model is to be written in.

    default: of what is not named. signature: of the graph's inputs and outputs, by name. values: of what nodes compute,
    by name. float32: names of node outputs whose nodes compute in float32, whatever the rest says. stored: the
    half type of weights that nodes, which compute in float32, read through Cast; None if there are none such. wide:
    names of the constants that are float32 beside these.
    """

    default: ir.DataType
    signature: Mapping[str, ir.DataType]
    values: Mapping[str, ir.DataType] = field(default_factory=dict)
    float32: Collection[str] = ()
    stored: ir.DataType | None = None
    wide: Collection[str] = ()

    def of(self, name: str) -> ir.DataType:
        """The type that the node of this output is to compute in."""
        return FLOAT if name in self.float32 else self.values.get(name, self.default)

    @property
    def half(self) -> ir.DataType:
        """The half type in it. Raises StopIteration if there is none."""
        known = (self.default, *self.values.values(), *self.signature.values(), self.stored)
        return next(dtype for dtype in known if dtype is not None and dtype in HALVES)


def float_types(model: ir.Model) -> FloatTypes | None:
    """The types of a model that has float16 or bfloat16 in it; None if it has none.

    The default is the half type where nodes compute in it, and float32 where it only stores weights, behind Cast.
    """
    present = [value.dtype for value in values_of(model) if value.dtype in HALVES]
    if not present:
        return None
    half, model = max(HALVES, key=present.count), typed(model)
    outputs = [value for node in model.graph for value in node.outputs if value.dtype in (FLOAT, *HALVES)]
    computed = any(value.dtype == half and _computes(value.producer()) for value in outputs)
    signature = {str(v.name): v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}
    values = {str(value.name): value.dtype for value in outputs if value.dtype is not None}
    constants = {str(value.name): value.dtype for value in _constants(model)}
    stored = half if half in constants.values() and not computed else None
    wide = frozenset(name for name, dtype in constants.items() if dtype == FLOAT)
    return FloatTypes(half if computed else FLOAT, signature, values, stored=stored, wide=wide)


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Initializers, in bodies too, and what Constant nodes give."""
    for graph in model.graphs():
        yield from graph.initializers.values()
    for node in nodes_of(model):
        if node.op_type == "Constant":
            yield from node.outputs


def _computes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type not in ("Cast", "Constant", "DequantizeLinear")


def float_bytes(model: ir.Model) -> int:
    """The bytes of a weight in the file that a model comes from: 2 where `widen` widened it from half precision."""
    return int(model.metadata_props.get(STORED_BYTES, 4))


def widen(model: ir.Model, wide: Collection[ir.DataType] = HALVES) -> ir.Model:
    """A copy in which everything of these types is float32; the model itself if it has nothing of them.

    Casts that then change nothing are removed, but for those from a graph's input to its output.
    """
    if not any(value.dtype in wide for value in values_of(model)):
        return model
    model = own_copy(typed(model))
    if any(value.dtype in HALVES for value in _constants(model)):
        model.metadata_props[STORED_BYTES] = "2"
    as_float32(model, wide)
    for node in list(nodes_of(model)):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
        if node.op_type != "Cast" or node.domain != "" or source is None or output is None:
            continue
        if source.dtype == FLOAT and node.attributes.get_int("to", 0) == FLOAT and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, source)
            if isinstance(node.graph, ir.Graph | ir.Function):
                node.graph.remove(node, safe=True)
    return model


def as_float32(model: ir.Model, wide: Collection[ir.DataType]) -> None:
    """Make everything of these types float32, in place."""
    for value in values_of(model):
        if isinstance(value.type, ir.TensorType) and value.dtype in wide:
            value.dtype = FLOAT
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in wide:
                value.const_value = converted(value.const_value, FLOAT)
    for node in nodes_of(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in wide:
                node.attributes[name] = ir.AttrTensor(name, converted(attribute.as_tensor(), FLOAT))
            elif name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in wide:
                node.attributes[name] = ir.AttrInt64(name, int(FLOAT))


def schema_of(node: ir.Node, imports: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """The schema of a node's operator in the version that the model imports; None if ONNX knows none."""
    try:
        return onnx.defs.get_schema(node.op_type, imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None


def typed(model: ir.Model) -> ir.Model:
    """The model, or a copy in which values of the main graph have the types that their operators' schemas say."""
    if all(value.dtype is not None for node in model.graph for value in node.outputs if value.name):
        return model
    model = model.clone()
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if value.dtype is None and value.name:
                dtype = _said(node, index, model.opset_imports)
                value.type = value.type if dtype is None else ir.TensorType(dtype)
    return model


def _said(node: ir.Node, index: int, imports: Mapping[str, int]) -> ir.DataType | None:
    """The type of a node's output, by its attributes or its schema; None if they do not tell."""
    given = next((node.attributes.get_int(name, 0) for name in TYPE_ATTRIBUTES if name in node.attributes), 0)
    if given:
        return ir.DataType(given)
    if "value" in node.attributes and node.attributes["value"].type == ir.AttributeType.TENSOR:
        return node.attributes["value"].as_tensor().dtype
    types = [None if value is None else value.dtype for value in node.inputs]
    schema = schema_of(node, imports)
    if schema is None:  # as its first float input
        return (
            next((dtype for dtype in types if dtype in (FLOAT, *HALVES)), None) if node.op_type in UNSCHEMED else None
        )
    formal = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
    if match := re.fullmatch(r"tensor\((\w+)\)", formal):
        return {"float": FLOAT, "bool": ir.DataType.BOOL}.get(match[1]) or ir.DataType[match[1].upper()]
    inputs = [schema.inputs[min(place, len(schema.inputs) - 1)].type_str for place in range(len(types))]
    return next(
        (dtype for name, dtype in zip(inputs, types, strict=True) if name == formal and dtype is not None), None
    )


def converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str | None = None) -> ir.TensorProtocol:
    """A tensor in another type; made anew at each reading where its values lie beside the file."""
    name = tensor.name if name is None else name

    def convert() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):
            return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    if not isinstance(tensor, ir.ExternalTensor):
        return convert()
    lazily: Callable[[], ir.TensorProtocol] = convert
    return ir.LazyTensor(lazily, dtype=dtype, shape=tensor.shape, name=name)
