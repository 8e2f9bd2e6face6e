"""onnxruntime on the CPU: runs a file, and names its kernels by the graph that it optimized and its own profile."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from ...core.arrays import Feed
from ...core.errors import EngineError, one_line
from ...core.machine import workers
from ...runtime.session import in_precision, out_of_table
from ..attribution import covered
from ..engine import Kernel

# What onnxruntime adds to the name of a node when it rewrites it.
SUFFIXES = re.compile(r"(_nchwc|_token_\d+|/duplicated|_quant|/MatMulAddFusion|_MatMulActivationFusion)$")
PRECISIONS = {
    "QLinearConv": "int8",
    "QGemm": "int8",
    "QLinearMatMul": "int8",
    "MatMulIntegerToFloat": "int8",
    "DynamicQuantizeMatMul": "int8",
    "MatMulInteger": "int8",
    "ConvInteger": "int8",
    "Conv": "float32",
    "FusedConv": "float32",
    "ConvTranspose": "float32",
    "MatMul": "float32",
    "FusedMatMul": "float32",
    "Gemm": "float32",
    "FusedGemm": "float32",
}  # of the operators that multiply; MatMulNBits says it itself


def version() -> str:
    """Name and version. Raises EngineError if it is not installed."""
    return f"onnxruntime {_onnxruntime().__version__}"


def load(path: Path, feed: Feed, threads: int | None) -> OnnxruntimeModel:
    """A file, for feeds of any shapes. Raises EngineError if onnxruntime refuses it or is not installed."""
    return OnnxruntimeModel(path, threads)


class OnnxruntimeModel:
    """A file in onnxruntime; see `Loaded`."""

    supported: float | None = None

    def __init__(self, path: Path, threads: int | None) -> None:
        self._path, self._threads = path, workers(threads)
        self._session = self._open(self._options())

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs by name. Raises EngineError."""
        return _run(self._session, feed)

    def seconds(self, feed: Feed, repeats: int) -> list[float]:
        """The time of each of so many runs, after one that is not counted. Raises EngineError."""
        found = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            _run(self._session, feed)
            found.append(time.perf_counter() - began)
        return found[1:]

    def kernels(self, feed: Feed, repeats: int) -> list[Kernel]:
        """The nodes of the graph that onnxruntime optimized, with their times from its profile. Raises EngineError."""
        with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.data")
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self._path.resolve().parent)
            )
            named = _named(self._path)
            session = self._open(options, named.SerializeToString())
            for _ in range(repeats + 1):
                _run(session, feed)
            profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            optimized = onnx.load(Path(folder) / "optimized.onnx", load_external_data=False)
        seconds: dict[str, list[float]] = defaultdict(list)
        for event in profile:
            name = str(event.get("name", ""))
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                seconds[name.removesuffix("_kernel_time")].append(event["dur"] / 1e6)
        medians = {name: median(times[1:] or times) for name, times in seconds.items()}  # the first run is not counted
        return _kernels(optimized.graph, medians, ir.from_proto(named).graph)

    def close(self) -> None:
        """Give the session back."""
        self._session = None

    def _options(self) -> Any:
        options = _onnxruntime().SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(
            "session.force_spinning_stop", "1"
        )  # or one file's threads slow the next one's
        options.intra_op_num_threads = self._threads
        return options

    def _open(self, options: Any, model: bytes | None = None) -> Any:
        try:
            return _onnxruntime().InferenceSession(model or self._path, options, providers=["CPUExecutionProvider"])
        except KeyboardInterrupt:
            raise
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load {self._path}: {one_line(error)}") from error


def _named(path: Path) -> onnx.ModelProto:
    """A file's model, whose nodes without a name have that of their first output: onnxruntime's profile goes by names.

    Weights beside it are left there.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    return model


def _kernels(graph: Any, seconds: Mapping[str, float], file: ir.Graph) -> list[Kernel]:
    """The optimized graph's nodes, and for each the nodes of the file that it computes."""
    nodes = covered_by(graph, file)
    position = {name: index for index, node in enumerate(graph.node) for name in node.output}
    return [
        Kernel(
            node.name,
            node.op_type,
            tuple(nodes.get(index, ())),
            _precision(node),
            tuple(dict.fromkeys(position[name] for name in node.input if name in position)),
            seconds.get(node.name, 0.0),
        )
        for index, node in enumerate(graph.node)
    ]


def _precision(node: Any) -> str:
    """What a node of the optimized graph multiplies; empty for those that multiply nothing."""
    if node.op_type == "MatMulNBits":
        return f"int{next(x.i for x in node.attribute if x.name == 'bits')}-weights"
    return PRECISIONS.get(node.op_type, "")


def covered_by(optimized: Any, graph: ir.Graph) -> dict[int, list[str]]:
    """For each node of the optimized graph, by position, the names of the file's nodes that it computes.

    onnxruntime names what it fuses by one of the nodes or by the last output.
    """
    by_name = {str(node.name): node for node in graph}
    by_value = {str(value.name): node for node in graph for value in node.outputs}
    owners: dict[ir.Node, int] = {}
    for index, node in enumerate(optimized.node):
        for name in (node.name, *node.output):
            found = _strip(name, by_name, by_value)
            if found is not None and (found not in owners or _precision(node)):
                owners[found] = index
    return covered(graph, owners)


def _strip(name: str, by_name: Mapping[str, ir.Node], by_value: Mapping[str, ir.Node]) -> ir.Node | None:
    """The file's node that a name of the optimized graph goes back to."""
    while True:
        found = by_name.get(name) or by_value.get(name)
        shorter = SUFFIXES.sub("", name)
        if found is not None or shorter == name:
            return found
        name = shorter


def _run(session: Any, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
    names = [value.name for value in session.get_outputs()]
    wanted = in_precision(feed, {value.name: value.type for value in session.get_inputs()})
    try:
        return dict(zip(names, session.run(names, wanted), strict=True))
    except KeyboardInterrupt:
        raise
    except Exception as error:
        raise EngineError(out_of_table(error, wanted) or f"onnxruntime failed: {one_line(error)}") from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError("onnxruntime is not installed; install onnx-obc[cpu]") from error
    return onnxruntime
