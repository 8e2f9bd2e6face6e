"""The rules of onnxruntime on a CPU.

Source of each rule: onnxruntime's QDQ selectors and fusions (core/optimizer/qdq_transformer), and what its CPU kernels
accept; all were tried on onnxruntime 1.32, and tests/targets/test_onnxruntime_rules.py tries them again. A quantized
node runs in integers only if its surroundings have exactly the form that a selector looks for:
- Conv becomes QLinearConv when its inputs come from DequantizeLinear and its output goes to QuantizeLinear alone; a
  Relu or Clip in between is absorbed by the range of that QuantizeLinear, if the Clip lets 0 pass.
- MatMul and Gemm with two dequantized operands run in integers with a float output, but not with a bias: Gemm's own,
  or that of an Add, which onnxruntime merges into the product first. They need a QuantizeLinear behind them, or the
  bias in an Add that is not merged: any behind a Gemm, and one of a bias of two axes behind a MatMul of more axes.
- Bias stays float; onnxruntime quantizes it itself.
- Activations are unsigned with a zero point, weights are 8 bits wide, signed or not. 4-bit weights run in float.
- Sums of two activations and the like between layers (`CHAINED`) run in integers where all their inputs and their
  output, behind an absorbed Relu, are quantized.
- A product whose input is quantized on its own range (`dynamic`) runs in integers in the form of lowering.py, whatever
  is around it, if its weight has 8 bits. There is no fast kernel for such convolutions: ConvInteger, without
  vector instructions, took 6 to 12 times as long as Conv in float, QLinearConv a third.
- 16-bit activations are not fused: each Q/DQ is a pass over the data, and products run in float.
- MatMul, and Gemm of no transposed operand, become MatMulNBits where their weights alone are integers, unless a Relu or
  Clip alone reads them, also behind a bias that onnxruntime merges into the product, and one node alone reads that.
- MatMulNBits of 2 bits is wrong where the outputs are not a multiple of 4.
- 2-bit weights do not load beside quantized activations, nor does a Conv of 8-bit weights between 4-bit activations,
  nor a Clip whose only reader is a 4-bit QuantizeLinear, nor a MaxPool in front of one, which would get 4-bit inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...core.level import FLOAT, Choice
from ...graph.edit import add_initializer, free_name, names_of
from ...graph.layers import Layer
from ...graph.scales import runs_in_integers, storage_type
from ...graph.write import Activation, take_over_output

CHAINED = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")  # have integer kernels
MOVED_BEFORE = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")  # nodes that a QuantizeLinear is moved before


def unsupported(layer: Layer, choice: Choice) -> str | None:
    """Why onnxruntime computes such a layer wrongly, or None; see `activation_bits` for what it runs in integers."""
    two_bits = choice.level.bits is not None and _width(choice) == 2
    if two_bits and layer.weight.ndim == 2 and layer.rows % 4 and any(in_few_bits(use.node) for use in layer.uses):
        return (
            f"onnxruntime's MatMulNBits is wrong for 2-bit weights of {layer.rows} outputs, no multiple of 4; use int3"
        )
    return None


def activation_bits(layer: Layer, choice: Choice) -> tuple[int | None, str | None]:
    """The bits that a layer's input is quantized to, and why they are not the ones asked for."""
    if choice.activation_bits is None or choice.level.bits is None:
        return None, None
    if layer.op == "ConvTranspose":
        return None, "onnxruntime has no integer ConvTranspose: its input stays float"
    if any(use.index == 0 for use in layer.uses) and layer.op in ("MatMul", "Gemm"):
        return None, "onnxruntime has no integer kernel for a constant left operand: its input stays float"
    if choice.level.block is not None:
        return None, "onnxruntime multiplies blocks with their own scales by inputs that are not quantized in the file"
    if not runs_in_integers(layer):
        return None, "onnxruntime has no integer kernel for batched or grouped weights: its input stays float"
    width = _width(choice)
    if width == 2:
        return None, "onnxruntime cannot load 2-bit weights beside quantized activations: its input stays float"
    if choice.dynamic and width != 8:
        return None, f"onnxruntime has no dynamic kernel for {width}-bit weights: its input stays float"
    if width == 8 and choice.activation_bits < 8:
        return 8, f"onnxruntime cannot load {choice.activation_bits}-bit activations beside 8-bit weights: 8 bits"
    return choice.activation_bits, None


