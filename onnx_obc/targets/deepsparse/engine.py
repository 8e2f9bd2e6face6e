"""DeepSparse, in an environment of its own: a worker process that exchanges JSON lines; see worker.py.

Its last release, 1.8.0, needs Python up to 3.11, onnx below 1.15 and numpy below 2. tools/make_deepsparse_env.sh makes
such an environment. It is looked for in $ONNX_OBC_DEEPSPARSE, a folder or its Python, and as `.deepsparse` in the
working folder and beside the package.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...core.arrays import Feed
from ...core.errors import EngineError, one_line
from ...core.machine import workers
from ...graph.save import files_of
from ..attribution import covered, node_name
from ..engine import Kernel

SETTING = "ONNX_OBC_DEEPSPARSE"
FOLDER = ".deepsparse"
WORKER = Path(__file__).with_name("worker.py")
TIMEOUT = 600.0  # seconds for one request; compiling a large model takes a minute or two
LINES = 3  # of what a worker that died wrote last, in the error


def version() -> str:
    """Name and version. Raises EngineError if there is no environment for it."""
    code = "import importlib.metadata as m; print(m.version('deepsparse'))"
    try:
        found = subprocess.run([find_python(), "-c", code], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = one_line(Exception(getattr(error, "stderr", None) or str(error)))[-300:]
        raise EngineError(f"{find_python()} has no deepsparse ({said}); run tools/make_deepsparse_env.sh") from error
    return f"deepsparse {found.stdout.strip()}"


def load(path: Path, feed: Feed, threads: int | None) -> DeepsparseModel:
    """A file, compiled for the shapes of this feed. Raises EngineError if it is refused, or the engine crashes."""
    return DeepsparseModel(path, feed, threads)


def find_python() -> str:
    """The Python of DeepSparse's environment. Raises EngineError if there is none."""
    places = [Path.cwd() / FOLDER, Path(__file__).parents[3] / FOLDER]
    if setting := os.environ.get(SETTING):
        places = [Path(setting)]
    for place in places:
        python = place if place.is_file() else place / "bin" / "python"
        if python.is_file():
            return str(python)
    raise EngineError(
        f"deepsparse is not installed: no Python in {' or '.join(map(str, places))}; make an environment with "
        f"tools/make_deepsparse_env.sh, or set {SETTING} to one that has deepsparse"
    )


class DeepsparseModel:
    """A file in a worker process; see `Loaded`. supported: the fraction of operations that DeepSparse itself runs."""

    def __init__(self, path: Path, feed: Feed, threads: int | None) -> None:
        self._path = path
        graph = ir.load(path).graph
        stored = set(graph.initializers)
        self._inputs = [str(value.name) for value in graph.inputs if value.name not in stored]
        self._outputs = [str(value.name) for value in graph.outputs]
        self._worker = Worker()
        try:
            for file in files_of(path):  # a copy, as DeepSparse writes the shapes of its input into the file
                copy = self._worker.folder / file.relative_to(path.parent)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            place = self._worker.folder / path.name
            request = {"do": "load", "path": str(place), "threads": workers(threads)}
            self.supported: float | None = float(self._ask(request, feed)["supported"])
        except BaseException:
            self.close()
            raise

    def run(self, feed: Feed) -> dict[str, npt.NDArray[np.generic]]:
        """The outputs by name. Raises EngineError."""
        into = self._worker.folder / "outputs.npz"
        self._ask({"do": "run", "into": str(into)}, feed)
        with np.load(into) as arrays:
            return {name: arrays[key] for name, key in zip(self._outputs, sorted(arrays.files), strict=True)}

    def seconds(self, feed: Feed, repeats: int) -> list[float]:
        """The time of each of so many runs, measured in the worker, after one that is not counted."""
        return [float(x) for x in self._ask({"do": "seconds", "repeats": repeats}, feed)["seconds"]]

    def kernels(self, feed: Feed, repeats: int) -> list[Kernel]:
        """The engine's own list of what it runs, with its mean times. Kernels are one after the other: each is taken to
        read the one before, as the list does not say what it reads."""
        layers = self._ask({"do": "kernels", "repeats": repeats}, feed)["layers"]
        graph = ir.load(self._path).graph
        values = {str(value.name): node for node in graph for value in node.outputs}
        owners: dict[ir.Node, int] = {}
        for index, layer in enumerate(layers):
            for name in layer["values"].split(","):
                if name in values:
                    owners.setdefault(values[name], index)
        nodes = covered(graph, owners)
        integer = {node_name(node) for node in graph if node.op_type in ("ConvInteger", "MatMulInteger")}
        found = []
        for index, layer in enumerate(layers):
            own = tuple(nodes.get(index, ()))
            fallback = layer["name"].startswith("Naive Subgraph")
            precision = "" if fallback else "int8" if integer & set(own) else "float32"
            before = (index - 1,) if index else ()
            seconds = float(layer["milliseconds"]) / 1e3
            found.append(
                Kernel(layer["name"], _kind(layer["name"]), own, precision, before, seconds, layer["sparsity"])
            )
        return found

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _ask(self, request: dict[str, Any], feed: Feed) -> Any:
        if missing := [name for name in self._inputs if name not in feed]:
            raise EngineError(f"deepsparse failed: {self._path} has an input {missing[0]} that the data lacks")
        place = self._worker.folder / "feed.npz"
        np.savez(place, **{f"{i:04d}": np.asarray(feed[name]) for i, name in enumerate(self._inputs)})  # type: ignore[arg-type]
        return self._worker.ask({**request, "feed": str(place)})


