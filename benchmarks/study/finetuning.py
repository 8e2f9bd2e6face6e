"""Prune or quantize, after fine-tuning: ResNet-20 at equal size, trained by either way, beside this tool's results.

    python -m benchmarks.study.finetuning                        # everything: about an hour on two cores
    python -m benchmarks.study.finetuning --bits 4 2 --only lsq --only gradual
    python -m benchmarks.study.finetuning --quick                # under a minute: checks, and a few iterations

The protocol is that of Kuzmin et al. (2023), "Pruning vs Quantization: Which is Better?", but all layers are counted by
the same rule. A finished row is added to benchmarks/results/finetuning.jsonl at once and is not run again; a training
goes on from its last whole epoch, kept in MODELS/finetuning.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.harness import RESULTS, Row, Rows
from benchmarks.common.subjects import Subject, find_subjects
from benchmarks.common.tables import machine, markdown
from benchmarks.study.training import (
    Gradual,
    Images,
    Lsq,
    Network,
    Rule,
    Schedule,
    accuracy,
    check_rules,
    open_network,
    read_images,
    train,
)
from onnx_obc import DataOptions, Recipe, compress
from onnx_obc.study.size import Mask, density

MODEL = "ResNet-20"
BITS = (8, 4, 3, 2)
MASKS: tuple[Mask, ...] = ("paper", "bitmap")
METHODS = ("tool-quantized", "tool-pruned", "dense", "lsq", "gradual")
KEY = ("method", "bits", "convention", "epochs")
MASK_NAMES = {"paper": "free", "bitmap": "one bit"}
QUICK, QUICK_METHODS = Schedule(epochs=1, batch=32, every=4), ("lsq", "gradual")


@dataclass(frozen=True)
class Job:
    """A row to be made. bits: the budget for each weight, None for the dense model. convention: of what is pruned."""

    method: str
    bits: int | None = None
    convention: Mask | None = None

    @property
    def pruned(self) -> bool:
        return self.convention is not None

    @property
    def density(self) -> float:
        """The share of weights that are kept."""
        if self.bits is None or self.convention is None:
            return 1.0
        kept = density(self.bits, self.convention)
        assert kept is not None  # two bits pay for any of these masks
        return kept

    def key(self, epochs: int) -> tuple[Any, ...]:
        return self.method, self.bits, self.convention, self.epochs(epochs)

    def epochs(self, epochs: int) -> int:
        return 0 if self.method.startswith("tool") else epochs

    def __str__(self) -> str:
        return " ".join(str(x) for x in (self.method, self.bits and f"{self.bits} bits", self.convention) if x)


def jobs(methods: Sequence[str], bits: Sequence[int]) -> list[Job]:
    """What the methods are run on, what takes little time first."""
    tool = [Job("tool-quantized", b) for b in bits] + [Job("tool-pruned", b, m) for b in bits for m in MASKS]
    trained = [[Job("lsq", b), *(Job("gradual", b, m) for m in MASKS)] for b in bits]
    return [job for job in itertools.chain(tool, [Job("dense")], *trained) if job.method in methods]


@dataclass(frozen=True, eq=False)
class Bench:
    """What jobs run on. work: the folder of checkpoints. threads: of the tool, None for all cores."""

    subject: Subject
    train: Images
    test: Images
    schedule: Schedule
    work: Path
    threads: int | None

    def network(self, job: Job) -> Network:
        """The dense model under the rule of a job."""
        if job.bits is None:
            return open_network(self.subject.path, lambda weights: Rule())
        rule = partial(Gradual, density=job.density) if job.pruned else partial(Lsq, bits=job.bits)
        return open_network(self.subject.path, rule)

    def checkpoint(self, job: Job) -> Path:
        """Where the last whole epoch of a job's training is kept."""
        size = job.density if job.pruned else job.bits
        return self.work / f"{job.method}-{size}-{self.schedule.epochs}.pt"


def post_training(bench: Bench, job: Job) -> dict[str, Any]:
    """What the tool makes of the model without training, with its default corrections."""
    what: dict[str, Any] = {"weights": f"int{job.bits}"}
    if job.pruned:
        what = {"weights": "float", "sparsity": f"{1 - job.density:.4f}"}
    recipe = Recipe(activations="none", sequential=False, reconstruction=False, threads=bench.threads, **what)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result = compress(bench.subject.path, bench.subject.calibration, recipe, path, data=bench.subject.options)
        seconds = time.perf_counter() - began
        score = bench.subject.score(path, None).value
    return {
        "accuracy": score,
        "seconds": seconds,
        "layers": len(result.report.layers),
        "layers_left_out": len(result.report.left_out),
        "corrections": [vars(attempt) for attempt in result.report.corrections],
    }


