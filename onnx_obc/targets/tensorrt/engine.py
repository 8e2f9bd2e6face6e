"""TensorRT through its command-line tool trtexec, which builds an engine, times it, and tells its layers.

trtexec is looked for in $ONNX_OBC_TRTEXEC and on the PATH. Formats of its files are those of the developer guide,
"trtexec" and "Inspecting the Engine".
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...core.arrays import Feed
from ...core.errors import EngineError, one_line
from ..engine import Kernel
from ..finding import Finding

SETTING = "ONNX_OBC_TRTEXEC"
TIMEOUT = 3600.0  # seconds; building an engine tries many kernels
PRECISIONS = {
    "INT8": "int8",
    "HALF": "float16",
    "FP16": "float16",
    "FLOAT": "float32",
    "FP32": "float32",
    "FP8": "float8",
}
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")


def version() -> str:
    """Name and version. Raises EngineError if there is no trtexec, or no GPU that it can use."""
    program = find_trtexec()
    if not has_gpu():
        raise EngineError("tensorrt builds engines on the GPU that they are for, and CUDA finds none here")
    done = _call([program, "--help"], 60)
    found = re.search(r"TensorRT[ .]v?(\d[\d.]*)", done)
    return f"tensorrt {found[1] if found else 'of an unknown version'}"


def load(path: Path, feed: Feed, threads: int | None) -> TensorrtModel:
    """A file, built into an engine for the shapes of this feed. Raises EngineError if it is refused."""
    return TensorrtModel(path, feed)


def has_gpu() -> bool:
    """Whether CUDA's driver is here and sees a GPU."""
    count = ctypes.c_int()
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def find_trtexec() -> str:
    """The path of trtexec. Raises EngineError if it is not there."""
    found = os.environ.get(SETTING) or shutil.which("trtexec")
    if not found or not Path(found).is_file():
        raise EngineError(
            f"tensorrt is not installed: no trtexec is on the PATH; install TensorRT, or set {SETTING} to where it is"
        )
    return found


def trtexec_command(path: Path | str, feed: Mapping[str, tuple[int, ...]], program: str = "trtexec") -> list[str]:
    """The command that builds and times a file for inputs of these shapes, as a user would run it by hand.

    int8 is enabled only for a file with Q/DQ: without, TensorRT would make up scales. Sparse kernels always are.
    """
    graph = ir.load(path).graph if Path(path).exists() else None
    quantized = graph is not None and any(node.op_type == "DequantizeLinear" for node in graph)
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in feed.items() if shape)
    free = graph is not None and any(
        value.shape is None or not all(isinstance(size, int) for size in value.shape) for value in graph.inputs
    )
    command = [program, f"--onnx={path}", "--fp16", *(["--int8"] if quantized else []), "--sparsity=enable"]
    return [*command, *([f"--shapes={shapes}"] if shapes and free else [])]


class TensorrtModel:
    """A file built by trtexec; see `Loaded`."""

    supported: float | None = None

    def __init__(self, path: Path, feed: Feed) -> None:
        self._program = find_trtexec()
        self._scratch = tempfile.TemporaryDirectory(prefix="onnx-obc-")
        self._folder = Path(self._scratch.name)
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        command = trtexec_command(path.resolve(), shapes, self._program)
        self._shapes = [part for part in command if part.startswith("--shapes")]
        layers = self._folder / "layers.json"
        detail = ["--profilingVerbosity=detailed", f"--exportLayerInfo={layers}", "--skipInference"]
        try:
            _call([*command, f"--saveEngine={self._folder / 'engine'}", *detail], TIMEOUT)
            self._layers = _read(layers)
        except BaseException:
            self.close()
            raise

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs by name. Raises EngineError."""
        into = self._folder / "outputs.json"
        self._again(feed, ["--iterations=1", "--warmUp=0", "--duration=0", f"--exportOutput={into}"])
        return outputs_of(_read(into))

    def seconds(self, feed: Feed, repeats: int) -> list[float]:
        """The GPU's time of each of so many runs, copies between it and the host not counted."""
        into = self._folder / "times.json"
        self._again(feed, [f"--iterations={repeats}", "--duration=0", "--useCudaGraph", f"--exportTimes={into}"])
        return [float(entry["computeMs"]) / 1e3 for entry in _read(into)][-repeats:]

    def kernels(self, feed: Feed, repeats: int) -> list[Kernel]:
        """The engine's layers, with the medians of their times."""
        into = self._folder / "profile.json"
        self._again(feed, [f"--iterations={repeats}", "--duration=0", "--dumpProfile", f"--exportProfile={into}"])
        return kernels_of(self._layers, _read(into))

    def close(self) -> None:
        """Remove the engine."""
        self._scratch.cleanup()

    def _again(self, feed: Feed, options: list[str]) -> None:
        names = []
        for index, (name, array) in enumerate(feed.items()):
            place = self._folder / f"input{index}"
            place.write_bytes(np.ascontiguousarray(array).tobytes())
            names.append(f"{name}:{place}")
        engine = f"--loadEngine={self._folder / 'engine'}"
        _call([self._program, engine, *self._shapes, f"--loadInputs={','.join(names)}", *options], TIMEOUT)


