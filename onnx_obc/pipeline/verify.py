"""Checks a written file against what was promised. The file is read again: only the goal is taken from memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ..calibration.samples import Batch, Samples
from ..core.errors import ModelError, VerificationError, one_line
from ..core.level import NM, Block, Unstructured
from ..core.plural import counted
from ..core.progress import Progress
from ..core.solution import Solution
from ..graph.contributed import check_path, unpacked_bytes
from ..graph.half import BFLOAT16, HALVES, widen
from ..graph.layers import Layer, Use
from ..graph.write import WrittenWeight
from ..runtime.output_loss import OutputLoss, class_scores
from ..runtime.session import Device, Execution, open_session
from ..runtime.sqnr import Match, is_float, is_numeric, worst_sqnr
from ..targets.check import FileCheck
from .draft import Draft
from .examine import MetricReport
from .layer import LayerReport, Solved
from .material import Material
from .recipe import Recipe
from .speed import Speed
from .worst import WorstSample, WorstSamples

SAME_DB = 40  # two float32 graphs of the same function agree to some 120 dB; what is below is another function
LOSS_TOLERANCE = 1e-4  # relative, between the loss that the solver predicts and the one that is measured
LOWERED_DB = 10  # a rounding that falls the other way moves what follows: two forms of one quantized model differ
TINY_LOSS = 1e-25  # a layer that loses nothing has no relative error


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class OutputMatch:
    """How far an output of the compressed model is from the dense one, over all samples that were compared.

    sqnr_db: signal-to-noise ratio in decibels, 10 log₁₀(Σ y² / Σ (y − ŷ)²); infinite if equal.
    top1_agreement: the share of samples with the same largest class, where the output looks like class scores.
    not_finite: the samples for which the dense model itself gives NaN or infinity, as the user calls them.
    integers: whether it is of integers, such as classes or positions, whose SQNR says nothing of quality.
    """

    name: str
    sqnr_db: float
    top1_agreement: float | None
    not_finite: tuple[str, ...] = ()
    integers: bool = False


@dataclass(frozen=True)
class Verdict:
    """All checks of a file, and how far its outputs are from the dense model's; loss: all of them, by `OutputLoss`.
    file_check: what the target's rules and its engine say of the file; None where they were not asked. speed, metric:
    against the dense model, None where they were not measured. worst: the samples with the largest output loss, the
    largest first."""

    checks: tuple[Check, ...] = ()
    outputs: tuple[OutputMatch, ...] = ()
    loss: float | None = None
    file_check: FileCheck | None = None
    speed: Speed | None = None
    metric: MetricReport | None = None
    worst: tuple[WorstSample, ...] = ()

    @property
    def faults(self) -> str:
        """What failed, on one line; empty if nothing did."""
        failed = (check for check in self.checks if not check.passed)
        return "; ".join(f"check of the {check.name} failed: {check.detail}" for check in failed)


def verify(
    path: Path, material: Material, draft: Draft, recipe: Recipe, progress: Progress = lambda stage, done, total: None
) -> Verdict:
    """All checks of the file at `path`: that it loads, its weights, patterns and losses, and its outputs."""
    held_out, types = material.held_out, material.folded.types
    wide = types is not None and types.half == BFLOAT16
    runs = widen(ir.load(path)) if wide else path  # of bfloat16 onnxruntime has next to no kernels on a CPU
    loads = check_loads(path, runs, recipe.device, recipe.threads)
    if not loads.passed:
        return Verdict((loads,))
    reports = [entry.report for entry in draft.solved.values()]
    checks = [loads, *check_weights(path, draft.solved, draft.written), check_losses(reports)]
    worst = WorstSamples(class_scores(material.dense))
    matches, loss, finite = compare_outputs(
        *(material.dense, runs, held_out, recipe.execution()),
        lambda done: progress("verify", done, held_out.count),
        worst.add,
    )
    return Verdict((*checks, finite), tuple(matches), loss, worst=worst.found(held_out))


def check_loads(path: Path, runs: Path | ir.Model, device: Device, threads: int | None) -> Check:
    """The file passes the ONNX checker, and onnxruntime loads it; runs: the file, or what is run in its place."""
    try:
        check_path(path)
        open_session(runs, device=device, threads=threads)
    except (onnx.checker.ValidationError, ModelError) as error:
        return Check("file", False, one_line(error))
    where = "" if isinstance(runs, Path) else ", in float32, as it has next to no kernels for bfloat16"
    return Check("file", True, f"passes the ONNX checker and loads in onnxruntime{where}")


def check_lowered(model: ir.Model, path: Path, feed: dict[str, npt.NDArray[Any]], recipe: Recipe) -> Check:
    """A file in a runtime's own form holds the integers of the Q/DQ model, and computes what that does in onnxruntime.

    Nothing is fused for it, as fused operators round in ways of their own. The rounding of biases remains, and that of
    float sums: LOWERED_DB is what the outputs agree to at least.
    """
    widened = (
        widen(one, (BFLOAT16,)) for one in (model, ir.load(path))
    )  # which onnxruntime has next to no kernels for
    try:
        before, after = (open_session(x, device="cpu", threads=recipe.threads, fuse=False).run(feed) for x in widened)
    except ModelError as error:
        return Check("lowered", False, str(error))
    worst = float("inf")
    for name, wanted in before.items():
        if is_float(wanted):
            match = Match()
            match.add(wanted, after[name], False)
            worst = min(worst, match.sqnr_db)
    held = [_integers(one) for one in (model, ir.load(path))]
    missing = held[0] - held[1]
    if worst < LOWERED_DB or missing:
        what = f"{len(missing)} weights are others" if missing else f"its outputs are only {worst:.0f} dB from it"
        return Check("lowered", False, f"not the model with Q/DQ: {what}")
    return Check("lowered", True, f"the target's form holds the same integers, and computes the same to {worst:.0f} dB")


def _integers(model: ir.Model) -> set[bytes]:
    """The contents of all integer weights of a model, whichever way a matrix is turned; those too that the graph
    quantizes from constants."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    arrays = [x.numpy() for x in constants if x is not None and x.dtype == ir.DataType.INT8]
    for node in model.graph:
        arrays += unpacked_bytes(node)
        if node.op_type == "QuantizeLinear":
            weight, scale = (None if x is None else x.const_value for x in node.inputs[:2])
            if weight is not None and scale is not None:
                shape = [1] * len(weight.shape)
                if scale.size > 1:
                    shape[node.attributes.get_int("axis", 1)] = -1
                arrays.append(np.rint(weight.numpy() / scale.numpy().reshape(shape)).astype(np.int8))
    return {min(x.tobytes(), x.T.tobytes()) if x.ndim == 2 else x.tobytes() for x in arrays if x.ndim > 1}


