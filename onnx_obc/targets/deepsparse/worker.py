"""Runs in DeepSparse's own environment: reads one request a line from stdin, writes one answer a line to stdout.

Imports nothing of this package. Arrays go through .npz files that requests name. Requests, as JSON:
    {"do": "load", "path", "feed", "threads"}            → {"version", "supported"}
    {"do": "run", "feed", "into"}                        → {}, outputs in order in the file `into`
    {"do": "seconds", "feed", "repeats"}                 → {"seconds": […]}
    {"do": "kernels", "feed", "repeats"}                 → {"layers": […]}
What goes wrong in Python comes back as {"error": text}; what kills the process is for the other side to see.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

# What the engine itself prints must not come between the answers.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def main() -> None:
    """Answer requests until there are no more."""
    import deepsparse  # type: ignore[import-not-found]

    state: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = ACTIONS[request["do"]](deepsparse, state, request)
        except Exception as error:  # everything is told to the other side, which raises it
            answer = {"error": f"{type(error).__name__}: {error}"}
        ANSWERS.write(json.dumps(answer) + "\n")
        ANSWERS.flush()


def load(deepsparse: Any, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Load a file for the shapes of a feed."""
    inputs = read(request["feed"])
    batch = int(inputs[0].shape[0])
    shapes = "[" + ",".join(str(list(array.shape)) for array in inputs) + "]"
    options = {"batch_size": batch, "num_cores": request["threads"], "input_shapes": shapes}
    state.update(path=request["path"], options=options, engine=deepsparse.Engine(request["path"], **options))
    return {"version": deepsparse.__version__, "supported": float(state["engine"].fraction_of_supported_ops)}


def run(deepsparse: Any, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Run a feed and write its outputs."""
    outputs = state["engine"].run(read(request["feed"]))
    np.savez(request["into"], **{f"{index:04d}": array for index, array in enumerate(outputs)})
    return {}


def seconds(deepsparse: Any, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Time runs, after one that is not counted."""
    inputs, engine, found = read(request["feed"]), state["engine"], []
    for _ in range(request["repeats"] + 1):
        began = time.perf_counter()
        engine.run(inputs, val_inp=False)
        found.append(time.perf_counter() - began)
    return {"seconds": found[1:]}


def kernels(deepsparse: Any, state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What the engine runs, with times."""
    from deepsparse.engine import model_debug_analysis  # type: ignore[import-not-found]

    options = dict(state["options"], num_iterations=request["repeats"], num_warmup_iterations=1)
    found = model_debug_analysis(state["path"], read(request["feed"]), **options)
    return {"layers": [flat(layer) for layer in found["layer_info"]]}


def flat(layer: dict[str, Any]) -> dict[str, Any]:
    """What of a layer the other side needs, of the layers within it too."""
    return {
        "name": layer["name"],
        "values": layer["canonical_name"],
        "milliseconds": layer["average_run_time_in_ms"],
        "sparsity": layer["kernel_sparsity"],
        "parts": [flat(part) for part in layer.get("sub_layer_info", [])],
    }


def read(path: str) -> list[Any]:
    """The arrays of a file, in the order of their names."""
    with np.load(path) as arrays:
        return [np.ascontiguousarray(arrays[name]) for name in sorted(arrays.files)]


ACTIONS = {"load": load, "run": run, "seconds": seconds, "kernels": kernels}

if __name__ == "__main__":
    main()
