"""OpenVINO on the CPU: runs a file, and names its kernels by the runtime model and its own counters.

Floats stay float32: on processors with bfloat16 OpenVINO would otherwise compute in that, and a comparison with float32
engines would be one of precisions. One stream, for the latency of a single request.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...core.arrays import Feed
from ...core.errors import EngineError, one_line
from ...core.machine import workers
from ..attribution import covered, node_name
from ..engine import Kernel
from ..expected import WEIGHTED, expected_kernels

MULTIPLY = ("Convolution", "Deconvolution", "MatMul", "FullyConnected")
SPARSE_ENOUGH = 0.5  # below this, OpenVINO's packed weights do not pay


def version() -> str:
    """Name and version. Raises EngineError if it is not installed."""
    return f"openvino {_openvino().__version__.split('-')[0]}"


def load(path: Path, feed: Feed, threads: int | None) -> OpenvinoModel:
    """A file, compiled for the shapes of this feed. Raises EngineError if it is refused."""
    return OpenvinoModel(path, feed, threads)


class OpenvinoModel:
    """A file in OpenVINO; see `Loaded`."""

    supported: float | None = None

    def __init__(self, path: Path, feed: Feed, threads: int | None) -> None:
        self._path = path
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": workers(threads),
        }
        try:
            rate = sparse_rate(path)
            if rate is not None:
                options["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = rate
            model = _core().read_model(path)
            names = [value.any_name for value in model.inputs]
            shapes = {value: feed[value.any_name].shape for value in model.inputs if value.any_name in feed}
            model.reshape(shapes)
            self._outputs = [value.any_name for value in model.outputs]
            self._model, self._options = model, options
            self._request = _core().compile_model(model, "CPU", options).create_infer_request()
        except KeyboardInterrupt:
            raise
        except Exception as error:
            raise EngineError(f"openvino cannot load {path}: {one_line(error)}") from error
        self._inputs = names

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs by name. Raises EngineError."""
        return self._infer(self._request, feed)

    def seconds(self, feed: Feed, repeats: int) -> list[float]:
        """The time of each of so many runs, after one that is not counted. Raises EngineError."""
        found = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            self._infer(self._request, feed)
            found.append(time.perf_counter() - began)
        return found[1:]

    def kernels(self, feed: Feed, repeats: int) -> list[Kernel]:
        """The runtime model's operations that are executed, with their times from OpenVINO's counters."""
        compiled = _core().compile_model(self._model, "CPU", {**self._options, "PERF_COUNT": True})
        request = compiled.create_infer_request()
        seconds: dict[str, list[float]] = defaultdict(list)
        for turn in range(repeats + 1):
            self._infer(request, feed)
            if turn:
                for entry in request.get_profiling_info():
                    seconds[entry.node_name].append(entry.real_time.total_seconds())
        kernels: list[Kernel] = []
        position: dict[str, int] = {}
        owners: dict[ir.Node, int] = {}
        graph = ir.load(self._path).graph
        names = {name: node for node in graph for name in (node_name(node), *(v.name for v in node.outputs)) if name}
        for op in compiled.get_runtime_model().get_ordered_ops():
            about = {key: _text(value) for key, value in op.get_rt_info().items()}
            kind = about.get("layerType", "")
            if kind in ("Input", "Const", "Output"):
                continue
            name = op.get_friendly_name()
            for original in (*about.get("originalLayersNames", "").split(","), name):
                node = _node(original, names) if kind in MULTIPLY else names.get(original)
                if node is None or (node.op_type in WEIGHTED and kind not in MULTIPLY):
                    continue
                if node not in owners or kind in MULTIPLY:
                    owners[node] = len(kernels)
            inputs = [value.get_node() for value in op.input_values()]
            types = [value.get_element_type().get_type_name() for value in op.input_values()]
            position[name] = len(kernels)
            precision = _precision(about, types) if kind in MULTIPLY else ""
            sources = tuple(position[x.get_friendly_name()] for x in inputs if x.get_friendly_name() in position)
            kernels.append(Kernel(name, kind, (), precision, sources, median(seconds.get(name) or [0.0])))
        nodes = covered(graph, owners)
        return [replace(kernel, nodes=tuple(nodes.get(index, ()))) for index, kernel in enumerate(kernels)]

    def close(self) -> None:
        """Give the compiled model back."""
        self._request = self._model = None

    def _infer(self, request: Any, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        try:
            found = request.infer({name: feed[name] for name in self._inputs if name in feed}, share_inputs=True)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            raise EngineError(f"openvino failed: {one_line(error)}") from error
        return dict(zip(self._outputs, (np.asarray(array) for array in found.values()), strict=True))


def sparse_rate(path: Path) -> float | None:
    """The share of zeros from which OpenVINO is to pack the weights of a layer; None where no layer has as many.

    The least sparsity among the layers with integer weights that are sparse enough to pay. OpenVINO uses it in fully
    connected layers on processors with AMX (its documentation, "CPU device": sparse weights decompression); elsewhere
    zeros cost what other weights cost.
    """
    found = [p.sparsity for p in expected_kernels(ir.load(path)) if p.form == "int8" and p.sparsity >= SPARSE_ENOUGH]
    return round(min(found), 3) if found else None


def _node(name: str, names: Mapping[str, ir.Node]) -> ir.Node | None:
    """The file's node that a name goes back to: OpenVINO puts what it adds behind a slash."""
    while name:
        if name in names:
            return names[name]
        name = name.rpartition("/")[0]
    return None


def _precision(about: Mapping[str, str], types: Sequence[str]) -> str:
    """What a kernel multiplies, by its primitive, whose name ends with the type it computes in (`brgconv_avx512_I8`).

    types: of its inputs. `runtimePrecision` does not tell: it is `i8` too where a float kernel unpacks integer weights.
    """
    computes = about.get("primitiveType", "").rpartition("_")[2]
    if computes == "I8":
        return "int8"
    packed = re.fullmatch(r"[iu](\d)", types[1]) if len(types) > 1 else None
    if packed:
        return f"int{packed[1]}-weights"
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(computes, computes)


def _text(value: Any) -> str:
    return str(value.value if hasattr(value, "value") else value)


@cache
def _core() -> Any:
    """One for the process. A second that outlives the first leaves the thread with a signal stack that is freed.

    Each that begins puts the stack of its own in place (for AMX), and each that ends restores the one it found, though
    that may be gone: the next signal, Ctrl-C among them, would then end the process without a word.
    """
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise EngineError("openvino is not installed; install onnx-obc[openvino]") from error
    return openvino
