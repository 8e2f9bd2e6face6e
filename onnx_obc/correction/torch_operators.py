"""What onnx2torch lacks: newer versions of operators that it knows, and a few operators.

This file is imported only where onnx2torch is to be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import defs
from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult, get_const_value
from torch import nn

Converter = Callable[[OnnxNode, OnnxGraph], OperationConverterResult]

REDUCTIONS = tuple(
    f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


def register(model: onnx.ModelProto) -> None:
    """Make the operators of a model that onnx2torch does not know known to it, as far as that is possible."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for operator in sorted({node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")}):
        if _known(operator, opsets[""]):
            continue
        try:
            version = defs.get_schema(operator, opsets[""], "").since_version
        except defs.SchemaError:
            continue
        converter = _own(operator) or _older(operator, version)
        if converter is not None:
            add_converter(operator, version)(converter)


def node_errors(model: onnx.ModelProto) -> list[str]:
    """A sentence for each operator of a model that cannot be converted."""
    opsets, graph = {entry.domain: entry.version for entry in model.opset_import}, OnnxGraph(model.graph)
    found: dict[str, str] = {}
    for node in graph.nodes.values():
        version = opsets[node.domain]
        what = f"{node.operation_type} ({node.domain or 'ai.onnx'}, opset {version})"
        if not _known(node.operation_type, version, node.domain):
            found.setdefault(what, f"onnx2torch does not know the operator {what}")
            continue
        try:
            get_converter(node.operation_type, version, node.domain)(node, graph)
        except Exception as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            found.setdefault(what, f"onnx2torch cannot convert the operator {what}: {cause}")
    return list(found.values())


def _known(operator: str, version: int, domain: str = "") -> bool:
    try:
        get_converter(operator, version, domain)
    except NotImplementedError:
        return False
    return True


def _older(operator: str, version: int) -> Converter | None:
    """The converter of the operator's newest version that has one, for nodes that use nothing newer."""
    since = version
    while since > 1:
        try:
            schema = defs.get_schema(operator, since - 1, "")
        except defs.SchemaError:
            return None
        since = schema.since_version
        if not _known(operator, since):
            continue
        older: Converter = get_converter(operator, since)

        def convert(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
            inputs = [name for name in node.input_values if name]
            newer = sorted(set(node.attributes) - set(schema.attributes))
            if newer or len(inputs) > schema.max_input:
                what = ", ".join(newer) or f"{len(inputs)} inputs"
                raise NotImplementedError(f"{what} came after version {since}, the newest that is known")
            return older(node, graph)

        return convert
    return None


def _own(operator: str) -> Converter | None:
    if operator in REDUCTIONS:
        return _reduction
    return _gelu if operator == "Gelu" else None


def _reduction(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Version 18 has the axes as an input, which must be constant here."""
    axes: Any = get_const_value(node.input_values[1], graph).tolist() if len(node.input_values) > 1 else None  # type: ignore[union-attr]
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return OperationConverterResult(nn.Identity(), OnnxMapping(node.input_values[:1], node.output_values))
    module = OnnxReduceStaticAxes(node.operation_type, axes, node.attributes.get("keepdims", 1))
    return OperationConverterResult(module, OnnxMapping(node.input_values[:1], node.output_values))


def _gelu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    module = nn.GELU(node.attributes.get("approximate", "none"))
    return OperationConverterResult(module, OnnxMapping(node.input_values, node.output_values))