def check_weights(path: Path, solved: Mapping[str, Solved], written: Sequence[WrittenWeight]) -> list[Check]:
    """Every weight in the file, dequantized by onnxruntime, is bit for bit the solver's, and its pattern holds."""
    model = ir.load(path)
    values = {str(value.name): value for node in model.graph for value in node.outputs} | dict(model.graph.initializers)
    different, broken, elsewhere = [], [], []
    for weight in written:
        layer, solution = solved[weight.layer].layer, solved[weight.layer].solution
        array = _evaluate(values[weight.name], model.opset_imports[""])
        if not np.array_equal(replace(layer, weight=array).matrix(), solution.weights):
            different.append(weight.layer)
        if not all(_reads(values, use, weight.name) for use in weight.uses):
            elsewhere.append(weight.layer)
        fault = broken_pattern(array, layer, solution)
        if fault is not None:
            broken.append(f"{weight.layer}: {fault}")
    sparse = sum(entry.solution.level.sparsity is not None for entry in solved.values())
    read = counted(len({weight.layer for weight in written}), "layer reads", "layers read")
    exact = f"{read} weights that dequantize bit for bit to the solver's"
    faults = {"not the solver's": different, "not what the layer reads": elsewhere}
    wrong = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
    held = f"{counted(sparse, 'sparse layer holds its', 'sparse layers hold their')} pattern along the input channels"
    return [
        Check("weights", not wrong, wrong or exact),
        Check("patterns", not broken, "; ".join(broken) or held),
    ]


def _reads(values: Mapping[str, ir.Value], use: Use, weight: str) -> bool:
    """Whether the node of the file that computes this use's output reads the weight of this name."""
    node = _uncast(values[str(use.node.outputs[0].name)]).producer()
    sources = [] if node is None else [_uncast(source) for source in node.inputs if source is not None]
    return any(source.name == weight for source in sources)


