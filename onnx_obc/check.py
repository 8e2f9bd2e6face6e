"""Checks any ONNX file against the rules of a runtime, and against what the runtime does with it where it is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EngineError
from .graph.finding import Finding
from .graph.model import read_model
from .graph.promise import Promise, promises
from .graph.targets import TARGETS
from .runtime.cpu import saturates
from .runtime.engine import Feed, Kernel
from .runtime.engines import ENGINES
from .runtime.engines.tensorrt import trtexec_command

CLOSE_DB = 15.0  # two engines that round differently inside agree to more than this on a file's outputs


@dataclass(frozen=True)
class Execution:
    """How an engine runs one product of a file.

    promised: what the file's form stands for, `int8`, `int4-weights`, `float32`. kernel: the engine's operation, empty
    where none could be found for the node; precision: the numbers it multiplies. kept: whether the promise is.
    sparsity: of the weight in the file; skipped: of what the engine skips, None where it does not say.
    """

    node: str
    op: str
    promised: str
    kernel: str
    precision: str
    kept: bool
    sparsity: float
    skipped: float | None


@dataclass(frozen=True)
class Examination:
    """All about one file and one runtime.

    engine: its name and version, or why it did not run; ran: whether it did, executions are empty otherwise. supported:
    the fraction of operations that the engine does not leave to a fallback, None where it has none.
    """

    file: str
    target: str
    engine: str
    ran: bool
    findings: tuple[Finding, ...]
    executions: tuple[Execution, ...]
    supported: float | None = None

    @property
    def failed(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @property
    def weights(self) -> tuple[int, int]:
        """The same of the products whose weights alone are integers."""
        found = [entry for entry in self.executions if entry.promised.endswith("-weights")]
        return sum(entry.kept for entry in found), len(found)

    def count(self, promised: str) -> tuple[int, int]:
        """How many of the products with this promise are kept, and how many there are."""
        found = [entry for entry in self.executions if entry.promised == promised]
        return sum(entry.kept for entry in found), len(found)


def examine(
    path: Path, target: str, feed: Feed | None = None, threads: int | None = None, name: str | None = None
) -> Examination:
    """Check a file: the target's rules, and, where its engine is here and there is a feed, what the engine runs.

    The engine's outputs are compared with those of onnxruntime. name: what the file will be called, if it lies
    elsewhere for now. Raises ModelError if the file is no ONNX model.
    """
    model = read_model(path)
    found = list(TARGETS[target].examine(model))
    if target == "onnxruntime" and saturates():
        found += _saturating(promises(model))
    executions: tuple[Execution, ...] = ()
    engine, ran, supported = "no input to run it on", False, None
    if feed is not None:
        try:
            engine = ENGINES[target].version()
        except EngineError as error:
            if target == "tensorrt":
                found.append(_by_hand(path, feed, name or str(path)))
            return Examination(name or str(path), target, str(error), False, tuple(found), ())
        try:
            loaded = ENGINES[target].load(path, feed, threads)
        except EngineError as error:
            found.append(Finding("error", "engine", "", str(error), "mend what the other findings name"))
            return Examination(name or str(path), target, engine, False, tuple(found), ())
        try:
            executions, outputs = executed(loaded.kernels(feed, 1), promises(model)), loaded.run(feed)
        except EngineError as error:
            engine = f"{error}; give an input that the model takes, with --calib"
        else:
            ran = True
            found += _not_kept(executions, found, target)
            if target != "onnxruntime":
                found += _different(path, outputs, feed, threads, target)
        finally:
            supported = loaded.supported
            loaded.close()
    return Examination(name or str(path), target, engine, ran, tuple(found), executions, supported)


def executed(kernels: Sequence[Kernel], promised: Sequence[Promise]) -> tuple[Execution, ...]:
    """What became of each product, by the names of the nodes that kernels cover."""
    owners: dict[str, Kernel] = {}
    for one in kernels:
        for node in one.nodes:
            if node not in owners or (one.precision and not owners[node].precision):
                owners[node] = one
    found = []
    for promise in promised:
        kernel = owners.get(promise.name)
        precision = "" if kernel is None else kernel.precision
        wanted = {"int8": "int8", "weights": f"int{promise.bits}-weights", "float32": "float32"}[promise.form]
        kept = promise.form == "float32" or (
            precision == "int8" if promise.form == "int8" else precision.startswith("int")
        )
        found.append(
            Execution(
                promise.name,
                promise.node.op_type,
                wanted,
                "" if kernel is None else kernel.op,
                precision,
                kept,
                promise.sparsity,
                None if kernel is None else kernel.sparsity,
            )
        )
    return tuple(found)


def _by_hand(path: Path, feed: Feed, name: str) -> Finding:
    """How to build the file where there is a GPU."""
    command = " ".join(trtexec_command(path, {name: tuple(array.shape) for name, array in feed.items()}))
    command = command.replace(str(path), name)
    return Finding("note", "trtexec", "", f"not built here; where TensorRT is: {command}")


def _saturating(promised: Sequence[Promise]) -> list[Finding]:
    """Products whose weights reach beyond 7 bits, for a processor on which sums of them saturate."""
    message = "this processor has no VNNI, and 8-bit products can saturate on it, which no check of the file shows"
    remedy = "use --weights int7, or a processor with VNNI"
    wide = [one for one in promised if one.form == "int8" and one.largest > 64]
    return [Finding("note", "saturation", one.name, message, remedy) for one in wide]


def _not_kept(executions: Sequence[Execution], findings: Sequence[Finding], target: str) -> list[Finding]:
    """Products that are promised in integers and run otherwise, where no rule of the target says so already."""
    explained = {finding.node for finding in findings}
    found = []
    for entry in executions:
        if entry.kept or entry.node in explained:
            continue
        how = (
            f"as {entry.kernel} in {entry.precision or 'unknown precision'}"
            if entry.kernel
            else "in no kernel it names"
        )
        message = f"its form promises {entry.promised}, but {target} runs it {how}; no rule that is known here says why"
        found.append(Finding("slow", "not-fused", entry.node, message, "compare with a layer that runs in integers"))
    return found


def _different(
    path: Path, outputs: Mapping[str, npt.NDArray[np.generic]], feed: Feed, threads: int | None, target: str
) -> list[Finding]:
    """Outputs that are not those of onnxruntime."""
    try:
        loaded = ENGINES["onnxruntime"].load(path, feed, threads)
        expected = loaded.run(feed)
    except EngineError as error:
        return [Finding("note", "not-compared", "", f"outputs were not compared: {error}")]
    found = []
    for name, wanted in expected.items():
        if name not in outputs or not isinstance(wanted, np.ndarray) or wanted.dtype.kind != "f":
            continue
        db = agreement_db(wanted, outputs[name])
        if db < CLOSE_DB:
            message = f"{target} computes another {name} than onnxruntime: {db:.1f} dB apart on the input that was run"
            found.append(Finding("error", "outputs", name, message, "do not ship this file for it"))
    return found


def agreement_db(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """The signal-to-noise ratio of `found`, 10 log₁₀(Σ y² / Σ (y − ŷ)²), in decibels; −inf for another shape.

    Elements that are the same infinity or not a number in both do not count.
    """
    if wanted.shape != found.shape:
        return float("-inf")
    y, other = wanted.astype(np.float64), found.astype(np.float64)
    counts = ~((y == other) | (np.isnan(y) & np.isnan(other))) | np.isfinite(y)
    y, other = y[counts], other[counts]
    noise, signal = float(((y - other) ** 2).sum()), float((y**2).sum())
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal > 0 and np.isfinite(noise) else float("-inf")
