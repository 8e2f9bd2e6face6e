"""Check any ONNX file against the rules of a runtime and, if the runtime is installed, what it really runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.arrays import Feed
from ..core.errors import EngineError, ModelError
from ..graph.model import read_model
from .agreement import Outputs, disagreement
from .engine import Kernel
from .expected import ExpectedKernel, expected_kernels
from .finding import Finding
from .registry import TARGETS

RESCALED_BEHIND = ("MatMulInteger", "ConvInteger")  # kernels whose sums a Cast and a Mul read: they are not fused


@dataclass(frozen=True)
class KernelMatch:
    """How an engine runs one product of a file.

    promised: what the file's form stands for, `int8`, `int4-weights`, `float32`, `float16`. kernel: the engine's
    operation, empty where none could be found for the node; precision: the numbers it multiplies. kept: whether the
    promise is. sparsity: of the weight in the file; skipped: of what the engine skips, None where it does not say.
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
class FileCheck:
    """All about one file and one runtime.

    engine: its name and version, or why it did not run; ran: whether it did, executions are empty otherwise. supported:
    the fraction of operations that the engine does not leave to a fallback, None where it has none.
    """

    file: str
    target: str
    engine: str
    ran: bool
    findings: tuple[Finding, ...]
    executions: tuple[KernelMatch, ...]
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
        """(kept, total) over weight-only integer products."""
        found = [entry for entry in self.executions if entry.promised.endswith("-weights")]
        return sum(entry.kept for entry in found), len(found)

    def count(self, promised: str) -> tuple[int, int]:
        """How many of the products with this promise are kept, and how many there are."""
        found = [entry for entry in self.executions if entry.promised == promised]
        return sum(entry.kept for entry in found), len(found)


def check_file(
    path: Path,
    target: str,
    feed: Feed | None = None,
    threads: int | None = None,
    name: str | None = None,
    dense: Outputs | None = None,
) -> FileCheck:
    """Check a file: the target's rules, and, where its engine is here and there is a feed, what the engine runs.

    The engine's outputs are compared with what the file says, see `agreement`. name: what the file will be called, if
    it lies elsewhere for now. dense: the outputs of the model that it was made from, if they are known. Raises
    ModelError if the file is no ONNX model.
    """
    model, rules = read_model(path), TARGETS[target]
    found = list(rules.check(model))
    executions: tuple[KernelMatch, ...] = ()
    engine, ran, supported = "no input to run it on", False, None
    if feed is not None:
        try:
            engine = rules.engine.version()
        except EngineError as error:
            if rules.build_elsewhere is not None:
                found.append(rules.build_elsewhere(path, feed, name or str(path)))
            return FileCheck(name or str(path), target, str(error), False, tuple(found), ())
        try:
            loaded = rules.engine.load(path, feed, threads)
        except EngineError as error:
            found.append(Finding("error", "engine", "", str(error), "mend what the other findings name"))
            return FileCheck(name or str(path), target, engine, False, tuple(found), ())
        try:
            executions, outputs = executed(loaded.kernels(feed, 1), expected_kernels(model)), loaded.run(feed)
        except EngineError as error:
            engine = f"{error}; give an input that the model takes, with --calib"
        else:
            ran = True
            found += _not_kept(executions, found, target)
            found += _different(path, outputs, feed, threads, target, dense)
        finally:
            supported = loaded.supported
            loaded.close()
    return FileCheck(name or str(path), target, engine, ran, tuple(found), executions, supported)


def executed(kernels: Sequence[Kernel], promised: Sequence[ExpectedKernel]) -> tuple[KernelMatch, ...]:
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
        wanted = {"int8": "int8", "weights": f"int{promise.bits}-weights", "float": promise.type}[promise.form]
        alone = kernel is not None and kernel.op in RESCALED_BEHIND
        kept = promise.form == "float" or (
            precision == "int8" and not alone if promise.form == "int8" else precision.startswith("int")
        )
        found.append(
            KernelMatch(
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


def _not_kept(executions: Sequence[KernelMatch], findings: Sequence[Finding], target: str) -> list[Finding]:
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
        if entry.kernel in RESCALED_BEHIND:
            how += ", with a Cast and a Mul behind it that are not fused"
        message = f"its form promises {entry.promised}, but {target} runs it {how}; no rule that is known here says why"
        found.append(Finding("slow", "not-fused", entry.node, message, "compare with a layer that runs in integers"))
    return found


def _different(
    path: Path,
    outputs: Mapping[str, npt.NDArray[np.generic]],
    feed: Feed,
    threads: int | None,
    target: str,
    dense: Outputs | None,
) -> list[Finding]:
    """An output that is not what the file says."""
    try:
        found = disagreement(path, TARGETS[target].engine, feed, threads, dict(outputs), dense)
    except (EngineError, ModelError) as error:
        return [Finding("note", "not-compared", "", f"outputs were not compared: {error}")]
    if found is None:
        return []
    where = f"; the first layer that differs is {found.node}" if found.node else ""
    apart = f"{found.db:.1f} dB apart on the input that was run"
    message = f"{target} computes another {found.output} than the file says: {apart}{where}"
    return [Finding("error", "outputs", found.node or found.output, message, "do not ship this file for it")]
