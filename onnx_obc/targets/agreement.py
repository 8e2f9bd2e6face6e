"""Whether an engine computes what a file says, and if not, from which layer on.

What a file says is what onnxruntime computes without any optimisation, operator by operator. Engines fuse operators
and round in ways of their own, which is why a little is allowed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core.arrays import Feed
from ..core.errors import EngineError, ModelError
from ..graph.save import save_model
from ..runtime.session import open_session
from ..runtime.sqnr import agreement_db, is_float
from .engine import Engine
from .expected import constant_behind, expected_kernels

CLOSE_DB = 15.0  # roundings that fall the other way move what follows: what is the same agrees to more than this
ELEMENTWISE = ("Add", "Mul", "Cast", "Relu", "Clip")  # between a product and the value that all fusions leave

Outputs = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Disagreement:
    """An output that an engine computes otherwise than the file says: how close it is, and the node of the file, a
    product, from whose output on values differ; empty where none could be found."""

    output: str
    db: float
    node: str


def meaning(path: Path, feed: Feed, threads: int | None) -> Outputs:
    """The outputs of a file as ONNX says. Raises ModelError."""
    return open_session(path, device="cpu", threads=threads, fuse=False).run(dict(feed))


def disagreement(
    path: Path,
    engine: Engine,
    feed: Feed,
    threads: int | None,
    outputs: Outputs | None = None,
    dense: Outputs | None = None,
) -> Disagreement | None:
    """The output that differs most from what a file says; None if all are close, or if the model draws random numbers.

    outputs: what the engine computes, if that is known. dense: the outputs of the model that the file was made from:
    where the file is as far from them as the engine is from the file, it is the same rounding that moves both, as it
    does with few bits. Raises EngineError and ModelError.
    """
    wanted = meaning(path, feed, threads)
    found = _worst(wanted, _run(engine, path, feed, threads) if outputs is None else outputs)
    moved = None if dense is None else _worst(dense, wanted)
    if found is None or found[1] >= (CLOSE_DB if moved is None else min(CLOSE_DB, moved[1])):
        return None
    again = _worst(wanted, meaning(path, feed, threads))
    if again is not None and again[1] < CLOSE_DB:
        return None
    try:
        node = _first(path, engine, feed, threads)
    except (EngineError, ModelError):  # an engine that takes the file need not take it with more outputs
        node = ""
    return Disagreement(*found, node)


def _worst(wanted: Outputs, found: Outputs) -> tuple[str, float] | None:
    """The float output that is furthest off, and by how much; None if there is none to compare."""
    compared = [
        (name, agreement_db(array, found[name])) for name, array in wanted.items() if name in found and is_float(array)
    ]
    return min(compared, key=lambda entry: entry[1], default=None)


def _run(engine: Engine, path: Path, feed: Feed, threads: int | None) -> Outputs:
    loaded = engine.load(path, feed, threads)
    try:
        return loaded.run(feed)
    finally:
        loaded.close()


def _first(path: Path, engine: Engine, feed: Feed, threads: int | None) -> str:
    """The first product of a file behind which the engine's values differ from the file's; empty if none does."""
    model = ir.load(path)
    ends = {promise.name: _end(promise.node) for promise in expected_kernels(model)}
    present = set(model.graph.outputs)
    for value in dict.fromkeys(ends.values()):
        if value not in present:
            model.graph.outputs.append(value)
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        watched = Path(folder) / "watched.onnx"
        save_model(model, watched)
        wanted, found = meaning(watched, feed, threads), _run(engine, watched, feed, threads)
    for name, value in ends.items():
        pair = [_numbers(value, outputs[str(value.name)]) for outputs in (wanted, found) if value.name in outputs]
        if len(pair) == 2 and agreement_db(*pair) < CLOSE_DB:
            return name
    return ""


def _end(node: ir.Node) -> ir.Value:
    """The value behind a product that fusions leave: behind the operators on single elements and the QuantizeLinear
    that follow it alone."""
    value = node.outputs[0]
    while not value.is_graph_output():
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type not in (*ELEMENTWISE, "QuantizeLinear"):
            break
        value = uses[0].node.outputs[0]
        if uses[0].node.op_type == "QuantizeLinear":
            break
    return value


def _numbers(value: ir.Value, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """What integers of a QuantizeLinear stand for, but for their scale."""
    node = value.producer()
    if node is None or node.op_type != "QuantizeLinear" or len(node.inputs) < 3:
        return array
    zero = constant_behind(node.inputs[2])
    return array if zero is None or zero.size != 1 else array.astype(np.float64) - float(zero.numpy().reshape(()))
