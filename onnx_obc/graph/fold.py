"""Simplifies a model without changing what it computes: constants, functions, BatchNorm and Pad fold away."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule

from ..core.plural import counted
from .contributed import check_model, teach_shapes
from .edit import supersede
from .fuse import along_outputs, constant_of, flatten_biases, fuse_arithmetic, set_bias, set_initializer
from .opset import inline_functions
from .tensors import own_copy
from .unfuse import unfuse

Step = Callable[[ir.Model], str | None]

FUSED_INTO = ("Conv", "ConvTranspose", "Gemm")
WEIGHT_ARITHMETIC = {
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Neg",
        "Abs",
        "Exp",
        "Log",
        "Tanh",
        "Sigmoid",
        "Softplus",
    ),
    *("Clip", "Max", "Min", "Sign", "Round", "MatMul"),
    *("ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceMax", "ReduceMin"),
}
LARGE = 2**20  # elements
SHARED_SIZE = 1024  # a constant with so many elements and several readers is kept, so that they go on sharing it


def fold(model: ir.Model, fuse: bool = True) -> tuple[ir.Model, list[str]]:
    """A simplified copy, and sentences for the report.

    Functions are inlined, what onnxruntime fused around weights is taken apart, constants are folded (tables that would
    grow stay), BatchNormalization is fused into the Conv, ConvTranspose or Gemm before it, Pad into the Conv
    behind it, and what nothing reads is removed. Inputs, outputs (names, order, types, shapes), metadata and opset
    imports stay. A step that fails, or whose result the ONNX checker refuses, is left out, and a sentence says so.
    fuse: whether operators may become one; without it every value of the model that is not a constant keeps its place.
    """
    model = own_copy(model)
    notes: list[str] = []
    fusing: list[tuple[str, Step]] = [
        ("fusing Pad into Conv", _fuse_pads),
        ("fusing Mul and Add into Conv", fuse_arithmetic),
        ("fusing BatchNormalization", _fuse_batchnorms),
        ("fusing Mul and Add into Conv", fuse_arithmetic),
    ]
    steps: list[tuple[str, Step]] = [
        ("dropping the graph inputs that stand for weights", _drop_weight_inputs),
        ("inlining functions", _inline),
        ("folding constants", _fold_constants),
        ("taking onnxruntime's fused operators apart", _unfuse),
        ("turning Constant nodes into initializers", _lift_constants),
        *(fusing if fuse else ()),
        ("giving Gemm's bias one axis", flatten_biases),
        ("dropping the leading axes of weights", _drop_leading_axes),
        ("removing what is not used", _remove_unused),
    ]
    for what, step in steps:
        candidate = model.clone()
        try:
            note = step(candidate)
            _restore_signature(candidate, model)
            check_model(candidate)
        except Exception as error:  # whatever it is, the model before this step is whole
            cause = str(error.__cause__ or error).strip().split("\n")[0]
            notes.append(f"{what} was left out: {cause or type(error).__name__}")
            continue
        model = candidate
        if note is not None:
            notes.append(note)
    return model, notes


def remove_unused(model: ir.Model) -> None:
    """Remove, in place, what nothing reads: nodes, initializers, and inputs that were only an initializer's default."""
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    for value in list(graph.inputs):
        if value.name in graph.initializers and not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
            del graph.initializers[str(value.name)]