def fine_tuned(bench: Bench, job: Job) -> dict[str, Any]:
    """The accuracy when the model is rounded or pruned at once, and when it is trained."""
    at_once = bench.network(job)
    if isinstance(at_once.rule, Gradual):
        at_once.rule.prune(at_once.weights(), 1 - job.density)
    before = accuracy(at_once, bench.train, bench.test)

    network = bench.network(job)
    found = train(
        network,
        bench.train,
        bench.schedule,
        bench.checkpoint(job),
        lambda epoch, loss: print(f"{job}: epoch {epoch} of {bench.schedule.epochs}, loss {loss:.4f}", flush=True),
    )
    after = accuracy(network, bench.train, bench.test)
    used = network.used()
    row: dict[str, Any] = {
        "accuracy": after,
        "before": before,
        "seconds": found.seconds,
        "losses": found.losses,
        "nonzero": sum(int(weight.count_nonzero()) for weight in used) / sum(weight.numel() for weight in used),
    }
    if isinstance(network.rule, Lsq) and isinstance(at_once.rule, Lsq):
        moved = (network.rule.scales / at_once.rule.scales).detach()  # (layers,)
        row["steps_moved"] = [float(moved.min()), float(moved.max())]
    if job.method == "dense":
        row["given"] = bench.subject.score(bench.subject.path, None).value
    return row


def run(bench: Bench, wanted: Sequence[Job], rows: Rows) -> None:
    """Add the rows that are not there yet. Jobs that keep equally many weights are the same, by any convention."""
    for job in wanted:
        epochs = bench.schedule.epochs
        if job.key(epochs) in rows:
            continue
        key = dict(zip(KEY, job.key(epochs), strict=True)) | {"density": job.density}
        same = next((row for row in rows.rows if job.pruned and _alike(row, key)), None)
        if same is not None:
            rows.add({**same, **key})
            continue
        row = post_training(bench, job) if job.method.startswith("tool") else fine_tuned(bench, job)
        rows.add({**key, **row})
        bench.checkpoint(job).unlink(missing_ok=True)
        print(f"{job}: {100 * row['accuracy']:.2f} % ({row['seconds']:.0f} s)", flush=True)


def _alike(row: Row, key: Row) -> bool:
    return all(row[name] == key[name] for name in ("method", "epochs", "density"))


def table(rows: Sequence[Row], epochs: int) -> str:
    """Every budget and way to spend it: at once, by this tool, and trained."""
    found = {tuple(row[name] for name in KEY): row for row in rows}
    header = ("bits", "way", "mask", "kept", "at once", "this tool", "fine-tuned", "not zero")
    cells = []
    for bits in BITS:
        for convention in (None, *MASKS):
            tool, trained = (found.get(job.key(epochs)) for job in _pair(bits, convention))
            if tool is None and trained is None:
                continue
            cells.append(
                (
                    str(bits),
                    "pruned" if convention else "quantized",
                    MASK_NAMES[convention] if convention else "",
                    f"{100 * Job('gradual', bits, convention).density:.2f} %",
                    _percent(trained, "before"),
                    _percent(tool, "accuracy"),
                    _percent(trained, "accuracy"),
                    f"{_percent(trained, 'nonzero')} %" if trained else "",
                )
            )
    return markdown(header, cells, left=3)


def differences(rows: Sequence[Row], epochs: int) -> str:
    """Quantized minus pruned, in points."""
    found = {tuple(row[name] for name in KEY): row for row in rows}
    cells = []
    for bits, convention in itertools.product(BITS, MASKS):
        (tool, trained), (other_tool, other_trained) = (
            [found.get(job.key(epochs)) for job in _pair(bits, x)] for x in (None, convention)
        )
        gaps = [
            _points(trained, other_trained, "before"),
            _points(tool, other_tool, "accuracy"),
            _points(trained, other_trained, "accuracy"),
        ]
        if any(gaps):
            cells.append((str(bits), MASK_NAMES[convention], *gaps))
    return markdown(("bits", "mask", "at once", "this tool", "fine-tuned"), cells, left=2)


def _pair(bits: int, convention: Mask | None) -> tuple[Job, Job]:
    """The tool's job and the training at a budget."""
    ways = ("tool-pruned", "gradual") if convention else ("tool-quantized", "lsq")
    tool, trained = (Job(way, bits, convention) for way in ways)
    return tool, trained


def _percent(row: Row | None, field: str) -> str:
    return "" if row is None else f"{100 * row[field]:.2f}"


def _points(row: Row | None, other: Row | None, field: str) -> str:
    return "" if row is None or other is None else f"{100 * (row[field] - other[field]):+.2f}"


