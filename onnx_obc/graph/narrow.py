"""Float32 models written in half precision."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from .constants import ACTIVATION, trace
from .edit import names_of, put_behind, take_name
from .half import (
    BFLOAT16,
    FLOAT,
    NORMAL,
    STORED_BYTES,
    TYPE_ATTRIBUTES,
    UNSCHEMED,
    FloatTypes,
    as_float32,
    converted,
    schema_of,
    typed,
)
from .layers import bodies
from .opset import raise_opset
from .tensors import own_copy

SCALES_OPSET = 21  # QuantizeLinear and DequantizeLinear with scales in every half type, and in blocks
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
WIDE_ONLY = ("Constant", "ConstantOfShape", "EyeLike", "CastLike")  # whose type does not come from an input


def narrow(model: ir.Model, types: FloatTypes) -> ir.Model:
    """A copy of a float32 model in these types, with Cast where one meets another.

    Nodes stay in float32 that have no kernel definition in the half type, that hold a body (If, Loop, Scan), whose
    constants would overflow, and Q/DQ and look-ups whose scales would lose digits. Names of graph inputs and outputs,
    and of all that nodes compute, stay.
    """
    model = own_copy(typed(model))
    if any(node.op_type in QUANTIZING for node in model.graph) and model.opset_imports[""] < SCALES_OPSET:
        model = typed(raise_opset(model, SCALES_OPSET))
    _Narrowing(model, types).run()
    common.RemoveUnusedNodesPass()(model)
    model.metadata_props.pop(STORED_BYTES, None)
    return model


def rounded(model: ir.Model, types: FloatTypes) -> ir.Model:
    """What `narrow` makes of a float32 model, in float32 again, with each value and constant rounded as it is there.

    onnxruntime puts Casts around nodes that it has no half kernel for, and drops those that then face each other, so
    that on a CPU a narrowed model hardly rounds. Casts there and back that the model has itself stay.
    """
    copy, half = narrow(model, types), types.half
    values = [
        value for value in (*copy.graph.inputs, *(v for n in copy.graph for v in n.outputs)) if value.dtype == half
    ]
    taken = set(names_of(copy))
    as_float32(copy, (half,))
    for value in values:
        nodes: list[ir.Node] = []
        readers = tuple(value.uses())
        for dtype in (half, FLOAT):
            cast = ir.node("Cast", [nodes[-1].outputs[0] if nodes else value], {"to": int(dtype)})
            cast.name = take_name(f"{value.name}_{dtype.name.lower()}_Cast", taken)
            cast.outputs[0].name = take_name(f"{value.name}_to_{dtype.name.lower()}", taken)
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
            nodes.append(cast)
        for user, index in readers:
            user.replace_input_with(index, nodes[-1].outputs[0])
        put_behind(copy.graph, value, nodes)
    return copy


class _Narrowing:
    """One model on its way to other float types."""

    def __init__(self, model: ir.Model, types: FloatTypes) -> None:
        self._model, self._types, self._half = model, types, types.half
        self._names = set(names_of(model))
        self._versions: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._chosen: dict[ir.Node, ir.DataType] = {}
        lookups = [node for node in model.graph if node.op_type == "Gather"]
        self._fine = {beside for gather in lookups for beside in self._beside_scales(gather)}

    def run(self) -> None:
        """Narrow the model, in place."""
        graph, nodes = self._model.graph, list(self._model.graph)
        for node in nodes:
            if node.op_type not in QUANTIZING:
                self._chosen[node] = self._type_of(node)
        for node in reversed(nodes):  # what a DequantizeLinear gives has the type that its readers want
            if node.op_type == "DequantizeLinear":
                self._chosen[node] = self._if_exact(node.inputs[1], self._wanted_by_readers(node))
                turn = None if node.inputs[1] is None else node.inputs[1].producer()
                if turn is not None:  # scales that are stored turned
                    self._chosen[turn] = self._chosen[node]
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
        if self._types.stored is not None:
            self._store(self._types.stored)

    def _declared(self, value: ir.Value) -> ir.DataType:
        return self._types.signature.get(str(value.name), FLOAT)

    def _type_of(self, node: ir.Node) -> ir.DataType:
        """The type that a node, none of QUANTIZING, computes in."""
        names = [str(value.name) for value in node.outputs if value.dtype == FLOAT]
        unknown = any(value is not None and value.dtype is None for value in node.inputs)
        if unknown or bodies(node) or not self._allowed(node) or any(map(self._overflows, node.inputs)):
            return FLOAT
        types = [value.type for value in (*node.inputs, *node.outputs) if value is not None]
        if not all(isinstance(each, ir.TensorType) for each in types):  # sequences and optional values
            return FLOAT
        if node in self._fine:
            return FLOAT
        if node.op_type == "GatherBlockQuantized" and self._if_exact(node.inputs[2], self._half) == FLOAT:
            return FLOAT
        known = [name for name in names if name in self._types.values or name in self._types.float32]
        return self._types.of(known[0]) if known else self._types.default

    def _allowed(self, node: ir.Node) -> bool:
        if node.op_type in WIDE_ONLY:
            return False
        return any(self._slots(node, node.inputs, True)) or any(self._slots(node, node.outputs, False))

    def _slots(self, node: ir.Node, values: Collection[ir.Value | None], inputs: bool) -> Iterator[bool]:
        """Of each input or output, whether it may be of the half type."""
        schema = schema_of(node, self._model.opset_imports)
        if schema is None:
            norm = node.op_type.startswith("Skip") and not inputs  # outputs 1 and 2, mean and deviation, are float32
            for index, value in enumerate(values):
                known = node.op_type in UNSCHEMED and not (norm and index in (1, 2))
                yield known and value is not None and value.dtype in (FLOAT, self._half)
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
        return most > float(np.finfo(np.float16).max)

    def _choose_pair(self, quantize: ir.Node) -> None:
        """One type for a QuantizeLinear and the DequantizeLinear behind it, which share a scale."""
        value, pair = quantize.inputs[0], [use.node for use in quantize.outputs[0].uses()]
        producer = None if value is None else value.producer()
        source = self._types.default if producer is None else self._chosen.get(producer, FLOAT)
        ends = [self._chosen.get(node, source) for node in pair if node.op_type == "DequantizeLinear"]
        chosen = self._if_exact(quantize.inputs[1], source) if set(ends) <= {self._half} else FLOAT
        self._chosen[quantize] = chosen
        self._chosen |= {node: chosen for node in pair if node.op_type == "DequantizeLinear"}

    def _wanted_by_readers(self, node: ir.Node) -> ir.DataType:
        wanted = {self._chosen.get(use.node, self._types.default) for use in node.outputs[0].uses()}
        if node.outputs[0].is_graph_output():
            wanted.add(self._declared(node.outputs[0]))
        return self._half if wanted == {self._half} else FLOAT

    def _if_exact(self, scales: ir.Value | None, wanted: ir.DataType) -> ir.DataType:
        """The half type for what multiplies by these scales, unless they would lose digits in it."""
        scale = trace(scales) if scales is not None else ACTIVATION
        if wanted == FLOAT or isinstance(scale, str):
            return FLOAT
        values = scale.array
        exact = bool(np.array_equal(values.astype(self._half.numpy()).astype(np.float32), values))
        return wanted if exact or (values.size == 1 and values.item() >= NORMAL[self._half]) else FLOAT

    def _beside_scales(self, gather: ir.Node) -> list[ir.Node]:
        """The nodes that look up scales of a table's rows and multiply by them, where the half type has not all digits
        of one; of other nodes none."""
        scales = None if gather.inputs[0] is None else gather.inputs[0].const_value
        if scales is None or scales.dtype != FLOAT or len(scales.shape) != 1:
            return []
        values = np.abs(scales.numpy())
        if not (values[values > 0] < NORMAL[self._half]).any():
            return []
        found = [gather]
        while found[-1].op_type in ("Gather", "Unsqueeze") and len(readers := found[-1].outputs[0].uses()) == 1:
            found.append(next(iter(readers)).node)
        return found

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
            tensor = converted(value.const_value, dtype, name)
            new = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
            graph.register_initializer(new)
            return new
        cast = ir.node("Cast", [value], {"to": int(dtype)}, name=self._name(f"{name}_Cast"))
        new = cast.outputs[0]
        new.name, new.type, new.shape = name, ir.TensorType(dtype), value.shape
        put_behind(graph, value, [cast])
        return new

    def _cast_output(self, index: int, value: ir.Value, dtype: ir.DataType) -> None:
        """Make a graph output, under its name, what a Cast of the value gives."""
        new = self._as(value, dtype)
        graph, name = self._model.graph, value.name
        graph.outputs[index] = new
        if value.is_graph_input():
            return
        other = new.name
        new.name = self._name(f"{name}_given")  # no two constants may share a name on the way
        value.name, new.name = other, name

    def _store(self, half: ir.DataType) -> None:
        """Keep constants that the half type holds exactly in it, behind Cast."""
        graph = self._model.graph
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype != FLOAT or value.is_graph_input() or value.is_graph_output():
                continue
            if value.name in self._types.wide:
                continue
            stored = converted(tensor, half)
            if not np.array_equal(stored.numpy().astype(np.float32), tensor.numpy(), equal_nan=True):
                continue
            cast = ir.node("Cast", [value], {"to": int(FLOAT)}, name=self._name(f"{value.name}_Cast"))
            wide = cast.outputs[0]
            wide.name, wide.type, wide.shape = self._name(f"{value.name}_float32"), ir.TensorType(FLOAT), value.shape
            ir.convenience.replace_all_uses_with(value, wide)
            cast.replace_input_with(0, value)
            value.const_value, value.dtype = stored, half
            graph.insert_before(graph[0], cast)

    def _restore_names(self) -> None:
        """Drop constants that nothing reads any longer; their versions take their names."""
        initializers = self._model.graph.initializers
        for (value, _), new in self._versions.items():
            ends = value.is_graph_output() or value.is_graph_input() or new.is_graph_output()
            if new.const_value is None or value.uses() or ends:
                continue
            name = str(value.name)
            del initializers[name]
            del initializers[str(new.name)]
            new.name = name
            new.const_value.name = name
            initializers[name] = new

    def _name(self, name: str) -> str:
        return take_name(name, self._names)
