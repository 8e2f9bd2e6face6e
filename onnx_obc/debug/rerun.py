"""Outputs of the compressed model with one layer as the dense model has it: what follows the layer runs again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..core.arrays import Array, Feed
from ..graph.edit import add_initializer, free_name, names_of
from ..runtime.session import Execution, open_session
from ..runtime.stepper import Stepper
from .match import Matched
from .parts import Part, Runner
from .walk import Walked
from .weights import Located

Outputs = list[Feed]


class Rerun:
    """Goes through the compressed graph once, and from each layer in turn to its end, with the layer's part remade.

    layers: to be asked for in this order, that of the compressed graph; see `in_order`.
    """

    def __init__(
        self, matched: Matched, layers: Sequence[Located], walked: Walked, feeds: Sequence[Feed], execution: Execution
    ) -> None:
        self._matched, self._types, self._execution = matched, walked.types, execution
        self._model = matched.compressed.model
        self._stepper = Stepper(self._model, feeds, execution, fuse=False)
        self._feeds = feeds
        self._place = _places(self._model)
        self._arrays: dict[str, list[Array]] = {}
        self._last: dict[str, int] = {}  # of every value that is read, the last layer that reads it
        for number, one in enumerate(layers):
            self._last.update(dict.fromkeys(self._names(one.parts[0]), number))
        self._number = -1

    def __call__(self, one: Located, weights: Mapping[str, Array]) -> tuple[Outputs, Outputs] | None:
        """The outputs, feed by feed, with the layer and its inputs as in the dense model, and with its weights alone:
        with these weights where any are given. None where its parts cannot be remade one after the other."""
        self._number += 1
        if len(one.parts) > 1:
            found = [self._several(one.parts, model, quantized) for model, quantized in self._ways(one, weights)]
            return None if found[0] is None or found[1] is None else (found[0], found[1])
        self._fetch(one.parts[0])
        remade = [
            self._remade(one.parts[0], model, quantized, self._arrays) for model, quantized in self._ways(one, weights)
        ]
        results = _finished(
            self._stepper, self._model, str(self._matched.pairs[one.parts[0].end].name), remade, self._end
        )
        for name in [name for name in self._arrays if self._last[name] <= self._number]:
            del self._arrays[name]
        return results[0], results[1]

    def _ways(self, one: Located, weights: Mapping[str, Array]) -> list[tuple[ir.Model, bool]]:
        """The dense model, and it with the given weights; whether inputs are read as the compressed graph does."""
        dense = self._matched.dense.model
        return [(dense, False), (with_weights(dense, one, weights) if weights else dense, True)]

    def _names(self, part: Part) -> list[str]:
        """The values of the compressed graph that remaking a part reads."""
        pairs = self._matched.pairs
        return list(dict.fromkeys(str(v.name) for bound, read in part.reads.items() for v in (pairs[bound], read)))

    def _fetch(self, part: Part) -> None:
        """Run up to the part's end, and take what it and parts to come read on the way."""
        end = self._place[str(self._matched.pairs[part.end].name)]
        wanted = [n for n, last in self._last.items() if last >= self._number and self._place[n] <= end]
        wanted = [name for name in wanted if name not in self._arrays]
        last = str(self._matched.pairs[part.end].name)
        for name, arrays in _columns(self._stepper, [*wanted, last]).items():
            if name in wanted:
                self._arrays[name] = arrays

    def _remade(self, part: Part, model: ir.Model, quantized: bool, arrays: Mapping[str, list[Array]]) -> list[Array]:
        """What a part of the dense model makes of what the compressed one has."""
        output, runner, made = str(part.end.name), None, []
        for number in range(len(self._feeds)):
            feed = {}
            for bound, read in part.reads.items():
                array = arrays[str((read if quantized else self._matched.pairs[bound]).name)][number]
                types = self._types.get(str(bound.name))
                feed[str(bound.name)] = array if types is None else array.astype(types[0], copy=False)
            runner = runner or Runner(model, feed, [output], self._execution)
            found = runner(feed)[output]
            types = self._types.get(output)
            made.append(found if types is None else found.astype(types[1], copy=False))
        return made

    def _several(self, parts: Sequence[Part], model: ir.Model, quantized: bool) -> Outputs | None:
        """A layer whose weight is used more than once: each part on what the ones before it made."""
        ends = [str(self._matched.pairs[part.end].name) for part in parts]
        order = sorted(range(len(parts)), key=lambda i: self._place[ends[i]])
        whole, feeds = self._model, list(self._feeds)
        done: Outputs = [{} for _ in feeds]
        for i in order:
            stepper = Stepper(whole, feeds, self._execution, fuse=False)
            try:
                arrays = _columns(stepper, [*self._names(parts[i]), ends[i]])
                if any(name not in arrays for name in self._names(parts[i])):
                    return None
                remade = self._remade(parts[i], model, quantized, arrays)
                if i == order[-1]:
                    last = _finished(stepper, whole, ends[i], [remade], self._end)[0]
                    return [before | after for before, after in zip(done, last, strict=True)]
                known = _known_outputs(stepper, whole)
                done = [
                    a | b | ({ends[i]: y} if ends[i] in b else {}) for a, b, y in zip(done, known, remade, strict=True)
                ]
                whole, feeds = stepper.rest()
            except ValueError:  # what a part reads was needed by none that follows
                return None
            for feed, array in zip(feeds, remade, strict=True):
                feed[ends[i]] = array
        return None

    def _end(self, part: ir.Model) -> Callable[[Feed], Feed]:
        return open_session(part, device=self._execution.device, threads=self._execution.threads, fuse=False).run


