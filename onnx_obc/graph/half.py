"""Models in float16 and bfloat16: widened to float32 to be worked on, and narrowed to be written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from .edit import free_name, names_of
from .layers import bodies
from .opset import raise_opset
from .tensors import nodes_of, own_copy, values_of

FLOAT, FLOAT16, BFLOAT16, DOUBLE = (ir.DataType[name] for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"))
HALVES = (FLOAT16, BFLOAT16)
SCALES_OPSET = 21  # QuantizeLinear and DequantizeLinear with scales in every half type, and in blocks
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
NORMAL = {FLOAT16: 2.0**-14, BFLOAT16: 2.0**-126}  # the smallest number with all digits of its type
WIDE_ONLY = ("Constant", "ConstantOfShape", "EyeLike", "CastLike")  # whose type does not come from an input

# Operators without an ONNX schema whose float inputs and outputs have one type, which may be a half one.
UNSCHEMED = {
    *("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "RotaryEmbedding"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"),
    *("EmbedLayerNormalization", "FusedMatMul", "FastGelu", "BiasGelu", "Gelu", "QuickGelu", "MatMulNBits"),
}


@dataclass(frozen=True)
class FloatTypes:
    """The float types that a model is to be written in.

    default: of what is not named. signature: of the graph's inputs and outputs, by name. values: of what nodes compute,
    by name. float32: names of node outputs whose nodes compute in float32, whatever the rest says.
    """

    default: ir.DataType
    signature: Mapping[str, ir.DataType]
    values: Mapping[str, ir.DataType] = field(default_factory=dict)
    float32: Collection[str] = ()

    def of(self, name: str) -> ir.DataType:
        """The type that the node of this output is to compute in."""
        return FLOAT if name in self.float32 else self.values.get(name, self.default)

    @property
    def half(self) -> ir.DataType:
        """The half type in it. Raises StopIteration if there is none."""
        known = (self.default, *self.values.values(), *self.signature.values())
        return next(dtype for dtype in known if dtype in HALVES)


def float_types(model: ir.Model) -> FloatTypes | None:
    """The types of a model that has float16 or bfloat16 in it; None if it has none.

    The default is the half type where nodes compute in it, and float32 where it only stores weights, behind Cast.
    """
    present = [value.dtype for value in values_of(model) if value.dtype in HALVES]
    if not present:
        return None
    half, model = max(HALVES, key=present.count), _typed(model)
    outputs = [value for node in model.graph for value in node.outputs if value.dtype in (FLOAT, *HALVES)]
    computed = any(value.dtype == half and _computes(value.producer()) for value in outputs)
    signature = {str(v.name): v.dtype for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is not None}
    values = {str(value.name): value.dtype for value in outputs if value.dtype is not None}
    return FloatTypes(half if computed else FLOAT, signature, values)


def _computes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type not in ("Cast", "Constant", "DequantizeLinear")


def widen(model: ir.Model, wide: Collection[ir.DataType] = HALVES) -> ir.Model:
    """A copy in which everything of these types is float32.

    Casts that then change nothing are removed, but for those from a graph's input to its output.
    """
    model = own_copy(_typed(model))
    for value in values_of(model):
        if isinstance(value.type, ir.TensorType) and value.dtype in wide:
            value.dtype = FLOAT
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in wide:
                value.const_value = _converted(value.const_value, FLOAT)
    for node in nodes_of(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in wide:
                node.attributes[name] = ir.AttrTensor(name, _converted(attribute.as_tensor(), FLOAT))
            elif name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in wide:
                node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
    for node in list(nodes_of(model)):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
        if node.op_type != "Cast" or node.domain != "" or source is None or output is None:
            continue
        if source.dtype == FLOAT and node.attributes.get_int("to", 0) == FLOAT and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, source)
            if isinstance(node.graph, ir.Graph | ir.Function):
                node.graph.remove(node, safe=True)
    return model


def narrow(model: ir.Model, types: FloatTypes) -> ir.Model:
    """A copy of a float32 model in these types, with Cast where one meets another.

    Nodes stay in float32 that have no kernel definition in the half type, that hold a body (If, Loop, Scan), whose
    constants would overflow, and Q/DQ whose scales would lose digits. Names of graph inputs and outputs, and of all
    that nodes compute, stay.
    """
    model = own_copy(_typed(model))
    if any(node.op_type in QUANTIZING for node in model.graph) and model.opset_imports[""] < SCALES_OPSET:
        model = _typed(raise_opset(model, SCALES_OPSET))
    _Narrowing(model, types).run()
    common.RemoveUnusedNodesPass()(model)
    return model


class _Narrowing:
    """One model on its way to other float types."""

    def __init__(self, model: ir.Model, types: FloatTypes) -> None:
        self._model, self._types, self._half = model, types, types.half
        self._names = set(names_of(model))
        self._versions: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._chosen: dict[ir.Node, ir.DataType] = {}

    def run(self) -> None:
        """Narrow the model, in place."""
        graph, nodes = self._model.graph, list(self._model.graph)
        for node in nodes:
            if node.op_type not in QUANTIZING:
                self._chosen[node] = self._type_of(node)
        for node in reversed(nodes):  # what a DequantizeLinear gives has the type that its readers want
            if node.op_type == "DequantizeLinear":
                self._chosen[node] = self._if_exact(node, self._wanted_by_readers(node))
        for node in nodes:
            if node.op_type == "QuantizeLinear":
                self._choose_pair(node)
        declared = [(value, self._declared(value)) for value in graph.outputs]
        for value in graph.inputs:
            if value.dtype == FLOAT and self._declared(value) == self._half:
                value.dtype = self._half
        for node in nodes:
            self._convert(node)
        for index, (value, wanted) in enumerate(declared):
            if value.dtype in (FLOAT, self._half) and value.dtype != wanted:
                self._cast_output(index, value, wanted)
        self._restore_names()

    def _declared(self, value: ir.Value) -> ir.DataType:
        return self._types.signature.get(str(value.name), FLOAT)

    def _type_of(self, node: ir.Node) -> ir.DataType:
        """The type that a node, none of QUANTIZING, computes in."""
        names = [str(value.name) for value in node.outputs if value.dtype == FLOAT]
        if bodies(node) or not self._allowed(node) or any(self._overflows(value) for value in node.inputs):
            return FLOAT
        known = [name for name in names if name in self._types.values or name in self._types.float32]
        return self._types.of(known[0]) if known else self._types.default

    def _allowed(self, node: ir.Node) -> bool:
        if node.op_type in WIDE_ONLY:
            return False
        return any(self._slots(node, node.inputs, True)) or any(self._slots(node, node.outputs, False))

    def _slots(self, node: ir.Node, values: Collection[ir.Value | None], inputs: bool) -> Iterator[bool]:
        """Of each input or output, whether it may be of the half type."""
        schema = _schema(node, self._model.opset_imports)
        if schema is None:
            known = node.op_type in UNSCHEMED
            yield from (known and value is not None and value.dtype in (FLOAT, self._half) for value in values)
            return
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        formal = list(schema.inputs if inputs else schema.outputs)
        for index, value in enumerate(values):
            if value is None or value.dtype not in (FLOAT, self._half) or not formal:
                yield False
                continue
            name = formal[min(index, len(formal) - 1)].type_str
            yield f"tensor({self._half.name.lower()})" in allowed.get(name, ())

    def _overflows(self, value: ir.Value | None) -> bool:
        tensor = None if value is None else value.const_value
        if tensor is None or tensor.dtype != FLOAT or self._half == BFLOAT16:
            return False
        array = tensor.numpy()
        most = float(np.max(np.abs(array), where=np.isfinite(array), initial=0))
        return most > np.finfo(np.float16).max

    def _choose_pair(self, quantize: ir.Node) -> None:
        """One type for a QuantizeLinear and the DequantizeLinear behind it, which share a scale."""
        value, pair = quantize.inputs[0], [use.node for use in quantize.outputs[0].uses()]
        producer = None if value is None else value.producer()
        source = self._types.default if producer is None else self._chosen.get(producer, FLOAT)
        ends = [self._chosen.get(node, source) for node in pair if node.op_type == "DequantizeLinear"]
        chosen = self._half if self._half == self._if_exact(quantize, source) and set(ends) <= {self._half} else FLOAT
        self._chosen[quantize] = chosen
        self._chosen |= {node: chosen for node in pair if node.op_type == "DequantizeLinear"}

    def _wanted_by_readers(self, node: ir.Node) -> ir.DataType:
        wanted = {self._chosen.get(use.node, self._types.default) for use in node.outputs[0].uses()}
        if node.outputs[0].is_graph_output():
            wanted.add(self._declared(node.outputs[0]))
        return self._half if wanted == {self._half} else FLOAT

    def _if_exact(self, node: ir.Node, wanted: ir.DataType) -> ir.DataType:
        """The half type for a Q/DQ, unless its scales would lose digits in it."""
        scale = node.inputs[1].const_value if node.inputs[1] is not None else None
        if wanted == FLOAT or scale is None:
            return FLOAT
        values = scale.numpy()
        exact = np.array_equal(values.astype(self._half.numpy()).astype(np.float32), values)
        whole = exact if values.size > 1 else bool((values >= NORMAL[self._half]).all())
        return wanted if whole else FLOAT

    def _convert(self, node: ir.Node) -> None:
        chosen = self._chosen[node]
        may = list(self._slots(node, node.inputs, True)) if chosen == self._half else [False] * len(node.inputs)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, self._half):
                wanted = self._half if may[index] else FLOAT
                if value.dtype != wanted:
                    node.replace_input_with(index, self._as(value, wanted))
        for graph in bodies(node):
            self._widen_captured(graph)
        if chosen != self._half:
            return
        for value, half in zip(node.outputs, list(self._slots(node, node.outputs, False)), strict=True):
            if half:
                value.dtype = self._half
        for name in TYPE_ATTRIBUTES:
            if node.attributes.get_int(name, 0) == FLOAT:
                node.attributes[name] = ir.AttrInt64(name, int(self._half))

    def _widen_captured(self, graph: ir.Graph) -> None:
        """Inside a body, values from outside are read in float32."""
        for inner in graph.all_nodes():
            for index, value in enumerate(inner.inputs):
                if value is not None and value.dtype == self._half and value.graph is self._model.graph:
                    inner.replace_input_with(index, self._as(value, FLOAT))
        for index, value in enumerate(graph.outputs):
            if value.dtype == self._half and value.graph is self._model.graph:
                graph.outputs[index] = self._as(value, FLOAT)

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The same value in another type."""
        if (value, dtype) not in self._versions:
            self._versions[value, dtype] = self._version(value, dtype)
        return self._versions[value, dtype]

    def _version(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        graph, name = self._model.graph, self._name(f"{value.name}_{dtype.name.lower()}")
        if value.const_value is not None and not value.is_graph_input():
            tensor = _converted(value.const_value, dtype, name)
            new = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
            graph.register_initializer(new)
            return new
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=self._name(f"{name}_Cast"))
        new = cast.outputs[0]
        new.name, new.type, new.shape = name, ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(producer, cast)
        return new

    def _cast_output(self, index: int, value: ir.Value, dtype: ir.DataType) -> None:
        """Make a graph output, under its name, what a Cast of the value gives."""
        new = self._as(value, dtype)
        graph, name = self._model.graph, value.name
        graph.outputs[index] = new
        if value.is_graph_input():
            return
        value.name, new.name = new.name, name

    def _restore_names(self) -> None:
        """Drop constants that nothing reads any longer; their versions take their names."""
        initializers = self._model.graph.initializers
        for (value, _), new in self._versions.items():
            if new.const_value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            name = str(value.name)
            del initializers[name]
            del initializers[str(new.name)]
            new.name = name
            new.const_value.name = name
            initializers[name] = new

    def _name(self, name: str) -> str:
        free = free_name(name, self._names)
        self._names.add(free)
        return free


def _schema(node: ir.Node, imports: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return None


def _typed(model: ir.Model) -> ir.Model:
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
    schema = _schema(node, imports)
    if schema is None:  # as its first float input
        return next((dtype for dtype in types if dtype in (FLOAT, *HALVES)), None) if node.op_type in UNSCHEMED else None
    formal = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
    if match := re.fullmatch(r"tensor\((\w+)\)", formal):
        return {"float": FLOAT, "bool": ir.DataType.BOOL}.get(match[1]) or ir.DataType[match[1].upper()]
    inputs = [schema.inputs[min(place, len(schema.inputs) - 1)].type_str for place in range(len(types))]
    return next((dtype for name, dtype in zip(inputs, types, strict=True) if name == formal and dtype is not None), None)


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str | None = None) -> ir.TensorProtocol:
    """A tensor in another type; made anew at each reading where its values lie beside the file."""
    name = tensor.name if name is None else name

    def convert() -> ir.Tensor:
        with np.errstate(over="ignore"):
            return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    if not isinstance(tensor, ir.ExternalTensor):
        return convert()
    lazily: Callable[[], ir.TensorProtocol] = convert
    return ir.LazyTensor(lazily, dtype=dtype, shape=tensor.shape, name=name)
