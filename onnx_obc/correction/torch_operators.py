"""What onnx2torch lacks: newer versions of operators that it knows, a few operators, and repairs of some that it knows.

This file is imported only where onnx2torch is to be used.
"""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnx
import torch
from onnx import defs, numpy_helper
from onnx2torch.node_converters.flatten import OnnxFlatten
from onnx2torch.node_converters.min_max import OnnxMinMax
from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.node_converters.slice import OnnxSlice
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


def simplify(model: onnx.ModelProto) -> dict[str, bool]:
    """Take attributes from a model, in place, that onnx2torch does not know: `allowzero`, which only matters to arrays
    without elements, and SAME_UPPER and SAME_LOWER from convolutions and maximum pools.

    By node that had one of these two, whether it was the former. `repair` pads in their place.
    """
    uppers: dict[str, bool] = {}
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "allowzero" and node.op_type == "Reshape":
                attribute.i = 0
            if (
                attribute.name == "auto_pad"
                and node.op_type in ("Conv", "MaxPool")
                and attribute.s.startswith(b"SAME_")
            ):
                uppers[node.name] = attribute.s == b"SAME_UPPER"
                attribute.s = b"NOTSET"
    return uppers


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


def repair(module: nn.Module, uppers: Mapping[str, bool]) -> nn.Module:
    """Replace, in place, the modules of onnx2torch that fail where the operator would not, or take long.

    uppers: what `simplify` took from the model.
    """
    bounds = _bounds(module)
    for name, inner in list(module.named_children()):
        if name in uppers:
            setattr(module, name, nn.Sequential(_SamePad(inner, uppers[name]), inner))
        elif isinstance(inner, OnnxFlatten):
            setattr(module, name, _Flatten(inner.axis))
        elif isinstance(inner, OnnxSlice):
            setattr(module, name, _Slice())
        elif name in bounds:
            setattr(module, name, bounds[name])
        elif isinstance(inner, nn.LayerNorm):  # onnx2torch reads the shape off a value where it may be free, as 0
            inner.normalized_shape = tuple(inner.weight.shape)
    return module


def _bounds(module: Any) -> dict[str, nn.Module]:
    """By name, what is to stand for each Min and Max of a value and one constant number, both floats."""
    found: dict[str, nn.Module] = {}
    for step in module.graph.nodes:
        inner = module.get_submodule(step.target) if step.op == "call_module" else None
        if not isinstance(inner, OnnxMinMax) or len(step.args) != 2:
            continue
        constants = [_constant(module, argument) for argument in step.args]
        for constant, index in zip(constants, (1, 0), strict=True):
            if constant is None or constants[index] is not None or not constant.is_floating_point():
                continue
            if constant.numel() == 1 and constant.dim() <= 1:
                ends = {"Min": (None, float(constant)), "Max": (float(constant), None)}[inner._op_type]
                found[step.target] = _Bound(index, *ends)
    return found


def _constant(module: Any, argument: Any) -> torch.Tensor | None:
    """The constant that an argument of a step is; None if it is computed."""
    if argument.op != "get_attr":
        return None
    path, _, name = argument.target.rpartition(".")
    constant: torch.Tensor = getattr(module.get_submodule(path), name)
    return constant


class _Bound(nn.Module):
    """Min or Max of a value and a constant. onnx2torch stacks the two and reduces, in 3 times the seconds."""

    def __init__(self, index: int, low: float | None, high: float | None) -> None:
        super().__init__()
        self.index, self.low, self.high = index, low, high

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        return torch.clamp(operands[self.index], self.low, self.high)