def not_dynamic(layer: Layer) -> str | None:
    """Why a layer's input has a range of calibration data though that of each input was asked for, or None."""
    if layer.op == "Conv":
        return "onnxruntime has no fast dynamic kernel for Conv: its input has a range of calibration data"
    if any(use.node.attributes.get_int("transA", 0) for use in layer.uses):
        return "onnxruntime has no dynamic kernel for a transposed input: it has a range of calibration data"
    return None


def one_reader(layer: Layer, choice: Choice) -> bool:
    """Whether a weight becomes that of a MatMulNBits, which is made of codes with one reader."""
    alone = choice.level.bits is not None and choice.activation_bits is None
    return alone and layer.weight.ndim == 2 and all(in_few_bits(use.node) for use in layer.uses)


def in_few_bits(node: ir.Node, turned: Sequence[str] = ("transA", "transB")) -> bool:
    """Whether a product has a form that MatMulNBits is made of, where its weight is one of integers alone. turned: what
    of its operands may not be."""
    if node.op_type == "MatMul":
        return True
    biased = len(node.inputs) > 2 and node.inputs[2] is not None
    factors = {"alpha", "beta"} if biased else {"alpha"}
    plain = all(node.attributes.get_float(name, 1.0) == 1 for name in factors)
    return node.op_type == "Gemm" and plain and not any(node.attributes.get_int(name, 0) for name in turned)


