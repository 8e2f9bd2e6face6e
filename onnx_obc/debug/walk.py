"""The error at every matched value, and what each part of the graph adds to it by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed
from ..runtime.session import Execution
from ..runtime.sqnr import is_float
from ..runtime.stepper import Stepper
from .match import Matched
from .parts import Part, Runner, part_of, with_float_activations
from .record import ValueRow

AT_ONCE = 12  # values that are asked for at a time


@dataclass
class Error:
    """Sums over feeds of what is wanted and of what is off."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Array, found: Array) -> None:
        """Add a feed; what is not finite in the dense model does not count."""
        if wanted.shape != found.shape:
            self.noise = np.inf
            return
        y, other = wanted.astype(np.float64), found.astype(np.float64)
        usable = np.isfinite(y)
        with np.errstate(over="ignore", invalid="ignore"):
            off = float(((y[usable] - other[usable]) ** 2).sum())
        self.signal += float((y[usable] ** 2).sum())
        self.noise += off if np.isfinite(off) else np.inf

    @property
    def relative(self) -> float:
        """‖y − ŷ‖ / ‖y‖."""
        if self.noise == 0:
            return 0.0
        return float(np.sqrt(self.noise / self.signal)) if self.signal > 0 else np.inf


@dataclass(frozen=True, eq=False)
class Walked:
    """values: in the order of the dense graph. types: of the matched float values, by the names in the dense graph, in
    the dense one and in the compressed one."""

    values: list[ValueRow]
    types: dict[str, tuple[np.dtype[np.generic], np.dtype[np.generic]]]


@dataclass
class _State:
    """What is kept while the graph is walked: arrays of dense values that parts to come read, feed by feed."""

    matched: Matched
    execution: Execution
    floating: ir.Model
    parts: Mapping[ir.Value, Part]
    layers: Mapping[str, str]
    left: Counter[ir.Value]
    arrays: dict[ir.Value, list[Array]] = field(default_factory=dict)
    errors: dict[ir.Value, float] = field(default_factory=dict)
    types: dict[str, tuple[np.dtype[np.generic], np.dtype[np.generic]]] = field(default_factory=dict)


def walk(
    matched: Matched,
    feeds: Sequence[Feed],
    layers: Mapping[str, str],
    execution: Execution,
    progress: Callable[[int, int], None],
) -> Walked:
    """Run both graphs side by side. layers: the names of layers by those of their outputs. Raises ModelError."""
    parts = {end: part_of(matched, end) for end in matched.pairs if end.producer() is not None}
    left = Counter(bound for part in parts.values() for bound in part.bounds)
    state = _State(matched, execution, with_float_activations(matched.compressed.model), parts, layers, left)
    steppers = [Stepper(side.model, feeds, execution, fuse=False) for side in (matched.dense, matched.compressed)]
    ends, rows = list(matched.pairs), []
    for start in range(0, len(ends), AT_ONCE):
        group = ends[start : start + AT_ONCE]
        dense = steppers[0].advance([str(end.name) for end in group])
        compressed = steppers[1].advance([str(matched.pairs[end].name) for end in group])
        for end in group:
            state.arrays[end] = [feed[str(end.name)] for feed in dense]
            other = [feed[str(matched.pairs[end].name)] for feed in compressed]
            row = _row(state, end, other)
            if row is not None:
                rows.append(row)
            progress(1, len(ends))
    return Walked(rows, state.types)


def _row(state: _State, end: ir.Value, found: list[Array]) -> ValueRow | None:
    """A value's errors; None for one that is not float."""
    wanted, other = state.arrays[end], state.matched.pairs[end]
    row = None
    if wanted and is_float(wanted[0]):
        state.types[str(end.name)] = wanted[0].dtype, found[0].dtype
        state.errors[end] = _error(wanted, found)
        part, node = state.parts.get(end), end.producer()
        op = "input" if node is None else node.op_type
        row = ValueRow(str(end.name), str(other.name), op, state.layers.get(str(end.name)), state.errors[end])
        if part is not None:
            row = _with_own(state, row, part)
    for bound in state.parts[end].bounds if end in state.parts else ():
        state.left[bound] -= 1
    for value in [value for value in state.arrays if state.left[value] <= 0]:
        del state.arrays[value]
    return row