def _restore_signature(model: ir.Model, original: ir.Model) -> None:
    """Give inputs and outputs the declared types and shapes again. Raises ValueError if their names changed."""
    graph, before = model.graph, original.graph
    inputs = [value.name for value in before.inputs if value.name not in before.initializers]
    if [value.name for value in graph.inputs if value.name not in graph.initializers] != inputs:
        raise ValueError("it would change the model's inputs")
    if [value.name for value in graph.outputs] != [value.name for value in before.outputs]:
        raise ValueError("it would change the model's outputs")
    declared = {value.name: value for value in (*before.inputs, *before.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        value.type, value.shape = declared[value.name].type, declared[value.name].shape
    graph.opset_imports.update({k: v for k, v in before.opset_imports.items() if k not in graph.opset_imports})


def _drop_weight_inputs(model: ir.Model) -> str | None:
    """IR 3 forced exporters to list every initializer among the inputs; IR 4 does not."""
    if model.ir_version >= 4:
        return None
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    model.graph.inputs[:] = inputs
    model.ir_version = 4
    return None


def _inline(model: ir.Model) -> str | None:
    if not model.functions:
        return None
    count = len(model.functions)
    inline_functions(model)
    return f"{counted(count, 'function')} inlined"


def _fold_constants(model: ir.Model) -> str | None:
    before = sum(1 for _ in model.graph.all_nodes())
    teach_shapes()
    for _ in range(2):  # the second pass folds what the first one's shapes made constant
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=_may_fold)
        common.RemoveUnusedNodesPass()(model)
    after = sum(1 for _ in model.graph.all_nodes())
    return f"{counted(before - after, 'node')} folded away" if after < before else None


def _unfuse(model: ir.Model) -> str | None:
    note = unfuse(model)
    if note is not None:
        _fold_constants(model)  # which infers the shapes of what is new
    return note


def _lift_constants(model: ir.Model) -> str | None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return None


def _may_fold(node: ir.Node) -> bool | None:
    """Whether to fold a node of constants; None leaves it to the optimizer's default limits.

    Weights that the graph computes from constants (weight normalisation and standardisation) fold at any size, as
    long as the result is no larger than what it replaces. A rearranged copy of a shared table would undo the sharing,
    and a random draw is no constant. Small fills fold, large ones stay the few bytes that they are. What would come
    out larger than LARGE and all that it is made of is not computed at all.
    """
    if node.op_type == "Bernoulli" or _grows(node):
        return False
    if node.op_type in WEIGHT_ARITHMETIC:
        return True
    if node.op_type == "ConstantOfShape" and node.inputs[0] is not None:  # exporters compute Pad's pads with it
        shape = ir.convenience.get_const_tensor(node.inputs[0])
        return None if shape is None else bool(np.prod(shape.numpy()) < SHARED_SIZE)
    for value in node.inputs:
        tensor = None if value is None else value.const_value
        if value is not None and tensor is not None and tensor.size >= SHARED_SIZE and len(value.uses()) > 1:
            return False
    return None


def _grows(node: ir.Node) -> bool:
    """Whether a node makes something large of less: an Expand, a Range, an outer product."""
    tensors = [value.const_value for value in node.inputs if value is not None]
    most = max(LARGE, sum(tensor.size for tensor in tensors if tensor is not None))
    shapes = [value.shape for value in node.outputs if value.shape is not None and value.shape.is_static()]
    return any(math.prod(shape.numpy()) > most for shape in shapes)


def _drop_leading_axes(model: ir.Model) -> str | None:
    """Give weights of MatMul whose leading axes have one entry, (1, K, N), two axes: integer kernels take no more.

    Where all that read such a weight multiply inputs of as many axes by it, so that the output keeps its own.
    """
    for value in list(model.graph.initializers.values()):
        tensor, uses = value.const_value, list(value.uses())
        shape = () if tensor is None else tensor.shape.numpy()
        if tensor is None or len(shape) < 3 or any(size != 1 for size in shape[:-2]) or value.is_graph_output():
            continue
        if uses and all(_multiplies(model, use.node, use.idx, len(shape)) for use in uses):
            set_initializer(model, value, tensor.numpy().reshape(shape[-2:]))
    return None


def _multiplies(model: ir.Model, node: ir.Node, index: int, axes: int) -> bool:
    """Whether a node is a MatMul of the main graph whose other input has at least so many axes."""
    other = node.inputs[1 - index] if node.op_type == "MatMul" and node.domain == "" else None
    return other is not None and node.graph is model.graph and other.shape is not None and len(other.shape) >= axes


def _remove_unused(model: ir.Model) -> str | None:
    remove_unused(model)
    return None


def _fuse_pads(model: ir.Model) -> str | None:
    opset = model.opset_imports.get("", 0)
    if opset < 11 or not any(node.op_type == "Pad" for node in model.graph):
        return None  # the rule knows Pad with its pads as an input only
    before = sum(node.op_type == "Pad" for node in model.graph)
    rewrite(model, [fuse_pad_into_conv_rule])
    common.RemoveUnusedNodesPass()(model)
    fused = before - sum(node.op_type == "Pad" for node in model.graph)
    return f"{fused} Pad fused into the Conv behind it" if fused else None


def _fuse_batchnorms(model: ir.Model) -> str | None:
    """onnxscript's rules drop the node's name, ignore training_mode and spatial, and give up on a shared bias."""
    norms = [node for node in model.graph if node.op_type == "BatchNormalization" and node.domain == ""]
    fused = sum(_fuse_batchnorm(model, norm) for norm in norms)
    training = sum(norm.graph is not None and _trains(norm) for norm in norms)
    alone = len(norms) - fused - training
    left = f", {alone} left: nothing before to fuse into" if alone else ""
    if training:
        left += f", {training} left in training mode, with each batch's own statistics: export the model for inference"
    return f"{fused} BatchNormalization fused into the layer before{left}" if norms else None


def _trains(norm: ir.Node) -> bool:
    """Whether a BatchNormalization is one for training: it says so, or, up to opset 13, has the outputs of training."""
    return bool(norm.attributes.get_int("training_mode", 0) or any(output.name for output in norm.outputs[1:]))


def _fuse_batchnorm(model: ir.Model, norm: ir.Node) -> bool:
    """Fuse one BatchNormalization into the node before it, where that is exact; whether it was.

    y = (Wx + b − mean) · factor + shift with factor = scale / sqrt(variance + epsilon) is W′x + b′ with W′ = factor · W
    along the output channels and b′ = (b − mean) · factor + shift. Computed in float64, rounded once.
    """
    attributes = norm.attributes
    if _trains(norm) or (model.opset_imports[""] < 9 and not attributes.get_int("spatial", 1)):
        return False
    value = norm.inputs[0]
    node = None if value is None else value.producer()
    if node is None or value is None or len(value.uses()) > 1 or value.is_graph_output():
        return False
    if node.op_type not in FUSED_INTO or node.domain != "" or node.graph is not model.graph:
        return False
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    tensors = [constant_of(v) for v in (weight, *norm.inputs[1:])]
    if bias is not None:
        tensors.append(constant_of(bias))
    if weight is None or len(weight.uses()) > 1 or weight.is_graph_output():
        return False
    if any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in tensors):
        return False
    w, scale, shift, mean, variance, *rest = [t.numpy().astype(np.float64) for t in tensors if t is not None]
    factor = scale / np.sqrt(variance + float(attributes.get_float("epsilon", 1e-5)))
    b = rest[0] * node.attributes.get_float("beta", 1.0) if rest else np.zeros_like(mean)
    new_weight = (w * along_outputs(node, factor, w.shape)).astype(np.float32)
    new_bias = ((b - mean) * factor + shift).astype(np.float32)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    if node.op_type == "Gemm":
        node.attributes.pop("beta", None)
    set_initializer(model, weight, new_weight)
    set_bias(model, node, new_bias)
    supersede(model, norm, value)
    return True
