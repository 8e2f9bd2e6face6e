"""Whether results are still what they were: compresses models as the entries of results/reference.yaml say.

    python -m benchmarks.regression                # the demo model, and what else is there of the cheap ones
    python -m benchmarks.regression --all          # those too that take minutes
    python -m benchmarks.regression --update       # write what was measured as the new reference

An entry names a model, a recipe, and what came of it: `score`, `loss` (of the outputs, against the dense model),
`cpu` (CPU seconds of the command, relative to the same with `--solver baseline`) and `memory` (MiB at its peak). Exits
with 1 if a score is lower, or a loss higher, than the reference by more than its tolerance, or an entry has none yet;
time and memory, which depend on the machine, are only told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from benchmarks.common.evaluation import Score, output_loss
from benchmarks.common.processes import Run, run
from benchmarks.common.subjects import Subject, find_subjects
from onnx_obc.calibration.options import DataOptions
from onnx_obc.runtime.session import open_session

REFERENCE = Path(__file__).parent / "results" / "reference.yaml"
MODELS = Path(__file__).parents[1] / "models"
LONGEST = 3600.0  # seconds that one command may take
DIGITS = "digits"
FIGURES, HELD = ("score", "loss", "cpu", "memory"), ("score", "loss")


@dataclass(frozen=True)
class Tolerance:
    """absolute: in the figure's unit; relative: of the reference. The larger of the two counts."""

    absolute: float
    relative: float

    def allows(self, worse: float, reference: float) -> bool:
        """Whether a figure may be worse than the reference by so much."""
        return worse <= max(self.absolute, self.relative * abs(reference))


def digits() -> Subject:
    """The demo model, scored on digits that calibrate nothing."""
    test = np.load(MODELS / "digits_test.npz")

    def score(path: Path, dense: npt.NDArray[np.generic] | None) -> Score:
        (outputs,) = open_session(path, device="cpu").run({"image": test["image"]}).values()
        predicted = outputs.argmax(axis=1)  # (samples,)
        agreement = None if dense is None else float(np.mean(predicted == dense))
        return Score(float(np.mean(predicted == test["label"])), predicted, agreement, outputs)

    data = MODELS / "digits_calibration.npz"
    return Subject(DIGITS, MODELS / "digits.onnx", "top-1", True, data, data, DataOptions(), score)


def measured(subject: Subject, recipe: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """The figures of one entry."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(dict(recipe)), encoding="utf-8")
    simple = _compress(subject, file, folder, ["--solver", "baseline"])
    ours = _compress(subject, file, folder, [])
    dense = subject.score(subject.path, None)
    found = subject.score(folder / "out.onnx", dense.predictions)
    return {
        "score": found.value,
        "loss": output_loss(dense, found, subject.classifier),
        "cpu": ours.cpu_seconds / simple.cpu_seconds,
        "memory": ours.peak_bytes / 2**20,
    }


def _compress(subject: Subject, recipe: Path, folder: Path, more: list[str]) -> Run:
    given = {name: getattr(subject.options, name) for name in ("preprocess", "samples", "tokenizer")}
    data = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "onnx_obc.cli.main", subject.path, folder / "out.onnx", "--recipe", recipe]
    command += ["--calib", subject.calibration, *data, *more, "--quiet"]
    took = run(command, Path.cwd(), folder / "log", LONGEST)
    if took.error is not None:
        sys.exit(f"{subject.name}: {took.error}")
    return took


def compare(entry: Mapping[str, Any], found: Mapping[str, float], tolerances: Mapping[str, Tolerance]) -> list[str]:
    """What is worse than an entry says by more than it may be, a line each."""
    if "score" not in entry:
        return [f"{entry['model']}, {entry['level']}: no reference yet; run it with --update"]
    lines = []
    for name in HELD:
        reference = float(entry[name])
        worse = reference - found[name] if name == "score" else found[name] - reference
        if not tolerances[name].allows(worse, reference):
            lines.append(f"{entry['model']}, {entry['level']}: {name} {found[name]:.4g}, was {reference:.4g}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--all", action="store_true", help="the entries that take minutes as well")
    parser.add_argument("--update", action="store_true", help="write what was measured into the file")
    options = parser.parse_args()
    reference = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    tolerances = {name: Tolerance(**reference["tolerances"][name]) for name in HELD}
    worse: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        names = tuple(dict.fromkeys(x["model"] for x in reference["entries"] if options.all or x["cheap"]))
        others = tuple(name for name in names if name != DIGITS)
        subjects = {
            x.name: x for x in (digits(), *find_subjects(options.models, options.shared, Path(scratch), others))
        }
        for entry in reference["entries"]:
            if entry["model"] not in subjects or not (options.all or entry["cheap"]):
                continue
            subject = subjects[entry["model"]]
            with tempfile.TemporaryDirectory() as folder:
                found = measured(subject, entry["recipe"], Path(folder))
            figures = ", ".join(f"{name} {found[name]:.4g} ({entry.get(name, 'not yet')})" for name in FIGURES)
            print(f"{subject.name}, {entry['level']}: {figures}", flush=True)
            worse += compare(entry, found, tolerances)
            if options.update:
                entry |= {name: float(f"{found[name]:.4g}") for name in FIGURES}
    if options.update:
        text = REFERENCE.read_text(encoding="utf-8").split("entries:\n")[0]
        entries = "".join(f"- {json.dumps(entry, ensure_ascii=False)}\n" for entry in reference["entries"])
        REFERENCE.write_text(f"{text}entries:\n{entries}", encoding="utf-8")
    elif worse:
        sys.exit("worse than the reference:\n" + "\n".join(worse))


if __name__ == "__main__":
    main()
