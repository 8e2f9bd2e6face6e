"""Runs a model over some feeds value by value, so that what has not run yet can still be changed, or run many times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
from onnx_ir.analysis import analyze_implicit_usage

from ..core.arrays import Array, Feed
from ..core.errors import ModelError
from ..core.machine import workers
from ..core.mapped import in_temporary_file
from ..graph.layers import bodies
from .session import Execution, Session, open_session


class Stepper:
    """Runs a model on feeds up to one value after another, and keeps of each feed only what later nodes read.

    Beyond the memory of `execution`, what is kept and what a step returns lies in temporary files, which are gone when
    nothing refers to them any more. The model is read at each step as it is then: nodes that have not run yet may be
    given other weights, or nodes before them, in between. fuse: as in `open_session`.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, Array]],
        execution: Execution = Execution(),
        fuse: bool = True,
    ) -> None:
        self._model = model
        self._fuse = fuse
        self._execution = execution
        self._done: set[ir.Node] = set()
        names = {str(value.name) for value in model.graph.inputs}
        self._live: list[Feed] = [{name: feed[name] for name in feed if name in names} for feed in feeds]

    def advance(self, names: Sequence[str], keep: Collection[str] = ()) -> list[Feed]:
        """Run what these values need and has not run yet, on every feed, and return them, feed by feed.

        keep: values that are kept too, once they are known, though no later node may read them.

        Raises ModelError if onnxruntime fails, ValueError if a value has been dropped: ask for values in the order of
        the graph, or together.
        """
        reads = self._reads()
        nodes = self._missing(names, reads)
        produced = {str(v.name): _is_constant(node, reads) for node in nodes for v in node.outputs}
        pending = [node for node in self._model.graph if node not in self._done and node not in nodes]
        later = {str(value.name) for node in pending for value in reads[node]}
        later |= {str(value.name) for value in self._model.graph.outputs} | set(keep)
        kept = [name for name, constant in produced.items() if name in later and name not in names and not constant]
        fetched = [name for name in dict.fromkeys(names) if name in produced]
        results: list[Feed] = [{} for _ in self._live]
        if fetched:
            part = self._part(nodes, sorted({*fetched, *kept}), reads)
            session = self._open(part)
            for live, result in zip(self._live, results, strict=True):
                for name, array in session.run(live).items():
                    stored = self._kept(array, results)
                    if name in fetched:
                        result[name] = stored
                    if name in later and not produced[name]:
                        live[name] = stored
        for live, result in zip(self._live, results, strict=True):
            result.update({name: live[name] for name in names if name in live and name not in result})
        self._done |= nodes
        for live in self._live:
            for name in live.keys() - later:
                del live[name]
        return results

    def knows(self, name: str) -> bool:
        """Whether a value is kept: it is an output of the model, or some node that has not run yet reads it."""
        return bool(self._live) and name in self._live[0]

    def update(self, name: str, change: Callable[[Array], Array]) -> None:
        """Replace a value that was computed already, on every feed, for the nodes that will read it."""
        holding = [live for live in self._live if name in live]
        width = workers(self._execution.threads)
        with ThreadPoolExecutor(width, "stepper") as pool:
            for part in (holding[start : start + width] for start in range(0, len(holding), width)):
                for live, changed in zip(part, pool.map(change, [live[name] for live in part]), strict=True):
                    del live[name]
                    live[name] = self._kept(changed, ())

    def rest(self) -> tuple[ir.Model, list[Feed]]:
        """A model of all that has not run yet, whose inputs are what was kept, and its feeds.

        Its outputs are those of the model that are not known yet. Raises ValueError if what was kept does not separate
        the two, which would be a fault of this class.
        """
        reads = self._reads()
        known = set(self._live[0]) if self._live else set()
        outputs = [str(v.name) for v in self._model.graph.outputs if v.name not in known]
        nodes = self._missing(outputs, reads)
        part = self._part(nodes, outputs, reads)
        wanted = {str(value.name) for value in part.graph.inputs}
        return part, [{name: live[name] for name in wanted} for live in self._live]

    def _open(self, part: ir.Model) -> Session:
        """A session for a part: without fusions where onnxruntime fails on it with them.

        It does on some Q/DQ pairs that were cut off from what follows them.
        """
        try:
            return open_session(part, device=self._execution.device, threads=self._execution.threads, fuse=self._fuse)
        except ModelError:
            return open_session(part, device=self._execution.device, threads=self._execution.threads, fuse=False)

    def _reads(self) -> dict[ir.Node, list[ir.Value]]:
        """What every node reads, by its bodies too."""
        inside = analyze_implicit_usage(self._model.graph)
        return {
            node: [value for value in node.inputs if value is not None]
            + [value for body in bodies(node) for value in inside[body]]
            for node in self._model.graph
        }

    def _missing(self, names: Iterable[str], reads: Mapping[ir.Node, Sequence[ir.Value]]) -> set[ir.Node]:
        """The nodes to run for these values. What only constants make is never kept: it is run where it is read."""
        values = {str(value.name): value for node in reads for value in node.outputs}
        known = set(self._live[0]) if self._live else set()
        nodes: set[ir.Node] = set()
        pending = [values[name] for name in names if name in values and name not in known]
        while pending:
            node = pending.pop().producer()
            if node is None or node in nodes:
                continue
            if node in self._done and not _is_constant(node, reads):
                raise ValueError(f"{node.outputs[0].name} was dropped: no node after it reads it")
            nodes.add(node)
            pending += [value for value in reads[node] if str(value.name) not in known]
        return nodes

    def _part(
        self, nodes: set[ir.Node], outputs: Sequence[str], reads: Mapping[ir.Node, Sequence[ir.Value]]
    ) -> ir.Model:
        """These nodes as a model of their own."""
        produced = {value for node in nodes for value in node.outputs}
        graph = self._model.graph
        inputs = {
            str(value.name): None
            for node in graph
            if node in nodes
            for value in reads[node]
            if value not in produced and not value.is_initializer() and value.graph in (None, graph)
        }
        inputs = {name: None for name in inputs if self._live and name in self._live[0]}
        part = ir.convenience.extract(graph, list(inputs), outputs)
        for value in part.inputs:
            arrays = [live[str(value.name)] for live in self._live]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise ModelError(f"{value.name} is not a tensor: the model cannot be run in parts there")
            value.type = ir.TensorType(ir.DataType.from_numpy(arrays[0].dtype))
            value.shape = _common_shape(arrays)
        model = ir.Model(part, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))
        return model

    def _kept(self, array: Array, results: Sequence[Feed]) -> Array:
        """The array, or the same in a temporary file if there is no more room beside what is kept and the results."""
        if not isinstance(array, np.ndarray) or array.nbytes == 0:
            return array
        there = {id(x): x.nbytes for feed in (*self._live, *results) for x in feed.values() if type(x) is np.ndarray}
        if sum(there.values()) + array.nbytes <= self._execution.memory:
            return array
        return in_temporary_file(array, "activations")


def _is_constant(node: ir.Node, reads: Mapping[ir.Node, Sequence[ir.Value]]) -> bool:
    """Whether nothing that a node depends on is an input of the model."""
    pending = [node]
    while pending:
        for value in reads.get(pending.pop(), ()):
            producer = value.producer()
            if producer is not None:
                pending.append(producer)
            elif not value.is_initializer():
                return False
    return True


def _common_shape(arrays: Sequence[Array]) -> ir.Shape:
    """The shape of all arrays, free where they differ."""
    sizes = [set(column) for column in zip(*(array.shape for array in arrays), strict=True)]
    return ir.Shape([next(iter(size)) if len(size) == 1 else None for size in sizes])
