"""Reports that nobody made, as plain values, of any size and with hostile names."""

from __future__ import annotations

from typing import Any

import numpy as np

LEVELS = ("int8", "int4-asym", "2:4+int8", "sparse-0.60+int4")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def make_report(count: int = 6, names: tuple[str, ...] = (), **others: Any) -> dict[str, Any]:
    """A report of so many layers, and one that was left as it is, with everything that a page shows."""
    random = np.random.default_rng(count)
    names = (*names, *(f"/features/block.{i}/conv/Conv" for i in range(len(names), count)))
    layers = [make_layer(name, random) for name in names]
    histogram = {"low": -1.5, "high": 2.0, "counts": [int(x) for x in random.integers(0, 5000, 64)]}
    weights = {
        name: {
            "histogram": {"low": -0.5, "high": 0.6, "counts": [int(x) for x in random.integers(0, 900, 64)]},
            "grid": {
                "scale": 0.013,
                "zero_point": 7,
                "bits": 4,
                "symmetric": False,
                "smallest": 0.004,
                "largest": 0.02,
            },
            "nodes": [name],
            "input": f"{name}_input",
        }
        for name in names
    }
    middle = count // 2
    plain = {
        "schema": 1,
        "version": "0.1.0",
        "model": "models/net.onnx",
        "output": "out/net.onnx",
        "command": ["models/net.onnx", "out/net.onnx", "--calib", "my data"],
        "versions": {"onnx-obc": "0.1.0", "onnxruntime": "1.22.0", "numpy": "2.0.0", "python": "3.11.7"},
        "machine": "a processor, 2 cores",
        "recipe": {"weights": "int8", "target": "onnxruntime", "seed": 0, "layers": []},
        "calibration": {"source": "samples of x.npz", "synthetic": False, "samples": 90, "held_out": 10},
        "search": None,
        "order": [*names[:middle], "/odd/Conv", *names[middle:]],
        "layers": layers,
        "weights": weights,
        "left_out": [{"name": "/odd/Conv", "op": "Conv", "reason": "its weight is no constant"}],
        "embeddings": [],
        "activations": {f"{name}_input": [-1.0, 1.8] for name in names},
        "histograms": {f"{name}_input": histogram for name in names},
        "corrections": [
            {"kinds": ["bias"], "sites": 3, "loss_before": 0.2, "loss_after": 0.1, "kept": True},
            {"kinds": ["norm"], "sites": 2, "loss_before": 0.1, "loss_after": 0.3, "kept": False},
        ],
        "outputs": [{"name": "logits", "sqnr_db": 24.1, "top1_agreement": 0.9, "not_finite": []}],
        "worst": [
            {
                "name": f"data/{i}.png",
                "loss": 0.5 / (i + 1),
                "sqnr_db": 9.0,
                "dense_class": 3,
                "found_class": i,
                "image": PIXEL,
            }
            for i in range(8)
        ],
        "output_loss": 0.012,
        "checks": [{"name": "weights", "passed": True, "detail": "they dequantize bit for bit"}],
        "engine": {"runtime": "onnxruntime 1.22.0", "ran": True, "quantized": 6, "in_integers": 5},
        "notes": ["9 nodes folded away"],
        "seconds": {"solve": 2.5, "total": 4.0},
        "file_bytes_before": 4_000_000,
        "file_bytes_after": 1_000_000,
    }
    return {**plain, **others}


def make_layer(name: str, random: np.random.Generator) -> dict[str, Any]:
    """A layer with plausible figures."""
    loss = float(10 ** random.uniform(-6, -2))
    rows, columns = int(random.integers(8, 512)), int(random.integers(9, 2304))
    return {
        "name": name,
        "op": "Conv",
        "groups": 1,
        "rows": rows,
        "columns": columns,
        "level": LEVELS[int(random.integers(len(LEVELS)))],
        "activations": "int8",
        "solver": "exact",
        "loss_predicted": 5 * loss,
        "loss_greedy": 6 * loss,
        "loss_measured": 5 * loss,
        "loss_bound": 3 * loss,
        "loss": 4 * loss,
        "loss_relative": loss,
        "loss_baseline": 12 * loss,
        "baseline_relative": 3 * loss,
        "ordered_over_exact": None,
        "zeros": 0.04,
        "damping": 0.01,
        "dead_columns": 0,
        "positions": 4000,
        "seconds": float(random.uniform(0.1, 3)),
        "bytes_before": 4 * rows * columns,
        "bytes_after": rows * columns,
        "notes": ["its first note"] if random.random() < 0.2 else [],
    }


def budgets(*asked: str, count: int = 6) -> list[dict[str, Any]]:
    """The reports of several budgets; the last one left its first layer in float."""
    found = []
    for number, budget in enumerate(asked, 2):
        costs = {"bops": 1 / (4 * number), "size": 1 / number}
        search = {"budget": budget, "search": "dp", "sensitivity": "output", "predicted_loss": 0.1, "costs": costs}
        others = {
            "output": f"out/net-{number}.onnx",
            "output_loss": 0.01 * number,
            "file_bytes_after": 4_000_000 // number,
        }
        found.append(make_report(count, search={**search, "latency": None}, **others))
    first, *rest = found[-1]["layers"]
    left = {"name": first["name"], "op": first["op"], "reason": "float, as the budget allows"}
    found[-1] = {**found[-1], "layers": rest, "left_out": [left, *found[-1]["left_out"]]}
    return found
