"""A model in torch, by way of onnx2torch, in which the weights and biases of its layers can be replaced.

torch and onnx2torch come with the extra `torch` and are imported where they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Float32
from ..core.errors import ModelError, one_line
from ..core.solution import Grid, Solution
from ..graph.edit import free_name, names_of
from ..graph.fold import remove_unused
from ..graph.layers import Layer
from ..graph.write import activation_pairs
from ..runtime.session import open_session
from .sites import Site, find_sites

if TYPE_CHECKING:
    import onnx
    import torch


AGREEMENT = 1e-4  # of torch and onnxruntime, relative to the largest magnitude of a value
ROUNDED_AGREEMENT = 2e-3  # relative to the root mean square, where values are rounded inside


@dataclass(frozen=True)
class Slot:
    """Where a constant stands in a torch module: at `path` of its state, there transposed and times `factor`."""

    path: str
    transposed: bool = False
    factor: float = 1.0

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What stands there for a constant in the shape that ONNX has it in."""
        turned = tensor.T if self.transposed else tensor
        return turned if self.factor == 1 else turned * self.factor


@dataclass(frozen=True)
class Place:
    """Where the output of a layer is looked at: a value, of shape (samples, …) float32, behind the layer's bias.

    layer: its name. value: the output of the layer's node, or of the Add behind it that holds its bias. bias: the name
    of the initializer that is the bias; None where there is none, or where something else reads it too.
    """

    layer: str
    value: str
    bias: str | None