def page(rows: Sequence[Row], epochs: int) -> str:
    """The whole markdown page, of the trainings with this number of epochs."""
    schedule = Schedule(epochs=epochs)
    end, pruned = f"{100 * schedule.end:.0f} %", f"{100 * schedule.pruned:.0f} %"
    dense = next((row for row in rows if row["method"] == "dense" and row["epochs"] == epochs), None)
    reference = "The dense model was not fine-tuned."
    if dense is not None:
        reference = (
            f"The dense model: {_percent(dense, 'given')} % as it is, {_percent(dense, 'before')} % with its BatchNorm "
            f"statistics estimated again,\n{_percent(dense, 'accuracy')} % fine-tuned for as many epochs."
        )
    ends = [x for row in rows if row["epochs"] == epochs for x in row.get("steps_moved", ())]
    moved = f", which moved them by {100 * max(abs(x - 1) for x in ends):.1f} % at most" if ends else ""
    return f"""# Prune or quantize, after fine-tuning

`python -m benchmarks.study.finetuning --epochs {epochs}`, on {machine()}.
{MODEL} on CIFAR-10, top-1 in %: trained and calibrated on 5,000 images, scored on 5,000 others. A figure has a
standard error of about half a point: differences of less than one mean little. One seed.
{reference}

The question and the protocol are those of Kuzmin et al. (2023), "Pruning vs Quantization: Which is Better?".
*Quantized*: weights of b bits, activations float. *Pruned*: weights counted as 16 bits, as many as fit into b bits for
each weight, if where they are costs nothing (mask *free*, as there) or one bit for each weight (*one bit*). Every layer
is quantized or pruned by the same rule, the first and the last as well; there these stay at 8 bits when quantized, but
are pruned like all others. Scales, biases and BatchNorm are not counted.

- *At once*: rounded with one scale for each layer, or the smallest weights of each layer removed; BatchNorm statistics
  estimated again.
- *This tool*: `onnx_obc.compress` on 1,024 of the training images, without labels and without training; statistics
  corrected as by default. A scale for each row and, below 8 bits, a zero point.
- *Fine-tuned*: {epochs} epochs of SGD with labels: batches of {schedule.batch}, momentum {schedule.momentum}, no decay,
  rate {schedule.rate} falling along a cosine to {end} of it; images flipped and cropped at random, the same for all.
  Quantized with learned steps (LSQ): one for each layer, by Adam with rate {schedule.scale_rate:.0e}{moved}.
  Pruned gradually by magnitude (Zhu and Gupta): each layer to the same density, every {schedule.every} iterations
  of the first {pruned}; what is pruned stays so. BatchNorm is not folded, and its statistics are estimated again on the
  training images before the evaluation, which is of the last epoch.
- *Not zero*: how many of the weights are not, after fine-tuning.

{table(rows, epochs)}

Quantized minus pruned, in points:

{differences(rows, epochs)}

What was published for eight networks, from classification to language: after fine-tuning, quantization is ahead at
nearly every budget. Residual networks are close, and the larger of the two is better pruned at some budgets, most
clearly at the smallest; networks of depthwise convolutions lose far more from pruning than from quantization. There the
mask is free; one bit for each weight takes 6.25 % of all weights from those that pruning may keep.
"""


def quick(subject: Subject, methods: Sequence[str], threads: int | None) -> Rows:
    """The checks, and the methods at 4 bits, with a few iterations on a part of the data."""
    check_rules()
    rows = Rows(None, KEY)
    with tempfile.TemporaryDirectory() as folder:
        subject = replace(subject, options=DataOptions(preprocess="imagenet", samples=128))
        parts = read_images(subject.calibration, 10), read_images(subject.held_out, 10)
        run(Bench(subject, *parts, QUICK, Path(folder), threads), jobs(methods, (4,)), rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="where checkpoints are kept")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs, help="of every training")
    parser.add_argument("--bits", type=int, choices=BITS, nargs="+", default=list(BITS), help="only these budgets")
    parser.add_argument("--only", choices=METHODS, action="append", help="only this method; may be given again")
    parser.add_argument("--threads", type=int, help="of torch and of the tool; all cores by default")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the page again")
    parser.add_argument("--quick", action="store_true", help="check, and a few iterations on a part of the data")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows, schedule = Rows(RESULTS / "finetuning.jsonl", KEY), Schedule(epochs=options.epochs)
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            found = find_subjects(options.models, options.shared, Path(scratch), (MODEL,))
        if not found:
            sys.exit(1)
        (subject,) = found
        if options.quick:
            rows, schedule = quick(subject, options.only or QUICK_METHODS, options.threads), QUICK
        else:
            work = options.models / "finetuning"
            work.mkdir(parents=True, exist_ok=True)
            images = read_images(subject.calibration), read_images(subject.held_out)
            wanted = jobs(options.only or METHODS, options.bits)
            run(Bench(subject, *images, schedule, work, options.threads), wanted, rows)
    if not rows.rows:
        sys.exit("there is nothing to report")
    if not options.quick:
        (RESULTS / "finetuning.md").write_text(page(rows.rows, schedule.epochs), encoding="utf-8")
    print(table(rows.rows, schedule.epochs))
    print(differences(rows.rows, schedule.epochs))


if __name__ == "__main__":
    main()
