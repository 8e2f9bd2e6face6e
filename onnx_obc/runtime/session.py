"""Runs a model, or parts of it, in onnxruntime."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core.errors import ModelError, RecipeError, one_line
from ..core.machine import workers

Device = Literal["auto", "cpu", "cuda"]
IN_MEMORY_BYTES = 1 << 30  # larger models go to onnxruntime through a file, since a protobuf holds 2 GiB at most


@dataclass(frozen=True)
class Execution:
    """Where and how models run: the device, onnxruntime's threads (None: all cores), and the bytes of memory that
    activations and Hessians may take at a time."""

    device: Device = "auto"
    threads: int | None = None
    memory: float = math.inf


@dataclass(frozen=True)
class Session:
    """A model ready to run: `run(feed)` gives the outputs by name."""

    outputs: tuple[str, ...]
    inputs: frozenset[str]
    _session: Any

    def run(self, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one feed. What the model does not read is ignored. Raises ModelError if the model fails on it."""
        wanted = {name: array for name, array in feed.items() if name in self.inputs}
        try:
            values = self._session.run(list(self.outputs), wanted)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in wanted.items())
            raise ModelError(f"onnxruntime failed on the feed {shapes}: {one_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def open_session(
    model: ir.Model | Path,
    outputs: Sequence[str] | None = None,
    device: Device = "auto",
    threads: int | None = None,
    fuse: bool = True,
) -> Session:
    """Load a model into onnxruntime; `outputs` names the values to compute instead of the model's own outputs.

    fuse: whether onnxruntime may fuse operators, which seldom goes wrong, and otherwise is faster.

    Raises ModelError if onnxruntime refuses the model or is not installed.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by the exception
    if threads is not None:
        options.intra_op_num_threads = workers(threads)
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if outputs is not None:
        assert isinstance(model, ir.Model)
        model = _with_outputs(model, outputs)
    try:
        if isinstance(model, Path):
            session = onnxruntime.InferenceSession(model, options, providers=_providers(device))
        else:
            session = _load(model, options, _providers(device))
    except (RecipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {one_line(error)}") from error
    return Session(
        outputs=tuple(value.name for value in session.get_outputs()),
        inputs=frozenset(value.name for value in session.get_inputs()),
        _session=session,
    )


def _onnxruntime() -> Any:
    """The runtime, which comes with an extra, so that users can choose between CPU and GPU builds."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "onnxruntime is not installed; install onnx-obc[cpu], or onnx-obc[gpu] for an NVIDIA GPU"
        ) from error
    return onnxruntime


def _providers(device: Device) -> list[str]:
    cuda, available = "CUDAExecutionProvider", _onnxruntime().get_available_providers()
    if device == "cuda" and cuda not in available:
        raise RecipeError("--device cuda: this onnxruntime has no CUDA; install onnx-obc[gpu], or use --device cpu")
    use_cuda = device != "cpu" and cuda in available
    return [cuda, "CPUExecutionProvider"] if use_cuda else ["CPUExecutionProvider"]


def _load(model: ir.Model, options: Any, providers: list[str]) -> Any:
    onnxruntime = _onnxruntime()
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    weights = [value.const_value for value in values if value.const_value is not None]
    beside = any(isinstance(tensor, ir.ExternalTensor) for tensor in weights)  # onnxruntime wants a path for those
    if not beside and sum(tensor.nbytes for tensor in weights) < IN_MEMORY_BYTES:
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        return onnxruntime.InferenceSession(path, options, providers=providers)


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model that computes these values instead of its outputs."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values.update({value.name: value for value in copy.graph.inputs})
    values.update(copy.graph.initializers)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; integers always are."""
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())