class Worker:
    """A process that answers requests, its folder for arrays, and what it wrote to stderr."""

    def __init__(self, command: list[str] | None = None, timeout: float = TIMEOUT) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="onnx-obc-")
        self.folder = Path(self._scratch.name)
        self._timeout = timeout
        self._said = (self.folder / "stderr").open("wb")
        command = command or [find_python(), "-I", str(WORKER)]  # isolated, or it would import this very module
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment
            )
        except OSError as error:
            self._said.close()
            self._scratch.cleanup()
            raise EngineError(f"{command[0]} cannot be started ({error.strerror}); check {SETTING}") from error

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer to a request. Raises EngineError if the worker says what is wrong, dies, or takes too long."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise self._died(request) from None
        line = self._line(self._process.stdout, request)
        try:
            answer = json.loads(line)
        except ValueError:
            raise EngineError(f"deepsparse: the worker answered {line[:80]!r} to {request['do']}; report it") from None
        if "error" in answer:
            raise EngineError(f"deepsparse cannot {request['do']} the file: {one_line(Exception(answer['error']))}")
        return answer

    def close(self) -> None:
        """End the process, and wait until it has gone."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # a request that the worker did not live to read
                    continue
        self._scratch.cleanup()

    def _line(self, stream: Any, request: dict[str, Any]) -> bytes:
        """The next line, waiting no longer than the timeout."""
        pipe: BinaryIO = stream.raw if hasattr(stream, "raw") else stream
        found, until = b"", time.monotonic() + self._timeout
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not ready.select(max(0.0, until - time.monotonic())):
                    self._process.kill()
                    raise EngineError(
                        f"deepsparse did not answer to {request['do']} within {self._timeout:g} s and was ended; "
                        "try a smaller batch"
                    )
                part = os.read(pipe.fileno(), 1 << 16)
                if not part:
                    raise self._died(request)
                found += part
        return found

    def _died(self, request: dict[str, Any]) -> EngineError:
        """What there is to say about a worker that is gone."""
        code = self._process.wait()
        self._said.flush()
        lines = (self.folder / "stderr").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = one_line(Exception(" | ".join(lines[-LINES:])))[-400:] or "it said nothing"
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return EngineError(f"deepsparse crashed ({how}) while it was to {request['do']} the file: {said}")


def _kind(name: str) -> str:
    """The engine's name of a kernel without its number and sparsity."""
    return name.split("-")[0].rstrip("0123456789_ ") or name