class _SamePad(nn.Module):
    """Padding that gives a window operator an output for every stride; of an odd number, one more lies at the end, or,
    unless `upper`, at the beginning."""

    def __init__(self, window: Any, upper: bool) -> None:
        super().__init__()
        self.upper, self.value = upper, 0.0 if hasattr(window, "weight") else -math.inf
        self.windows = [window.kernel_size, window.stride, window.dilation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []  # torch has the last axis first
        sizes = x.shape[2:]
        spans = [(each,) * len(sizes) if isinstance(each, int) else each for each in self.windows]
        for size, kernel, stride, dilation in zip(sizes, *spans, strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            less, more = total // 2, total - total // 2
            pads = [*((less, more) if self.upper else (more, less)), *pads]
        return nn.functional.pad(x, pads, value=self.value)


class _Flatten(nn.Module):
    """Flatten at any axis: that of onnx2torch fails at the rank of its input."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(math.prod(x.shape[: self.axis]), math.prod(x.shape[self.axis :]))


class _Slice(nn.Module):
    """Slice, without the indexing by a list that torch is about to read in another way."""

    def forward(
        self,
        input_tensor: torch.Tensor,
        starts: torch.Tensor,
        ends: torch.Tensor,
        axes: torch.Tensor | None = None,
        steps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        count = len(starts)
        where = range(count) if axes is None else axes.tolist()
        strides = [1] * count if steps is None else steps.tolist()
        index, flipped = [slice(None)] * input_tensor.dim(), []
        for start, end, axis, step in zip(starts.tolist(), ends.tolist(), where, strides, strict=True):
            if step < 0:  # torch has no negative steps
                flipped.append(axis)
                start, end, step = -start - 1, -end - 1, -step
            index[axis] = slice(start, end, step)
        return input_tensor.flip(flipped)[tuple(index)] if flipped else input_tensor[tuple(index)]


def _known(operator: str, version: int, domain: str = "") -> bool:
    try:
        get_converter(operator, version, domain)
    except NotImplementedError:
        return False
    return True


def _older(operator: str, version: int) -> Converter | None:
    """The converter of the operator's newest version that has one, for nodes that use nothing newer."""
    while version > 1:
        try:
            schema = defs.get_schema(operator, version - 1, "")
        except defs.SchemaError:
            return None
        version = schema.since_version
        if _known(operator, version):
            return partial(_as_older, schema, get_converter(operator, version))
    return None


def _as_older(schema: Any, older: Converter, node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    count = sum(bool(name) for name in node.input_values)
    newer = ", ".join(sorted(set(node.attributes) - set(schema.attributes)))
    if newer or count > schema.max_input:
        raise NotImplementedError(
            f"{newer or f'{count} inputs'} came after version {schema.since_version}, the newest that it knows"
        )
    return older(node, graph)


def _own(operator: str) -> Converter | None:
    if operator in REDUCTIONS:
        return _reduction
    return {"Gelu": _gelu, "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}.get(operator)


def _reduction(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    """Version 18 has the axes as an input, which must be constant here."""
    axes: Any = get_const_value(node.input_values[1], graph).tolist() if len(node.input_values) > 1 else None
    if not axes and node.attributes.get("noop_with_empty_axes", 0):
        return OperationConverterResult(nn.Identity(), OnnxMapping(node.input_values[:1], node.output_values))
    module = OnnxReduceStaticAxes(node.operation_type, axes, node.attributes.get("keepdims", 1))
    return OperationConverterResult(module, OnnxMapping(node.input_values[:1], node.output_values))


def _gelu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    module = nn.GELU(node.attributes.get("approximate", "none"))
    return OperationConverterResult(module, OnnxMapping(node.input_values, node.output_values))


def _quantize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    scale, zero, ends = _steps_of(node, graph)
    return OperationConverterResult(
        _Quantize(scale, zero, *ends), OnnxMapping(node.input_values[:1], node.output_values)
    )


def _dequantize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    scale, zero, _ = _steps_of(node, graph)
    axis = node.attributes.get("axis", 1)
    return OperationConverterResult(
        _Dequantize(scale, zero, axis), OnnxMapping(node.input_values[:1], node.output_values)
    )


def _steps_of(node: OnnxNode, graph: OnnxGraph) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """The scale and zero point of a pair's node, float32, and the ends of its integers; both must be constants."""
    if node.attributes.get("block_size", 0):
        raise NotImplementedError("it is in blocks")
    stored = [graph.initializers[name].proto for name in node.input_values[1:3]]
    scale, zero = (torch.from_numpy(numpy_helper.to_array(part).astype("float32")) for part in stored)
    kind = onnx.TensorProto.DataType.Name(stored[1].data_type)
    bits = int(kind.lstrip("UINT"))
    return scale, zero, (0, 2**bits - 1) if kind.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class _Quantize(nn.Module):
    """QuantizeLinear with one scale, its codes as floats; gradients pass the rounding straight through."""

    scale: torch.Tensor
    zero: torch.Tensor

    def __init__(self, scale: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> None:
        super().__init__()
        if scale.numel() != 1:
            raise NotImplementedError("it has a scale for every channel")
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes: torch.Tensor = _Codes.apply(x, self.scale, self.zero, self.low, self.high)  # type: ignore[no-untyped-call]
        return codes


class _Codes(torch.autograd.Function):
    """round(x / scale) + zero, clipped to low and high; backwards as if nothing were rounded, and 0 where clipped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, *ends: int) -> torch.Tensor:
        steps = x / scale
        ctx.save_for_backward(steps, scale, zero)
        ctx.ends = ends
        return steps.round().add_(zero).clamp_(*ends)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        steps, scale, zero = ctx.saved_tensors
        low, high = (end - zero for end in ctx.ends)
        whole = steps.round()
        inside = gradients[0] * ((whole >= low) & (whole <= high)) / scale
        of_scale = -(inside * steps).sum().reshape(scale.shape) if ctx.needs_input_grad[1] else None
        return inside, of_scale, None, None, None


class _Dequantize(nn.Module):
    """DequantizeLinear of codes that are floats or integers."""

    scale: torch.Tensor
    zero: torch.Tensor

    def __init__(self, scale: torch.Tensor, zero: torch.Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.axis = axis

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        scale, zero = self.scale, self.zero
        if scale.dim() == 1 and scale.numel() > 1:
            shape = [1] * codes.dim()
            shape[self.axis] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        return (codes - zero) * scale