def _uncast(value: ir.Value) -> ir.Value:
    """What a Cast makes another float type of."""
    node = value.producer()
    return value if node is None or node.op_type != "Cast" or node.inputs[0] is None else node.inputs[0]


def broken_pattern(array: npt.NDArray[Any], layer: Layer, solution: Solution) -> str | None:
    """What is wrong with the zeros of a weight, counted along its input channels in the shape that the nodes see."""
    sparsity = solution.level.sparsity
    if sparsity is None:
        return None
    along = np.moveaxis(array, _channel_axis(layer), -1)  # (…, input channels)
    match sparsity:
        case NM(n, m):
            most = int((along.reshape(-1, m) != 0).sum(axis=1).max())
            return f"{most} of {m} weights are not zero, {n} allowed" if most > n else None
        case Block(size, fraction):
            empty = (along.reshape(-1, size) == 0).all(axis=1)
        case Unstructured(fraction):
            empty = along.ravel() == 0
    missing = int(fraction * empty.size) - int(empty.sum())
    return f"{missing} of {empty.size} zeros are missing" if missing > 0 else None


def check_losses(reports: Sequence[LayerReport]) -> Check:
    """The loss that the solver predicts for a layer is the one that its weights have."""
    wrong = [
        f"{x.name}: predicted {x.loss_predicted:.6g}, measured {x.loss_measured:.6g}"
        for x in reports
        if not abs(x.loss_predicted - x.loss_measured) <= LOSS_TOLERANCE * abs(x.loss_measured) + TINY_LOSS  # NaN too
    ]
    agree = f"predicted and measured layer losses agree to {LOSS_TOLERANCE:g}"
    return Check("losses", not wrong, "; ".join(wrong) if wrong else agree)


def check_graph(dense: ir.Model, prepared: ir.Model, samples: Samples, recipe: Recipe) -> Check:
    """The graph that is worked on, folded and raised but still dense, computes what the model does.

    Compared on the first feed. A model that draws random numbers cannot be compared, and the check says so. Raises
    VerificationError otherwise, since all that follows would be for nothing.
    """
    reference, session = (open_session(m, device=recipe.device, threads=recipe.threads) for m in (dense, prepared))
    batch = next(samples.read(0, samples.step))
    feed, expected = batch.feed, samples.outputs(reference.run, batch)
    found = session.run(feed)
    worst = worst_sqnr(expected, found)
    if worst >= SAME_DB:
        return Check("graph", True, f"folded, it computes what the model does ({worst:.0f} dB)")
    if worst_sqnr(expected, reference.run(feed)) < SAME_DB:
        return Check("graph", True, "the model draws random numbers, so that two runs of it cannot be compared")
    raise VerificationError(
        f"the graph, folded and at opset {prepared.opset_imports['']}, no longer computes what the model does "
        f"({worst:.1f} dB); nothing was written; please report it"
    )


def compare_outputs(
    dense: ir.Model,
    written: Path | ir.Model,
    samples: Samples,
    execution: Execution,
    progress: Callable[[int], None] = lambda done: None,
    look: Callable[[Batch, Mapping[str, Any], Mapping[str, Any]], None] = lambda batch, dense, found: None,
) -> tuple[list[OutputMatch], float | None, Check]:
    """Run the dense and the written model on the samples in turn, and compare every output that is a numeric array.

    look: called with each feed and the outputs of both models. Returns how far each is, the output loss of all, None if
    they cannot be compared, and the check.
    """
    reference = open_session(dense, device=execution.device, threads=execution.threads)
    session = open_session(written, device=execution.device, threads=execution.threads)
    scores = class_scores(dense)
    sums: dict[str, Match] = {}
    overflown: dict[str, list[str]] = {}
    integers: set[str] = set()
    total = OutputLoss(scores)
    for batch in samples.read(0, samples.count):
        expected = samples.outputs(reference.run, batch)
        try:
            found = session.run(batch.feed)
        except ModelError as error:
            return [], None, Check("outputs", False, str(error))
        faults = [fault for name in expected if (fault := _fault(name, expected[name], found[name])) is not None]
        if faults:
            return [], None, Check("outputs", False, "; ".join(faults))
        total.add(expected, found)
        look(batch, expected, found)
        for name, wanted in expected.items():
            if is_numeric(wanted):
                sums.setdefault(name, Match()).add(wanted, found[name], name in scores)
                integers |= set() if is_float(wanted) else {name}
                where = [samples.name_of(batch.first + index) for index in _not_finite(wanted, batch.count)]
                overflown.setdefault(name, []).extend(where)
        progress(batch.count)
    matches = [
        OutputMatch(name, x.sqnr_db, x.agreement, tuple(overflown[name]), name in integers) for name, x in sums.items()
    ]
    others = ", ".join(name for name in reference.outputs if name not in sums)
    detail = f"finite where the dense model's are, and of its shapes, on {counted(samples.count, 'sample')}"
    if others:
        detail += f"; not numeric arrays, and not compared: {others}"
    return matches, total.value, Check("outputs", True, detail)