def clipping(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip behind a product for which onnxruntime makes no MatMulNBits of it; None if there is none."""
    value, source = node.outputs[0], node.inputs[0]
    adding = _only_reader(value, None) if node.op_type == "MatMul" else None
    if adding is not None and adding.op_type == "Add":
        if source is not None and source.shape is not None and len(source.shape) != 2:
            return None  # only products of two axes are merged with their bias
        value = adding.outputs[0]
    reader = _only_reader(value)
    if reader is None or reader.domain != "" or reader.op_type not in ("Relu", "Clip"):
        return None
    after = reader.outputs[0]
    return reader if len(after.uses()) == 1 and not after.is_graph_output() else None


def prepare(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> None:
    """Give products that run in integers, and that no QuantizeLinear will follow, a bias that allows for it; and hide
    each Clip and MaxPool from the 4-bit QuantizeLinear that will follow it."""
    integer = [layer for layer in layers if layer.name in choices and _runs_in_integers(choices[layer.name])]
    quantized = {(use.node, 1 - use.index) for layer in integer for use in layer.uses}

    def is_quantized(value: ir.Value) -> bool:
        value = _absorbing(value, model)
        return not value.is_graph_output() and all((use.node, use.idx) in quantized for use in value.uses())

    narrow = [layer for layer in layers if layer.name in choices and choices[layer.name].activation_bits == 4]
    for source in dict.fromkeys(use.node.inputs[1 - use.index] for layer in narrow for use in layer.uses):
        before = None if source is None else source.producer()
        if before is not None and _is(before, "Clip", model):
            _split_clip(model, before)
        while before is not None and any(_is(before, op_type, model) for op_type in MOVED_BEFORE):
            moved = before.inputs[0]
            before = None if moved is None else moved.producer()
        if before is not None and _is(before, "MaxPool", model):
            _put_behind(model, before, "Max", [], "alone", "pool")  # of one value: a copy

    alone = [x for x in layers if x.name in choices and choices[x.name].activation_bits is None]
    for node in [use.node for layer in alone if choices[layer.name].level.bits is not None for use in layer.uses]:
        reader = clipping(node) if node.op_type in ("MatMul", "Gemm") else None
        if reader is not None and _is(reader, "Relu", model):
            _relu_as_max(model, reader)
        elif reader is not None and _is(reader, "Clip", model):
            _split_clip(model, reader)
    for node in [use.node for layer in integer if layer.weight.ndim == 2 for use in layer.uses]:
        output, uses = node.outputs[0], list(node.outputs[0].uses())
        if node.op_type == "Gemm":
            has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
            if has_bias and node.attributes.get_float("beta", 1.0) == 1 and not is_quantized(output):
                split_gemm(model, node)
        elif len(uses) == 1 and _is(uses[0].node, "Add", model) and not output.is_graph_output():
            add, index, source = uses[0].node, 1 - uses[0].idx, node.inputs[0]
            rank = len(source.shape) if source is not None and source.shape is not None else 0
            if rank == 2 and not is_quantized(add.outputs[0]):
                node.op_type = "Gemm"
            elif rank > 2:
                _widen_bias(model, add, index)


def place_qdq(model: ir.Model, layers: Sequence[Layer], choices: Mapping[str, Choice]) -> list[Activation]:
    """The inputs of quantized layers, and the outputs of convolutions that run in integers; each value once a width.

    An input on its own range may be a value that is quantized otherwise before: then it is what that stands for.
    """
    readers: dict[tuple[ir.Value, int], list[tuple[ir.Node, int]]] = {}
    dynamic: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    outputs: dict[ir.Value, None] = {}
    float_nodes: set[ir.Node] = set()
    for layer in layers:
        choice = choices.get(layer.name, Choice(FLOAT))
        for use in layer.uses:
            source = use.node.inputs[1 - use.index]
            if choice.activation_bits is None or source is None:
                float_nodes.add(use.node)
                continue
            if choice.dynamic:
                dynamic.setdefault(source, []).append((use.node, 1 - use.index))
                continue
            readers.setdefault((source, choice.activation_bits), []).append((use.node, 1 - use.index))
            if layer.op == "Conv" and _runs_in_integers(choice):
                outputs[_absorbing(use.node.outputs[0], model)] = None
    integer = [value for value in outputs if (_behind_split_clip(value), 4) not in readers]
    taken = {reader for found in readers.values() for reader in found}
    chained, entries = _chain(model, {value for value, bits in readers if bits == 8} | set(integer))
    for node, index in entries:
        source = node.inputs[index]
        assert source is not None
        readers.setdefault((source, 8), []).append((node, index))
        taken.add((node, index))
    for output in dict.fromkeys([*integer, *chained]):
        free = [(use.node, use.idx) for use in output.uses() if _may_read(use.node, model, float_nodes)]
        readers.setdefault((output, 8), []).extend(use for use in free if use not in taken)
    return [
        Activation(
            *(str(value.name), bits),
            symmetric=False,
            readers=tuple(dict.fromkeys(found)),
            replaces_output=bits == 8 and value in {*integer, *chained},
        )
        for (value, bits), found in readers.items()
        if found or (bits == 8 and value.is_graph_output())
    ] + [
        Activation(str(value.name), 8, False, tuple(dict.fromkeys(found)), dynamic=True)
        for value, found in dynamic.items()
    ]


def _chain(model: ir.Model, quantized: set[ir.Value]) -> tuple[list[ir.Value], list[tuple[ir.Node, int]]]:
    """Operators between layers that run in integers too, where all that they read is quantized, and what reads them.

    quantized: the values with 8 bits. Returns the values behind such operators, a Relu or Clip absorbed, and the
    operators' inputs that are to be read quantized.
    """
    candidates: dict[ir.Node, ir.Value] = {}
    reached = set(quantized)
    for node in model.graph:
        sources = [value for value in node.inputs if value is not None]
        if node.op_type in CHAINED and node.domain == "" and sources and all(value in reached for value in sources):
            candidates[node] = _absorbing(node.outputs[0], model)
            reached.add(candidates[node])
    kept: dict[ir.Node, ir.Value] = {}
    for node in reversed(list(candidates)):
        value = candidates[node]
        if value in quantized or any(use.node in kept for use in value.uses()):
            kept[node] = value
    entries = [(node, index) for node in kept for index in range(len(node.inputs))]
    return list(reversed(list(kept.values()))), entries


def _may_read(node: ir.Node, model: ir.Model, float_nodes: set[ir.Node]) -> bool:
    """A layer that stays float must see no Q/DQ, or onnxruntime quantizes its weight by itself."""
    return node not in float_nodes and node.graph is model.graph


def _width(choice: Choice) -> int:
    assert choice.level.bits is not None
    return int(storage_type(choice.level.bits, choice.level.symmetric).bitwidth)


def _runs_in_integers(choice: Choice) -> bool:
    """Whether a layer runs in integers because of the Q/DQ around it."""
    return choice.activation_bits == 8 and not choice.dynamic and _width(choice) == 8


def _absorbing(value: ir.Value, model: ir.Model) -> ir.Value:
    """The value behind a Relu or Clip that reads this one alone: what the QuantizeLinear has to follow."""
    reader = _only_reader(value)
    if reader is None:
        return value
    absorbed = _is(reader, "Relu", model) or (_is(reader, "Clip", model) and _lets_zero_pass(reader))
    return reader.outputs[0] if absorbed else value


def _is(node: ir.Node, op_type: str, model: ir.Model) -> bool:
    """Whether a node is ONNX's operator of this name, and of the main graph, not of a body that runs on its own."""
    return node.op_type == op_type and node.domain == "" and node.graph is model.graph


def _behind_split_clip(value: ir.Value) -> ir.Value:
    """The value behind what `_split_clip` made of a Clip that reads this one, which then runs in float like it."""
    for op_type in ("Max", "Min"):
        reader = _only_reader(value)
        if reader is not None and reader.op_type == op_type and len(reader.inputs) == 2:
            value = reader.outputs[0]
    return value


def _lets_zero_pass(clip: ir.Node) -> bool:
    for bound, sign in zip(clip.inputs[1:], (1, -1), strict=False):
        if bound is not None:
            tensor = ir.convenience.get_const_tensor(bound)
            if tensor is None or sign * float(tensor.numpy()) > 0:
                return False
    return True


def _only_reader(value: ir.Value, index: int | None = 0) -> ir.Node | None:
    """The node that reads a value as its input of this index, or as any, if nothing else reads it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and index in (None, uses[0].idx) and not value.is_graph_output() else None


def _split_clip(model: ir.Model, clip: ir.Node) -> None:
    """Write a Clip as Max and Min, which keep its output's name."""
    taken, value = set(names_of(model)), clip.inputs[0]
    nodes = []
    for bound, op_type in zip(clip.inputs[1:], ("Max", "Min"), strict=False):
        if bound is not None:
            node = ir.node(
                op_type, [value, bound], name=free_name(f"{clip.name or clip.outputs[0].name}_{op_type}", taken)
            )
            value = node.outputs[0]
            value.name = free_name(f"{clip.outputs[0].name}_{op_type}", taken)
            taken |= {str(node.name), str(value.name)}
            nodes.append(node)
    if not nodes or value is None:
        return
    old, name = clip.outputs[0], clip.outputs[0].name
    for user, index in list(old.uses()):
        user.replace_input_with(index, value)
    take_over_output(model.graph, old, value)
    model.graph.insert_after(clip, nodes)
    model.graph.remove(clip, safe=True)
    value.name = name


def _relu_as_max(model: ir.Model, relu: ir.Node) -> None:
    """Write a Relu as Max with 0, which keeps its output."""
    dtype = (
        relu.inputs[0].dtype if relu.inputs[0] is not None and relu.inputs[0].dtype is not None else ir.DataType.FLOAT
    )
    name = free_name(f"{relu.name or relu.outputs[0].name}_zero", set(names_of(model)))
    zero = add_initializer(model.graph, name, np.zeros((), dtype.numpy()))
    relu.op_type = "Max"
    relu.resize_inputs(2)
    relu.replace_input_with(1, zero)


def split_gemm(model: ir.Model, gemm: ir.Node) -> None:
    """Move the bias of a Gemm into an Add behind it, which onnxruntime leaves there. The sum keeps the Gemm's name."""
    bias = gemm.inputs[2]
    gemm.resize_inputs(2)
    _put_behind(model, gemm, "Add", [bias], "bias", "product")


def _put_behind(
    model: ir.Model, node: ir.Node, op_type: str, others: Sequence[ir.Value | None], what: str, before: str
) -> None:
    """Put a node of the node's first output and `others` behind it, whose output takes over all readers and the name.

    what, before: what is added to the node's name, and to that of its output.
    """
    old, taken = node.outputs[0], set(names_of(model))
    readers = list(old.uses())
    added = ir.node(op_type, [old, *others], name=free_name(f"{node.name or old.name}_{what}", taken))
    new = added.outputs[0]
    for user, index in readers:
        user.replace_input_with(index, new)
    name, fresh = old.name, free_name(f"{old.name}_{before}", taken)
    take_over_output(model.graph, old, new)
    old.name, new.name = fresh, name
    model.graph.insert_after(node, added)


def _widen_bias(model: ir.Model, add: ir.Node, index: int) -> None:
    """Give the bias of an Add, its input `index`, an axis in front, so that onnxruntime takes it for none."""
    bias = add.inputs[index]
    tensor = None if bias is None else ir.convenience.get_const_tensor(bias)
    if bias is None or tensor is None or len(tensor.shape) != 1:
        return
    name = free_name(f"{bias.name}_row", set(names_of(model)))
    add.replace_input_with(index, add_initializer(model.graph, name, tensor.numpy()[None]))  # (1, rows)
