"""Which value of the compressed graph means the same as a value of the dense one.

By name first; then, from what is matched, by the same operator on matched inputs; where operators were fused on one
side, along them; and what is left by what the values are on a few samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed
from ..graph.edit import add_initializer, free_name, names_of, put_behind
from ..runtime.session import Execution
from ..runtime.sqnr import agreement_db
from ..runtime.stepper import Stepper
from .normal import CODES_SUFFIXES, constant_array
from .side import CLIPPING, Side, highest, lowest_is_zero

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
AFFINE = ("BatchNormalization", "Add", "Mul", "Sub", "Div")
COMMUTE = ("Add", "Mul", "Max", "Min", "Sum")
SUFFIXES = (*CODES_SUFFIXES, "_QuantizeInput", "_pre_cast", "_cast_to_fp16", "_fp16", "_value")
SEEN, AT_ONCE = 4096, 48  # elements of a value that are compared; values that are computed at once
ALIKE_DB, SURE_DB = (
    3.0,
    10.0,
)  # agreement by which a doubtful match stands, and by which values match without any other sign


@dataclass(frozen=True, eq=False)
class Matched:
    """Both graphs, and of each matched root of the dense one the root of the compressed one, in the dense order."""

    dense: Side
    compressed: Side
    pairs: Mapping[ir.Value, ir.Value]

    @property
    def compressed_roots(self) -> set[ir.Value]:
        """The matched roots of the compressed graph."""
        return set(self.pairs.values())


def match(dense: ir.Model, compressed: ir.Model, feed: Feed, execution: Execution) -> Matched:
    """Match two models in normal form; the compressed one gets the Relu and Clip back that its Q/DQ stands for.

    feed: a few samples. Raises ModelError if one does not run.
    """
    _rename_activations(dense, compressed)
    walk = _Walk(dense, compressed, [_marks(model, feed, execution) for model in (dense, compressed)])
    walk.by_name()
    walk.forward()
    if walk.by_number():
        walk.forward()
    walk.drop_wrong()
    return walk.matched()


def _marks(model: ir.Model, feed: Feed, execution: Execution) -> dict[str, Array]:
    """Some elements of every value that depends on the inputs, and its shape first, on a feed."""
    side = Side(model)
    stepper = Stepper(model, [feed], execution, fuse=False)
    names = [str(root.name) for root in side.place]
    found = {}
    for start in range(0, len(names), AT_ONCE):
        for name, array in stepper.advance(names[start : start + AT_ONCE])[0].items():
            if isinstance(array, np.ndarray) and array.dtype.kind in "fiub":
                found[name] = _mark(array)
    return found


def _mark(array: Array) -> Array:
    flat = array.reshape(-1)
    picked = np.linspace(0, flat.size - 1, min(SEEN, flat.size)).astype(np.intp) if flat.size else np.zeros(0, np.intp)
    return np.concatenate([[array.ndim, *array.shape], flat[picked]]).astype(np.float64)


def _shape(mark: Array) -> tuple[float, ...]:
    return tuple(mark[1 : 1 + int(mark[0])])


def _rename_activations(dense: ir.Model, compressed: ir.Model) -> None:
    """Where a product has the name of the Relu behind it, which only its Q/DQ stands for, put the Relu back."""
    wanted = {str(node.outputs[0].name): node for node in dense.graph if node.op_type in CLIPPING and node.domain == ""}
    side = Side(compressed)
    for root in list(side.place):
        node = wanted.get(str(root.name))
        producer = root.producer()
        if node is None or producer is None or producer.op_type in CLIPPING or not lowest_is_zero(side, root):
            continue
        name = str(root.name)
        if (limits := clipping(node)) is None:
            continue
        clipped = put_activation(compressed, root, limits)
        root.name, clipped.name = free_name(f"{name}_before", set(names_of(compressed))), name


def clipping(node: ir.Node) -> float | None:
    """The upper end of a Relu or Clip that is 0 below; None where it is none such."""
    if node.op_type == "Relu":
        return np.inf
    limits = [constant_array(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2)]
    if limits[0] is None or limits[0].reshape(-1)[0] != 0:
        return None
    return np.inf if limits[1] is None else float(limits[1].reshape(-1)[0])


def put_activation(model: ir.Model, root: ir.Value, most: float) -> ir.Value:
    """Put a Relu, or a Clip to `most`, behind a value that is only read quantized, to 0 and more.

    What is read stays the same: where the integers reach further than `most`, the Clip does too.
    """
    taken = set(names_of(model))
    uses = list(root.uses())
    if np.isfinite(most):
        most = max(most, *(highest(use.node) for use in uses))
    kind, inputs = "Relu", [root]
    if np.isfinite(most):
        ends = (("low", 0.0), ("high", most))
        kind = "Clip"
        inputs += [
            add_initializer(model.graph, free_name(f"{root.name}_{end}", taken), np.array(x, np.float32))
            for end, x in ends
        ]
    node = ir.node(kind, inputs, name=free_name(f"{root.name}/{kind}", taken))
    node.outputs[0].name = free_name(f"{root.name}_{kind}", taken)
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])
    put_behind(model.graph, root, [node])
    return node.outputs[0]


class _Walk:
    """The search, while it goes on."""

    def __init__(self, dense: ir.Model, compressed: ir.Model, marks: Sequence[dict[str, Array]]) -> None:
        self.dense, self.compressed = Side(dense), Side(compressed)
        self.marks = marks
        self.pairs: dict[ir.Value, ir.Value] = {}
        self.taken: set[ir.Value] = set()

    def matched(self) -> Matched:
        """What was found, in the order of the dense graph."""
        order = sorted(self.pairs, key=lambda root: self.dense.place[root])
        return Matched(self.dense, self.compressed, {root: self.pairs[root] for root in order})

    def by_name(self) -> None:
        """Match what has the same name, or the same but for what quantizers add to it."""
        names = self.compressed.named()
        plain = {_plain(name): root for name, root in reversed(list(names.items()))}
        for known in (names, plain):
            for root, members in self.dense.members.items():
                found = next((known[str(v.name)] for v in members if str(v.name) in known), None)
                if found is not None and self._free(root, found) and not self._doubtful(root, found):
                    self._pair(root, found)

    def forward(self) -> None:
        """Match the outputs of the same operator on matched inputs, until there is nothing more."""
        changed = True
        while changed:
            changed = False
            for node in self.dense.reads:
                changed |= self._step(node)

    def by_number(self) -> bool:
        """Match what is the same on the samples, where each is the other's best, and nothing else tells."""
        left = [[root for root in side.place if self._open(side, root)] for side in (self.dense, self.compressed)]
        best: list[dict[ir.Value, tuple[float, ir.Value]]] = [{}, {}]
        for one in left[0]:
            for other in left[1]:
                db = self._agreement(one, other)
                for number, (root, partner) in enumerate(((one, other), (other, one))):
                    if db > best[number].get(root, (SURE_DB, root))[0]:
                        best[number][root] = (db, partner)
        mutual = [one for one, (_, other) in best[0].items() if best[1].get(other, (0, None))[1] is one]
        for one in mutual:
            self._pair(one, best[0][one][1])
        return bool(mutual)

    def drop_wrong(self) -> None:
        """Drop matches that only the operators speak for, and that are far apart where what follows is not."""
        for node, read in self.dense.reads.items():
            one = self.dense.root[read[0]] if read else None
            other = None if one is None else self.pairs.get(one)
            after = self.pairs.get(node.outputs[0])
            if one is None or other is None or after is None or one.name == other.name or len(set(read)) > 1:
                continue
            db, behind, producer = (
                self._agreement(one, other),
                self._agreement(node.outputs[0], after),
                after.producer(),
            )
            fused = producer is not None and _kind(producer) != _kind(node)  # so that what is before may differ
            if behind > db + (ALIKE_DB if fused else SURE_DB) and (fused or db < ALIKE_DB):
                del self.pairs[one]

    def _open(self, side: Side, root: ir.Value) -> bool:
        """Whether a root is unmatched, and holds enough numbers that differ to tell it from others."""
        if root in (self.pairs if side is self.dense else self.taken):
            return False
        mark = self.marks[0 if side is self.dense else 1].get(str(root.name))
        return mark is not None and len(np.unique(mark[1 + int(mark[0]) :])) >= 8

    def _step(self, node: ir.Node) -> bool:
        """Match what a node of the dense graph computes; whether something changed."""
        output = node.outputs[0] if node.outputs else None
        if output is None or self.dense.root.get(output) is not output or output in self.pairs:
            return False
        read = self.dense.roots_read(node)
        if not read or any(root not in self.pairs for root in read):
            return False
        wanted = [self.pairs[root] for root in read]
        found = [x for x in self.compressed.readers[wanted[0]] if self._corresponds(node, x, wanted)]
        if len(found) > 1:
            found.sort(key=lambda x: self._agreement(output, x.outputs[0]), reverse=True)
        if found:
            self._pair(output, found[0].outputs[0])
            for one, other in zip(node.outputs[1:], found[0].outputs[1:], strict=False):
                if self._free(one, other):
                    self._pair(one, other)
            return True
        return len(set(read)) == 1 and self._along(node, output, read[0], wanted[0])

    def _corresponds(self, node: ir.Node, other: ir.Node, wanted: list[ir.Value]) -> bool:
        """Whether a node of the compressed graph does the same to the matches of what a dense node reads."""
        read = self.compressed.roots_read(other)
        if _kind(node) != _kind(other) or not self._free(node.outputs[0], other.outputs[0]):
            return False
        if read == wanted:
            return True
        return node.op_type in COMMUTE and sorted(map(id, read)) == sorted(map(id, wanted))

    def _along(self, node: ir.Node, output: ir.Value, read: ir.Value, found: ir.Value) -> bool:
        """Match a node that the compressed graph has not: fused into what is before it, or into the Q/DQ behind it."""
        producer, readers = found.producer(), self.compressed.readers[found]
        most = clipping(node) if node.op_type in CLIPPING and lowest_is_zero(self.compressed, found) else None
        if most is not None:
            clipped = put_activation(self.compressed.model, found, most)
            mark = self.marks[1].get(str(found.name))
            if mark is not None:
                head = 1 + int(mark[0])
                self.marks[1][str(clipped.name)] = np.concatenate([mark[:head], np.clip(mark[head:], 0, most)])
            self.compressed = Side(self.compressed.model)
            self._pair(output, clipped)
            return True
        folded = node.op_type in AFFINE and len(self.dense.readers[read]) == 1 and self._fits(output, found)
        if folded and producer is not None and _kind(producer) in ("Conv", "ConvTranspose", "product", *AFFINE):
            del self.pairs[read]
            self.pairs[output] = found
            return True
        if len(readers) == 1 and readers[0].op_type in AFFINE and len(self.compressed.roots_read(readers[0])) == 1:
            behind = readers[0].outputs[0]
            if self._free(read, behind, again=True) and self._fits(read, behind):
                self.taken.discard(found)
                self._pair(read, behind)
                return True
        return False

    def _fits(self, one: ir.Value, other: ir.Value) -> bool:
        marks = self.marks[0].get(str(one.name)), self.marks[1].get(str(other.name))
        return marks[0] is None or marks[1] is None or _shape(marks[0]) == _shape(marks[1])

    def _free(self, one: ir.Value, other: ir.Value, again: bool = False) -> bool:
        """Whether neither is matched yet, and both have the same shape."""
        return (again or one not in self.pairs) and other not in self.taken and self._fits(one, other)

    def _pair(self, one: ir.Value, other: ir.Value) -> None:
        self.pairs[one] = other
        self.taken.add(other)

    def _doubtful(self, one: ir.Value, other: ir.Value) -> bool:
        """Whether equal names may hide different values: other operators made them, and they are not alike."""
        first, second = one.producer(), other.producer()
        if first is None or second is None:
            return first is not second
        kinds = {_kind(first), _kind(second)}
        if len(kinds) == 1 or kinds <= {"Conv", "ConvTranspose", "product", *AFFINE}:
            return False
        return self._agreement(one, other) < ALIKE_DB

    def _agreement(self, one: ir.Value, other: ir.Value) -> float:
        first, second = self.marks[0].get(str(one.name)), self.marks[1].get(str(other.name))
        if first is None or second is None or _shape(first) != _shape(second):
            return -np.inf
        head = 1 + int(first[0])
        return agreement_db(first[head:], second[head:])


def _kind(node: ir.Node) -> str:
    """The operator; MatMul and Gemm alike."""
    if node.op_type in ("MatMul", "Gemm"):
        return "product"
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


def _plain(name: str) -> str:
    """A name without what quantizers add to it."""
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