def _not_finite(output: npt.NDArray[Any], count: int) -> list[int]:
    """Which of the `count` samples of a feed an output is NaN or infinite for; the first, if they lie along no axis.

    −∞ beside finite values is what masks leave.
    """
    if not is_float(output) or not output.size:
        return []
    values = output.reshape(count if output.ndim and len(output) == count else 1, -1)
    bad = np.isnan(values).any(axis=1) | np.isposinf(values).any(axis=1) | ~np.isfinite(values).any(axis=1)
    return [int(index) for index in np.flatnonzero(bad)]


def _fault(name: str, wanted: Any, found: Any) -> str | None:
    """What is wrong with an output, whatever its values are; None if nothing is."""
    if not is_numeric(wanted):
        return None
    precision = {wanted.dtype, found.dtype} <= {np.dtype(np.float16), np.dtype(np.float32)}  # as the user chose
    if found.shape != wanted.shape or (found.dtype != wanted.dtype and not precision):
        return f"{name} is {found.dtype}{list(found.shape)}, not {wanted.dtype}{list(wanted.shape)}"
    if is_float(wanted) and np.any(~np.isfinite(found) & np.isfinite(wanted)):
        return f"{name} holds NaN or infinity where the dense model does not: onnx-obc debug says from where on"
    return None


def _channel_axis(layer: Layer) -> int:
    """The axis of the weight, as the nodes see it, along which a runtime looks for patterns."""
    node, index = layer.uses[0].node, layer.uses[0].index
    match node.op_type:
        case "Conv":
            return 1
        case "ConvTranspose":
            return 0
        case "MatMul":
            return -1 if index == 0 or layer.weight.ndim == 1 else -2
        case _:
            transposed = node.attributes.get_int("transA" if index == 0 else "transB", 0)
            return index if transposed else 1 - index


def _evaluate(value: ir.Value, opset: int) -> npt.NDArray[Any]:
    """An initializer, or what onnxruntime computes from some through DequantizeLinear and Transpose; in float32,
    where scales of half precision are exact too."""
    if value.producer() is None:
        return _wide(value).numpy()
    nodes: list[ir.Node] = []
    parts: list[ir.Value] = []

    def copied(old: ir.Value) -> ir.Value:
        node = old.producer()
        if node is None:
            tensor = _wide(old)
            parts.append(ir.Value(name=old.name, type=ir.TensorType(tensor.dtype), shape=old.shape, const_value=tensor))
            return parts[-1]
        inputs = [copied(x) for x in node.inputs if x is not None]
        attributes = {name: x for name, x in node.attributes.items() if name != "output_dtype"}
        nodes.append(ir.node(node.op_type, inputs, attributes=attributes))
        nodes[-1].outputs[0].name = f"{old.name}_copy"
        return nodes[-1].outputs[0]

    result = copied(value)
    result.name, result.dtype = "weight", ir.DataType.FLOAT
    graph = ir.Graph([], [result], nodes=nodes, initializers=parts, opset_imports={"": opset}, name="weight")
    return open_session(ir.Model(graph, ir_version=13 if opset > 24 else 10), device="cpu").run({})["weight"]


def _wide(value: ir.Value) -> ir.TensorProtocol:
    """A constant, in float32 where it is in half precision."""
    tensor = value.const_value
    assert tensor is not None
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name) if tensor.dtype in HALVES else tensor