def in_order(matched: Matched, layers: Sequence[Located]) -> list[Located]:
    """Layers in the order in which the compressed graph makes their outputs."""
    place = _places(matched.compressed.model)
    return sorted(layers, key=lambda one: place[str(matched.pairs[one.parts[0].end].name)])


def with_weights(dense: ir.Model, one: Located, weights: Mapping[str, Array]) -> ir.Model:
    """A copy of the dense model in which the nodes of a layer read the weight that is given for it."""
    assert one.layer is not None
    model = dense.clone()
    place = {node: number for number, node in enumerate(dense.graph)}
    nodes = list(model.graph)
    value = add_initializer(
        model.graph, free_name(f"{one.row.name}.returned", set(names_of(model))), weights[one.row.name]
    )
    for use in one.layer.uses:
        nodes[place[use.node]].replace_input_with(use.index, value)
    return model


def _places(model: ir.Model) -> dict[str, int]:
    """Where each value is made."""
    found = {str(value.name): -1 for value in model.graph.inputs}
    found |= {str(value.name): number for number, node in enumerate(model.graph) for value in node.outputs}
    return found


def _columns(stepper: Stepper, names: Sequence[str]) -> dict[str, list[Array]]:
    rows = stepper.advance(list(dict.fromkeys(names)))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _finished(
    stepper: Stepper,
    model: ir.Model,
    name: str,
    remade: Sequence[Sequence[Array]],
    end: Callable[[ir.Model], Callable[[Feed], Feed]],
) -> list[Outputs]:
    """The outputs of a model, with each of several remakes of the value `name`, which has run last."""
    outputs = [str(value.name) for value in model.graph.outputs]
    known = _known_outputs(stepper, model)
    run = None
    rest: list[Feed] = [{} for _ in remade[0]]
    if any(output not in (known[0] if known else {}) for output in outputs):
        part, rest = stepper.rest()
        run = end(part)
    found: list[Outputs] = []
    for arrays in remade:
        rows = []
        for given, before, array in zip(rest, known, arrays, strict=True):
            row = dict(before)
            if name in row:
                row[name] = array
            if run is not None:
                row |= run({**given, name: array})
            rows.append({output: np.asarray(row[output]) for output in outputs})
        found.append(rows)
    return found


def _known_outputs(stepper: Stepper, model: ir.Model) -> list[Feed]:
    """The outputs of a model that have been computed already."""
    return stepper.advance([str(value.name) for value in model.graph.outputs if stepper.knows(str(value.name))])
