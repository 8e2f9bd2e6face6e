"""Runs a model, or parts of it, in onnxruntime."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..core.errors import ModelError, RecipeError, one_line
from ..core.machine import workers
from .loading import load, load_file

Device = Literal["auto", "cpu", "cuda"]
OUT_OF_TABLE = re.compile(
    r"Name:'([^']*)'.*idx=(-?\d+) must be within the inclusive range \[-?\d+,(-?\d+)\]", re.DOTALL
)


@dataclass(frozen=True)
class Execution:
    """Where and how models run: the device, onnxruntime's threads (None: all cores), and the bytes of memory that
    activations and Hessians may take at a time."""

    device: Device = "auto"
    threads: int | None = None
    memory: float = math.inf


@dataclass(frozen=True)
class Session:
    """A model ready to run: `run(feed)` gives the outputs by name. inputs: their names and types, `tensor(float16)`."""

    outputs: tuple[str, ...]
    inputs: Mapping[str, str]
    _session: Any

    def run(self, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one feed. What the model does not read is ignored, and floats are taken in the model's own precision.

        Raises ModelError if the model fails on it.
        """
        wanted = in_precision(feed, self.inputs)
        try:
            values = self._session.run(list(self.outputs), wanted)
        except Exception as error:
            if cause := out_of_table(error, wanted):
                raise ModelError(cause) from error
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
            session = load_file(model, options, _providers(device))
        else:
            session = load(model, options, _providers(device))
    except (RecipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {one_line(error)}") from error
    return Session(
        outputs=tuple(value.name for value in session.get_outputs()),
        inputs={value.name: value.type for value in session.get_inputs()},
        _session=session,
    )


def in_precision(feed: Mapping[str, npt.NDArray[Any]], inputs: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a feed that a model reads, float16 and float32 as it takes them.

    inputs: types as onnxruntime names them.
    """
    floats = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    wanted = {}
    for name in feed.keys() & inputs.keys():
        array, dtype = feed[name], floats.get(inputs[name])
        other = dtype is not None and array.dtype in floats.values()
        wanted[name] = array.astype(dtype, copy=False) if other else array
    return wanted


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


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model that computes these values instead of its outputs."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values.update({value.name: value for value in copy.graph.inputs})
    values.update(copy.graph.initializers)
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    return copy


def out_of_table(error: BaseException, feed: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """What onnxruntime says of a row that a table lacks, and which input of the feed asks for it; None for the rest."""
    found = OUT_OF_TABLE.search(str(error))
    if found is None:
        return None
    index, last = int(found[2]), int(found[3])
    name = next((name for name, ids in feed.items() if _first_outside(ids, last) == index), None)
    if name is not None:
        return (
            f"input {name!r} holds {index}, and the table that {found[1]!r} looks it up in has rows 0 to {last}: "
            "check the data, and that the tokenizer is this model's"
        )
    return (
        f"{found[1]!r} looks up row {index} of a table with rows 0 to {last}: the data holds ids that the model does "
        "not know, or more tokens than it takes; check the tokenizer, or lower --max-tokens"
    )


def _first_outside(ids: npt.NDArray[Any], last: int) -> int | None:
    """The first integer that no row of a table has, counted from either end."""
    if not np.issubdtype(ids.dtype, np.integer):
        return None
    outside = ids[(ids > last) | (ids < -last - 1)]
    return int(outside[0]) if outside.size else None


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; integers always are."""
    return not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())