@dataclass(frozen=True, eq=False)
class TorchGraph:
    """A model as a torch module.

    inputs: the names of its inputs, in the order of the module's arguments. outputs: of its outputs. places: of the
    layers' outputs, one for each node of a layer. weights: where each layer's weight stands, by the layer's name.
    biases: the same by initializer. bias_values: those initializers, float32. scales, scale_values: the same for the
    scales of quantized activations. option: what asked for torch, for messages.
    """

    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    places: tuple[Place, ...]
    weights: Mapping[str, tuple[Slot, ...]]
    biases: Mapping[str, tuple[Slot, ...]]
    bias_values: Mapping[str, Float32]
    scales: Mapping[str, tuple[Slot, ...]]
    scale_values: Mapping[str, float]
    option: str

    def run(
        self,
        feed: Mapping[str, Array],
        weights: Mapping[str, torch.Tensor],
        biases: Mapping[str, torch.Tensor],
        device: str,
        scales: Mapping[str, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """The values of all outputs on one feed, with these weights, by layer, and biases and scales of activations, by
        initializer, in place of the model's own; weights in the shape of `Layer.weight`. Gradients flow back to all."""
        import torch

        slots = [(slot, value) for name, value in weights.items() for slot in self.weights[name]]
        slots += [(slot, value) for name, value in biases.items() for slot in self.biases[name]]
        slots += [(slot, value) for name, value in (scales or {}).items() for slot in self.scales[name]]
        state = {slot.path: slot.of(value) for slot, value in slots}
        inputs = tuple(_channels_last(torch.tensor(feed[name], device=device)) for name in self.inputs)
        outputs = torch.func.functional_call(self.module, state, inputs)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def to_torch(dense: ir.Model, layers: Sequence[Layer], option: str, outputs: Sequence[str] | None = None) -> TorchGraph:
    """Convert a folded float model, of which `layers` are all that matter. `dense` stays as it is.

    outputs: the values that the module gives out; None: those of the places. What these do not need is left out.
    option: of the command line, that asked for this; errors say to leave it out. Raises ModelError if onnx2torch is not
    installed, does not know an operator, or keeps the weight of a layer where it cannot be found.
    """
    places, shifts = places_of(dense, layers)
    given = tuple(place.value for place in places) if outputs is None else tuple(outputs)
    names = {node: f"n{index}" for index, node in enumerate(dense.graph)}
    proto, inputs, constants = _prepared(dense, layers, given, names)
    module = _convert(proto, option).eval().requires_grad_(False)
    state = module.state_dict(keep_vars=True)

    def find(node: ir.Node, index: int, what: str, expected: Array) -> Slot:
        slot = _slot(module, node, index, names[node])
        found = None if slot is None else state.get(slot.path)
        if slot is None or found is None or not np.array_equal(found.numpy(), _as_stored(slot, expected)):
            raise ModelError(
                f"{what}: its constant is not found again in what onnx2torch makes of its {node.op_type}; "
                f"leave out {option}"
            )
        return slot

    weights = {
        layer.name: tuple(find(use.node, use.index, f"layer {layer.name}", layer.weight) for use in layer.uses)
        for layer in layers
    }
    values = {name: constants[name] for name in shifts}
    biases = {
        name: tuple(find(node, index, f"bias {name}", values[name]) for node, index in readers)
        for name, readers in shifts.items()
    }
    scales = {
        pair.scale: tuple(Slot(f"{names[node]}.scale") for node in (pair.quantize, *pair.dequantize))
        for pair in activation_pairs(dense)
        if f"{names[pair.quantize]}.scale" in state
    }
    steps = {name: float(constants[name]) for name in scales}
    return TorchGraph(module, inputs, given, tuple(places), weights, biases, values, scales, steps, option)


def check_agreement(graph: TorchGraph, dense: ir.Model, feed: Mapping[str, Array], rounded: bool = False) -> None:
    """Raise ModelError unless torch and onnxruntime compute the same outputs, to 1e-4.

    rounded: values are rounded inside, so that some differ by a step: then the root mean square is to agree, to 2e-3.
    onnxruntime fuses nothing there, as it would round float weights behind rounded inputs, too.
    """
    import torch

    names = list(dict.fromkeys(graph.outputs))
    expected = open_session(dense, names, device="cpu", fuse=not rounded).run(dict(feed))
    with torch.no_grad():
        try:
            found = graph.run(feed, {}, {}, "cpu")
        except Exception as error:
            raise ModelError(
                f"torch cannot run the model as onnx2torch converts it: {one_line(error)}; leave out {graph.option}"
            ) from error
    owners = {place.value: f"layer {place.layer}" for place in graph.places}
    for name, value in zip(graph.outputs, found, strict=True):
        wanted, got = expected[name], value.numpy()
        worst = float("inf")
        if wanted.shape == got.shape:
            norm = _rms if rounded else _largest
            worst = norm(wanted - got) / max(norm(wanted), 1e-30)
        if not worst <= (ROUNDED_AGREEMENT if rounded else AGREEMENT):
            what = "root mean square" if rounded else "largest magnitude"
            raise ModelError(
                f"{owners.get(name, name)}: torch and onnxruntime disagree on its output by {worst:.1e} of its {what}: "
                f"onnx2torch reads an operator before it in another way; leave out {graph.option}"
            )


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with the channels of images innermost in memory: convolutions take 10 to 45 % less time so."""
    import torch

    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0))


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


def places_of(
    dense: ir.Model, layers: Sequence[Layer]
) -> tuple[list[Place], dict[str, tuple[tuple[ir.Node, int], ...]]]:
    """One place for each use, and where the biases are read, by initializer: (node, index of its input)."""
    sites = {node: site for site in find_sites(dense, layers, ()) for node in _products_of(site)}
    reads = {site.shift for site in sites.values() if site.shift is not None}
    places: list[Place] = []
    shifts: dict[str, tuple[tuple[ir.Node, int], ...]] = {}
    for owner, use in [(layer.name, use) for layer in layers for use in layer.uses]:
        site = sites.get(use.node)
        if site is None or site.shift is None:
            places.append(Place(owner, str(use.node.outputs[0].name), None))
            continue
        node, index = site.shift
        bias = node.inputs[index] if index < len(node.inputs) else None
        name = None
        if bias is not None and bias.is_initializer() and not bias.is_graph_output():
            readers = tuple((use.node, use.idx) for use in bias.uses())
            if reads.issuperset(readers):
                name = str(bias.name)
                shifts[name] = readers
        places.append(Place(owner, site.value, name))
    return places, shifts


def _products_of(site: Site) -> list[ir.Node]:
    """The node of a layer whose output a site corrects: its own, or what its Add reads."""
    if site.layer is None:
        return []
    producers = [value.producer() for value in site.node.inputs if value is not None]
    return [site.node, *(node for node in producers if site.node.op_type == "Add" and node is not None)]


def _prepared(
    dense: ir.Model, layers: Sequence[Layer], outputs: Sequence[str], names: Mapping[ir.Node, str]
) -> tuple[onnx.ModelProto, tuple[str, ...], dict[str, Array]]:
    """What onnx2torch gets: every node has a name that torch takes, every layer's weight is an initializer, and the
    outputs are these. With it, the names of the inputs, and the initializers."""
    model = dense.clone()
    graph = model.graph
    copies = dict(zip(dense.graph, graph, strict=True))
    taken = set(names_of(model))
    for layer in layers:
        name = free_name("layer_weight", taken)
        taken.add(name)
        weight = np.ascontiguousarray(layer.weight)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(weight.shape),
            const_value=ir.Tensor(weight, name=name),
        )
        graph.register_initializer(value)
        for use in layer.uses:
            copies[use.node].replace_input_with(use.index, value)
    for node, copy in copies.items():
        copy.name = names[node]
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for name in outputs:
        output = values[name]
        if output.type is None:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(output)
    remove_unused(model)
    inputs = tuple(str(value.name) for value in graph.inputs if value.name not in graph.initializers)
    constants = {n: v.const_value.numpy() for n, v in graph.initializers.items() if v.const_value is not None}
    return ir.to_proto(model), inputs, constants


def as_seen(layer: Layer, matrix: torch.Tensor) -> torch.Tensor:
    """`Layer.tensor` for torch: (groups, rows, columns) to the shape that nodes see."""
    view = layer.view
    parts = matrix.reshape([view.split[axis] for axis in view.order])
    return parts.permute(*np.argsort(view.order).tolist()).reshape(layer.weight.shape)


def with_codes(start: Solution, grid: Grid, steps: torch.Tensor) -> Solution:
    """The start with another grid and other codes: so many steps from the zero point, (groups, rows, columns)."""
    zero = grid.spread(*start.weights.shape[1:])[1]
    return start.recoded(grid, np.rint(steps.detach().cpu().numpy()).astype(np.int32) + zero)


def send(array: Array, device: str) -> torch.Tensor:
    """An array as a float32 tensor on a device."""
    import torch

    return torch.tensor(np.asarray(array, np.float32), device=device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread of the CPU: results must not depend on the cores, and the steps of single parts of a
    model are too short to share out."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _torchvision_or_none() -> Iterator[None]:
    """Let onnx2torch be imported where torchvision cannot be, as when its build is not that of torch.

    It needs torchvision for RoiAlign and NonMaxSuppression alone, at its import. What stands in for it meanwhile makes
    a model with one of these fail where torch runs it, which is told.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        stand_in, operators = ModuleType("torchvision"), ModuleType("torchvision.ops")
        stand_in.ops, operators.roi_align = operators, None  # type: ignore[attr-defined]
        sys.modules |= {"torchvision": stand_in, "torchvision.ops": operators}
        try:
            yield
        finally:
            del sys.modules["torchvision"], sys.modules["torchvision.ops"]
    else:
        yield


def _convert(proto: onnx.ModelProto, option: str) -> torch.nn.Module:
    try:
        with _torchvision_or_none():
            import onnx2torch

        from .torch_operators import node_errors, register, repair, simplify
    except ImportError as error:
        raise ModelError(
            f"{option} needs {error.name}, which is not installed; install onnx-obc[torch], or leave it out"
        ) from error
    register(proto)
    uppers = simplify(proto)
    try:
        module: torch.nn.Module = onnx2torch.convert(proto)
    except Exception as error:
        known = node_errors(proto)
        cause = "; ".join(known) or f"onnx2torch cannot convert the model: {one_line(error)}"
        raise ModelError(f"{cause}; leave out {option}") from error
    return repair(module, uppers)


def _slot(module: Any, node: ir.Node, index: int, name: str) -> Slot | None:
    """Where input `index` of the node called `name` stands: a parameter of its module, or an argument of it."""
    from torch import nn

    call = next((step for step in module.graph.nodes if step.op == "call_module" and step.target == name), None)
    if call is None:
        return None
    inner: Any = module.get_submodule(name)
    path = name
    if isinstance(inner, nn.Sequential):  # padding stands before the convolution
        path = f"{name}.{len(inner) - 1}"
        inner = inner[-1]
    field = "weight" if index == 1 else "bias"
    if node.op_type in ("Conv", "ConvTranspose"):
        return Slot(f"{path}.{field}")
    if isinstance(inner, nn.Linear) and index == 1:
        turned = not node.attributes.get_int("transB", 0)
        return Slot(f"{path}.weight", turned, node.attributes.get_float("alpha", 1.0))
    if isinstance(inner, nn.Linear):
        return Slot(f"{path}.bias", False, node.attributes.get_float("beta", 1.0))
    argument = call.args[index] if index < len(call.args) else None
    return Slot(str(argument.target)) if argument is not None and argument.op == "get_attr" else None


def _as_stored(slot: Slot, array: Array) -> Array:
    import torch

    return slot.of(torch.tensor(array)).numpy()