def _with_own(state: _State, row: ValueRow, part: Part) -> ValueRow:
    before = [state.errors[bound] for bound in part.bounds if bound in state.errors]
    worst = max(before, default=0.0)
    gain = row.error / worst if worst > 0 and np.isfinite(worst) else None
    weights = activations = None
    if row.layer is not None or _has_codes(state.matched, part):
        weights = _alone(state, part, _weights_alone(state, part))
    if part.inside:
        activations = _by_what_is_inside(state, part)
    elif part.quantized:
        activations = _alone(state, part, _activations_alone(state, part))
    return ValueRow(row.name, row.compressed, row.op, row.layer, row.error, weights, activations, gain)


def _has_codes(matched: Matched, part: Part) -> bool:
    """Whether a part of the compressed graph reads constants that were quantized."""
    pending = [v for node in part.compressed for v in node.inputs if v is not None and v not in matched.compressed.root]
    while pending:
        node = pending.pop().producer()
        if node is not None:
            if node.op_type == "DequantizeLinear":
                return True
            pending += [value for value in node.inputs if value is not None]
    return False


def _alone(state: _State, part: Part, outputs: Iterable[Array]) -> float:
    return _error(state.arrays[part.end], outputs)


def _by_what_is_inside(state: _State, part: Part) -> float:
    """What quantizing activations adds to the error of a part that quantizes values that the dense graph does not have:
    the difference that it makes to the compressed part, relative to the dense value."""
    total = Error()
    whole = _weights_alone(state, part, state.matched.compressed.model)
    for dense, quantized, plain in zip(state.arrays[part.end], whole, _weights_alone(state, part), strict=True):
        total.add(dense.astype(np.float64), dense.astype(np.float64) + quantized - plain)
    return total.relative


def _weights_alone(state: _State, part: Part, model: ir.Model | None = None) -> Iterable[Array]:
    """The part of the compressed graph, on the dense values; model: the graph, by default without any activation
    quantized."""
    pairs = {bound: str(state.matched.pairs[bound].name) for bound in part.reads}
    output = str(state.matched.pairs[part.end].name)
    runner: Runner | None = None
    for number in range(len(state.arrays[part.end])):
        feed = {name: _as(state, bound, state.arrays[bound][number]) for bound, name in pairs.items()}
        runner = runner or Runner(model or state.floating, feed, [output], state.execution)
        yield runner(feed)[output]


def _activations_alone(state: _State, part: Part) -> Iterable[Array]:
    """The part of the dense graph on the dense values, quantized as the compressed graph does it."""
    output = str(part.end.name)
    quantizers: dict[ir.Value, Runner | None] = {}
    runner: Runner | None = None
    for number in range(len(state.arrays[part.end])):
        feed: Feed = {}
        for bound in part.bounds:
            array = state.arrays[bound][number]
            read, root = part.reads.get(bound), state.matched.pairs[bound]
            if read is not None and read is not root:
                given = {str(root.name): _as(state, bound, array)}
                if bound not in quantizers:
                    quantizers[bound] = Runner(state.matched.compressed.model, given, [str(read.name)], state.execution)
                quantizer = quantizers[bound]
                assert quantizer is not None
                array = quantizer(given)[str(read.name)].astype(array.dtype)
            feed[str(bound.name)] = array
        runner = runner or Runner(state.matched.dense.model, feed, [output], state.execution)
        yield runner(feed)[output]


def _as(state: _State, bound: ir.Value, array: Array) -> Array:
    """A dense value in the type that the compressed graph has there."""
    types = state.types.get(str(bound.name))
    return array if types is None else array.astype(types[1], copy=False)


def _error(wanted: Iterable[Array], found: Iterable[Array]) -> float:
    total = Error()
    for one, other in zip(wanted, found, strict=True):
        total.add(one, other)
    return total.relative