def outputs_of(plain: Any) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of --exportOutput: [{"name", "dimensions": "1x10", "values": […]}]."""
    found: dict[str, npt.NDArray[np.generic]] = {}
    for entry in plain:
        shape = [int(size) for size in re.findall(r"\d+", str(entry["dimensions"]))]
        found[str(entry["name"])] = np.array(entry["values"], np.float32).reshape(shape)
    return found


def kernels_of(layers: Any, profile: Any) -> list[Kernel]:
    """Kernels of --exportLayerInfo {"Layers": […]} and --exportProfile [{"count"}, {"name", "medianMs"}, …]."""
    times = {str(x["name"]): float(x.get("medianMs", x.get("averageMs", 0.0))) / 1e3 for x in profile if "name" in x}
    makers: dict[str, int] = {}
    found: list[Kernel] = []
    for layer in layers["Layers"]:
        name, tactic = str(layer["Name"]), str(layer.get("TacticName", ""))
        inputs = layer.get("Inputs", [])
        nodes = tuple(dict.fromkeys(ONNX_LAYER.findall(str(layer.get("Metadata", "")))))
        sources = tuple(sorted({makers[x["Name"]] for x in inputs if x["Name"] in makers}))
        for output in layer.get("Outputs", []):
            makers[output["Name"]] = len(found)
        # Sparse tensor-core kernels say so in their names; they skip half of the weights.
        sparsity = 0.5 if "sparse" in tactic.lower() or "_sp" in tactic.lower() else None
        op = str(layer.get("ParameterType", layer["LayerType"]))
        found.append(Kernel(name, op, nodes, _precision(inputs), sources, times.get(name, 0.0), sparsity))
    return found


def _precision(inputs: Any) -> str:
    """What a layer multiplies: the type of its first input, which stands at the front of "Format/Datatype"."""
    text = str(inputs[0].get("Format/Datatype", "")).upper() if inputs else ""
    return next((plain for name, plain in PRECISIONS.items() if re.search(rf"\b{name}\b", text)), "")


def _call(command: list[str], timeout: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"trtexec did not end within {timeout:g} s; try a smaller batch") from error
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be started ({error.strerror}); check {SETTING}") from error
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if "[E]" in line] or [done.stderr[-300:]]
        raise EngineError(f"trtexec failed (exit code {done.returncode}): {one_line(Exception(' | '.join(said[:3])))}")
    return done.stdout + done.stderr


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"trtexec wrote no {path.name} that can be read ({one_line(error)}); report it") from error


def build_elsewhere(path: Path, feed: Feed, name: str) -> Finding:
    """How to build the file where there is a GPU."""
    command = trtexec_command(path, {name: tuple(array.shape) for name, array in feed.items()})
    told = shlex.join(part.replace(str(path), name) for part in command)
    return Finding("note", "trtexec", "", f"not built here; where TensorRT is: {told}")
