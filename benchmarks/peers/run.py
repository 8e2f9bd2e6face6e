"""Other people's quantizers beside ours: the same models, the same calibration samples, the same evaluation.

    python -m benchmarks.peers.environments                        # once: an environment for every peer
    python -m benchmarks.peers.run                                 # everything: hours on two cores
    python -m benchmarks.peers.run --only ResNet-20 --peer nncf
    python -m benchmarks.peers.run --quick                         # ours and onnxruntime at W8A8 on ResNet-20

Every method runs as a process of its own, in the environment of its tool, on the same 256 samples: .npz files with the
model's inputs, preprocessed. What it writes is read and judged here.

A finished row is added to benchmarks/results/peers.jsonl at once, and rows that are there are not run again. A method
that fails, or writes a file that onnxruntime does not run, has the message for its row.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.harness import Rows, arguments, measure
from benchmarks.common.processes import run
from benchmarks.common.subjects import Subject, find_subjects, open_data
from benchmarks.peers.catalogue import LEVELS, OURSELVES, PEERS, Offer
from benchmarks.peers.environments import ENVIRONMENTS, installed_bytes, python_of, version_of
from benchmarks.peers.evaluate import Evaluator
from benchmarks.peers.page import page, table
from onnx_obc import DataOptions
from onnx_obc.graph.model import read_model

DRIVERS = Path(__file__).parent / "drivers"
KEY = ("model", "level", "peer", "method")
SAMPLES = 256
QUICK = (OURSELVES, "onnxruntime")


def write_calibration(model: Path, data: object, options: DataOptions, folder: Path) -> None:
    """The calibration samples of a model as .npz files of one feed each; no feed has padding."""
    folder.mkdir()
    for number, feed in enumerate(open_data(read_model(model), data, options).feeds()):
        np.savez(folder / f"{number:03d}.npz", allow_pickle=False, **feed)


def missing(subject: Subject, options: argparse.Namespace, rows: Rows) -> Iterator[tuple[str, Offer]]:
    """Methods whose rows are not there, and whose environments are."""
    for peer, about in PEERS.items():
        if options.peer and peer not in options.peer:
            continue
        if not python_of(peer, options.environments).exists():
            print(f"{peer} is skipped: no environment; see python -m benchmarks.peers.environments")
            continue
        for offer in about.offers:
            chosen = subject.name in offer.models and offer.level in options.levels
            chosen &= not options.method or offer.method in options.method
            if chosen and (subject.name, offer.level, peer, offer.method) not in rows:
                yield peer, offer


def work(subject: Subject, rows: Rows, scratch: Path, options: argparse.Namespace) -> None:
    """Add the rows of one model that are not there yet."""
    wanted = list(missing(subject, options, rows))
    if not wanted:
        return
    calibration, evaluator = scratch / subject.path.stem, Evaluator(subject)
    write_calibration(subject.path, subject.calibration, replace(subject.options, samples=SAMPLES), calibration)
    for peer, offer in wanted:
        row = {
            "model": subject.name,
            "level": offer.level,
            "peer": peer,
            "method": offer.method,
            "version": version_of(python_of(peer, options.environments), PEERS[peer].package),
            "metric": subject.metric,
            "dense": evaluator.dense.value,
            "dense_bytes": subject.path.stat().st_size,
            "calibration_samples": SAMPLES,
            "evaluation_samples": len(evaluator.dense.predictions),
            "compared_samples": evaluator.samples,
            **({} if peer == OURSELVES else {"installed_bytes": installed_bytes(peer, options.environments)}),
            **attempt(subject, peer, offer.method, calibration, evaluator, options),
        }
        rows.add(row)
        print({name: value for name, value in row.items() if name not in ("version", "metric")}, flush=True)


def attempt(
    subject: Subject, peer: str, method: str, calibration: Path, evaluator: Evaluator, options: argparse.Namespace
) -> dict[str, Any]:
    """Run one method on a copy of the model, since ModelOpt writes into its input, and judge what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        model, output, log = (Path(folder) / name for name in ("model.onnx", "output.onnx", "log.txt"))
        shutil.copyfile(subject.path, model)
        command: list[str | Path] = [
            *(python_of(peer, options.environments), DRIVERS / f"use_{peer.replace('-', '_')}.py"),
            *("--model", model, "--calibration", calibration.absolute()),
            *("--method", method, "--output", output),
        ]
        ended = run(command, Path(folder), log, options.timeout)
        took = {"seconds": ended.seconds, "cpu_seconds": ended.cpu_seconds, "peak_bytes": ended.peak_bytes}
        if options.logs is not None:
            options.logs.mkdir(exist_ok=True)
            kept = f"{subject.name} {peer} {method}.txt".replace("/", "-").replace(" ", "_")
            (options.logs / kept).write_bytes(log.read_bytes())
        if ended.error is not None:
            return took | {"error": ended.error}
        if not output.exists():
            return took | {"error": "no file was written, and no error told"}
        return took | evaluator.worth(output)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--peer", choices=list(PEERS), action="append", help="only this tool; may be given again")
    parser.add_argument("--method", action="append", help="only this method, as the page calls it")
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS), help="only these levels")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where the peers' environments are")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a method may take")
    parser.add_argument("--logs", type=Path, help="keep what the methods say in this folder")
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)} at W8A8 on ResNet-20")
    options = parser.parse_args()
    if options.quick:
        options.peer, options.levels = QUICK, ["W8A8"]
        rows = Rows(None, KEY)
        with tempfile.TemporaryDirectory() as scratch:
            for subject in find_subjects(options.models, options.shared, Path(scratch), ("ResNet-20",)):
                work(subject, rows, Path(scratch), options)
    else:
        rows = measure(
            "peers",
            KEY,
            options,
            lambda subject, rows, scratch: work(subject, rows, scratch, options),
            page,
            lambda row: row["level"] in options.levels and (not options.peer or row["peer"] in options.peer),
        )
    print(table(rows.rows))


if __name__ == "__main__":
    main()
