"""Whether `onnx-obc debug` finds a layer that was damaged on purpose, and what it says of other quantizers' files.

    python -m benchmarks.quality.debugging
    python -m benchmarks.quality.debugging --only MiniLM

A healthy int8 file of this tool is damaged in one layer, ten times, and debugged; then files of onnxruntime's
quantizer, ModelOpt and NNCF, which run in the environments of benchmarks/peers (left out where there are none). Rows
are kept in benchmarks/results/debugging.jsonl: a finished one is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.subjects import Subject, open_data
from benchmarks.common.tables import machine, markdown
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from onnx_obc import DataOptions, Recipe, compress, debug_models
from onnx_obc.debug.record import Debug, to_db
from onnx_obc.graph.model import read_model
from onnx_obc.runtime.session import open_session
from onnx_obc.runtime.sqnr import agreement_db
from tests.damaged import Wounded

DRIVERS = Path(__file__).parents[1] / "peers" / "drivers"
TRIALS, SAMPLES = 10, 32
OTHERS = (
    ("onnxruntime", "static min/max"),
    ("onnxruntime", "dynamic"),
    ("onnxruntime", "static min/max, int4 weights"),
    ("modelopt", "int8 entropy, float32"),
    ("modelopt", "int8 max, float32"),
    ("modelopt", "int8 entropy, float16"),
    ("nncf", "ptq"),
)


def work(subject: Subject, rows: Rows, scratch: Path) -> None:
    data = DataOptions(**{**vars(subject.options), "samples": SAMPLES})
    trials = [number for number in range(TRIALS) if (subject.name, f"trial {number}") not in rows]
    if trials:
        healthy = scratch / f"{subject.name}.onnx"
        fitting = DataOptions(**{**vars(subject.options), "samples": 256})
        compress(subject.path, str(subject.calibration), Recipe(), output=healthy, data=fitting)
        wounded = Wounded(onnx.load(healthy))
    for number in trials:
        model, damage = wounded.trial(number)
        began = time.perf_counter()
        found = debug_models(subject.path, model, str(subject.calibration), data=data)
        place = [row.layer for row in found.returns].index(damage.layer) + 1
        best = found.returns[0]
        rows.add(
            {
                "model": subject.name,
                "case": f"trial {number}",
                "kind": damage.kind,
                "layer": damage.layer,
                "place": place,
                "fault": found.returns[place - 1].fault == damage.fault,
                "loss": found.loss,
                "gained": best.gained,
                "second": found.returns[1].gained,
                "seconds": time.perf_counter() - began,
            }
        )
        print(rows.rows[-1], flush=True)
    if subject.name == "ResNet-20":
        feeds = _feeds(subject, scratch / "feeds")
        for tool, method in OTHERS:
            python = python_of(tool, ENVIRONMENTS)
            if python.exists() and (subject.name, f"{tool}: {method}") not in rows:
                output = scratch / "other.onnx"
                driver = [str(python), str(DRIVERS / f"use_{tool}.py"), "--model", str(subject.path.absolute())]
                driver += ["--calibration", str(feeds), "--method", method, "--output", str(output)]
                subprocess.run(driver, check=True, capture_output=True, cwd=DRIVERS)
                found = debug_models(subject.path, output, str(subject.calibration), data=data)
                rows.add(_other(subject, tool, method, found, output))
                print(rows.rows[-1], flush=True)


def _feeds(subject: Subject, folder: Path) -> Path:
    """Calibration feeds as the drivers read them."""
    folder.mkdir()
    options = DataOptions(**{**vars(subject.options), "samples": 128})
    for number, feed in enumerate(open_data(read_model(subject.path), subject.calibration, options).feeds()):
        np.savez(folder / f"{number:03d}.npz", **feed)  # type: ignore[arg-type]
    return folder


def _other(subject: Subject, tool: str, method: str, found: Debug, file: Path) -> Row:
    own = [row for row in found.values if row.weights is not None or row.activations is not None]
    worst = max(own, key=lambda row: max(row.weights or 0, row.activations or 0))
    by = "weights" if (worst.weights or 0) >= (worst.activations or 0) else "activations"
    models = [open_session(read_model(file), fuse=fuse) for fuse in (False, True)]
    feed = next(iter(open_data(read_model(file), subject.calibration, subject.options).feeds()))
    plain, fused = (model.run(feed) for model in models)
    return {
        "model": subject.name,
        "case": f"{tool}: {method}",
        "layers": len(found.layers),
        "matched": sum(layer.value is not None for layer in found.layers),
        "values": len(found.values),
        "db": to_db(found.outputs[0].error),
        "loss": found.loss,
        "weights_loss": found.weights_loss,
        "worst": worst.layer or worst.name,
        "by": by,
        "own_db": to_db(max(worst.weights or 0, worst.activations or 0)),
        "best": found.returns[0].layer,
        "gained": found.returns[0].gained,
        "gained_db": found.returns[0].gained_db,
        "fused_db": min(agreement_db(plain[name], fused[name]) for name in plain),
    }


def page(rows: Sequence[Row]) -> str:
    trials = [row for row in rows if row["case"].startswith("trial")]
    others = [row for row in rows if not row["case"].startswith("trial")]
    names = dict.fromkeys(row["model"] for row in trials)
    summary = [
        (
            name,
            str(len(of)),
            str(sum(row["place"] == 1 for row in of)),
            str(sum(row["place"] == 1 and row["fault"] for row in of)),
            f"{min(row['gained'] / max(row['second'], 1e-12) for row in of):.1f}",
        )
        for name in names
        for of in [[row for row in trials if row["model"] == name]]
    ]
    each = [
        (
            *(r["model"], r["kind"], r["layer"], str(r["place"]), "yes" if r["fault"] else "no"),
            *(f"{r['loss']:.3g}", f"{r['gained']:.3g}", f"{r['second']:.3g}"),
        )
        for r in trials
    ]
    of_others = [
        (
            *(r["case"], f"{r['matched']} of {r['layers']}", str(r["values"]), f"{r['db']:.1f}", f"{r['loss']:.2e}"),
            *(f"{r['weights_loss']:.2e}", f"{r['worst']}, {r['by']}: {r['own_db']:.1f} dB"),
            *(r["best"], f"{r['gained']:.1e}", f"{r['gained_db']:+.2f}", f"{r['fused_db']:.0f}"),
        )
        for r in others
    ]
    first = ("model", "trials", "found", "with the right fault", "least gained / second")
    second = ("model", "damage", "layer", "place", "fault right", "loss", "gained", "second gains")
    third = ("file", "layers matched", "values", "dB", "loss", "loss, weights alone", "most error enters at")
    return f"""# Debugging

`python -m benchmarks.quality.debugging`, on {machine()}: {SAMPLES} samples of the calibration data.

## Layers damaged on purpose

A healthy int8 file of this tool, damaged in one layer: a scale 2.5 times too large or too small, rows of the weight
rotated, a square weight transposed, half of its rows zero, or the range of its input cut to a sixth to a twelfth.
*Found*: the damaged layer is the one whose return gains most. *With the right fault*: and weights or activations are
named rightly. *Least gained / second*: how many times more than the next layer it gains, in the closest trial.

{markdown(first, summary)}

{markdown(second, each, left=3)}

## Other quantizers' files

ResNet-20. *dB*: of the outputs; *loss*: the output loss, and with all activations back in float; *most error enters
at*: the place whose own error is largest; *gains most*: the layer whose return gains most, and what; *fused*: agreement
of the file with itself with the runtime's graph optimisations.

{markdown((*third, "gains most", "gained", "dB gained", "fused, dB"), of_others)}
"""


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__)
    options = parser.parse_args()
    options.only = options.only or ["ResNet-20", "MiniLM"]
    measure("debugging", ("model", "case"), options, work, page)


if __name__ == "__main__":
    main()
