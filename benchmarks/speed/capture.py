"""What it costs to capture Hessians: time over plain inference of the same samples, and memory over their number.

python -m benchmarks.speed.capture
python -m benchmarks.speed.capture --only ResNet-20   # some two minutes; writes nothing
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.common.subjects import NAMES, Subject, find_subjects, open_data
from benchmarks.common.tables import machine, markdown
from onnx_obc.calibration.capture import Chunk, capture
from onnx_obc.calibration.samples import Samples
from onnx_obc.calibration.unfold import unfold
from onnx_obc.graph.model import read_model
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.runtime.session import Execution, open_session
from onnx_obc.solver.linalg.threads import one_blas_thread

RESULTS = Path(__file__).parents[1] / "results"
REPEATS = 3
COUNTS = (64, 256, 1024)  # samples, for the peak memory
NAIVE = {"ResNet-20": 128}  # samples for the comparison with unfolding everything: it has convolutions of stride 1 only
RECIPE = Recipe(weights="int4", activations="none")  # Hessians of all layers, no activation ranges


@dataclass(frozen=True)
class Timing:
    """Seconds, each the median of the repeats."""

    name: str
    samples: int
    plain: float
    captured: float
    everything: float


def timings(subject: Subject) -> Timing:
    """Plain inference, and capture at the default sampling and of all positions, in turn, data in memory for all."""
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), RECIPE)
    samples = in_memory(open_data(dense, subject.calibration, subject.options))
    chunk = Chunk(tuple(plan.layers), ())

    def plain() -> None:
        session = open_session(dense)
        for batch in samples.read(0, samples.count):
            session.run(batch.feed)

    def sampled() -> None:
        capture(plan.model, chunk, samples)

    def everything() -> None:
        capture(plan.model, chunk, samples, all_positions=True)

    seconds = [[clock(work) for work in (plain, sampled, plain, sampled, everything)] for _ in range(REPEATS)]
    columns = list(zip(*seconds, strict=True))
    return Timing(
        subject.name,
        samples.count,
        median(columns[0] + columns[2]),
        median(columns[1] + columns[3]),
        median(columns[4]),
    )


def naive_ratio(subject: Subject, count: int) -> tuple[float, float, float]:
    """Seconds of all positions of `count` samples: unfolded, with a whole product in float64; ours. And the ratio.

    Both on one thread, without the model's run, which is timed by itself and subtracted.
    """
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), RECIPE)
    samples = in_memory(open_data(dense, subject.calibration, replace(subject.options, samples=count)))
    taps = list(dict.fromkeys(use.tap for layer in plan.layers for use in layer.uses))
    names = list(dict.fromkeys(tap.value for tap in taps))
    session = open_session(plan.model, names, threads=1)

    def run() -> None:
        for batch in samples.read(0, samples.count):
            session.run(batch.feed)

    def naive() -> None:
        sums: dict[object, np.ndarray] = {}
        for batch in samples.read(0, samples.count):
            values = session.run(batch.feed)
            for tap in taps:
                for x in unfold(values[tap.value], tap.unfold, None, batch.count):
                    x = x.astype(np.float64, order="C")  # (groups, n, columns)
                    same = x.copy()  # or numpy sees the symmetry
                    product = x.transpose(0, 2, 1) @ same  # (groups, columns, columns)
                    sums[tap] = sums.get(tap, 0) + product

    def ours() -> None:
        capture(plan.model, Chunk(tuple(plan.layers), ()), samples, all_positions=True, execution=Execution(threads=1))

    seconds = [[clock(work) for work in (run, naive, ours)] for _ in range(REPEATS)]
    run_time, naive_time, our_time = (median(column) for column in zip(*seconds, strict=True))
    return naive_time - run_time, our_time - run_time, (naive_time - run_time) / (our_time - run_time)


def clock(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    with one_blas_thread():
        work()
    return time.perf_counter() - began


def in_memory(samples: Samples) -> Samples:
    """The same samples, without what it takes to read them."""
    batches = list(samples.read(0, samples.count))
    return replace(samples, read=lambda start, stop: iter(batches))


def peak_memory(arguments: argparse.Namespace, name: str, count: int) -> int:
    """MiB that a process of its own takes at most, to capture from the first `count` samples."""
    command = [sys.executable, __file__, "--only", name, "--peak", str(count)]
    command += ["--models", str(arguments.models), "--shared", str(arguments.shared)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(subject: Subject, count: int) -> None:
    """What the process of `peak_memory` does: reads as it goes, in float32 from files, and prints its peak."""
    dense = read_model(subject.path)
    plan = make_plan(prepare(dense), RECIPE)
    samples = open_data(dense, subject.calibration, replace(subject.options, samples=count))
    with one_blas_thread():
        capture(plan.model, Chunk(tuple(plan.layers), ()), samples)
    # Not getrusage: Linux counts what the parent held when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)


def page(rows: list[Timing], peaks: dict[str, list[int]], naive: dict[str, tuple[float, float, float]]) -> str:
    """The whole markdown page."""
    times = [
        (
            row.name,
            f"{row.samples:,}",
            f"{row.plain:.2f}",
            f"{row.captured:.2f}",
            f"{row.captured / row.plain:.2f}",
            f"{row.everything:.2f}",
            f"{row.everything / row.plain:.2f}",
        )
        for row in rows
    ]
    header = ("model", "samples", "plain s", "capture s", "/ plain", "all positions s", "/ plain")
    memory = [(name, *(f"{peak:,}" for peak in values)) for name, values in peaks.items()]
    lines = "\n".join(
        f"- {name}, all positions of {NAIVE[name]} samples: {slow:.2f} s if all is unfolded and multiplied in full "
        f"in float64, {fast:.2f} s here, {ratio:.1f} times less (one thread, without the time for running the model)"
        for name, (slow, fast, ratio) in naive.items()
    )
    return f"""# Capture

`python -m benchmarks.speed.capture`, on {machine()}.

Seconds to load the model and run it on all samples (*plain*), and to capture the Hessians of all its layers from them:
at the default sampling, and from all positions. The samples are in memory; onnxruntime has the same settings and
batches; the runs take turns, and each figure is the median of {REPEATS} or {2 * REPEATS}.

{markdown(header, times)}

Peak memory of a process that captures, in MiB, by the number of samples (EfficientNet-Lite0 has 500):

{markdown(("model", *(f"{count:,} samples" for count in COUNTS)), memory)}

{lines}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--only", choices=NAMES, action="append", help="only this model")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)  # for the process that peak_memory starts
    arguments = parser.parse_args()

    rows: list[Timing] = []
    peaks: dict[str, list[int]] = {}
    naive: dict[str, tuple[float, float, float]] = {}
    names = tuple(name for name in NAMES if name in (arguments.only or NAMES))
    with tempfile.TemporaryDirectory() as scratch:
        for subject in find_subjects(arguments.models, arguments.shared, Path(scratch), names):
            if arguments.peak is not None:
                print_peak(subject, arguments.peak)
                return
            rows.append(timings(subject))
            print(rows[-1], f"{rows[-1].captured / rows[-1].plain:.2f}", flush=True)
            peaks[subject.name] = [peak_memory(arguments, subject.name, count) for count in COUNTS]
            print("MiB", dict(zip(COUNTS, peaks[subject.name], strict=True)), flush=True)
            if subject.name in NAIVE:
                naive[subject.name] = naive_ratio(subject, NAIVE[subject.name])
                print("naive s, ours s, ratio", naive[subject.name], flush=True)
    if rows:
        text = page(rows, peaks, naive)
        print(text)
        if not arguments.only:
            (RESULTS / "capture.md").write_text(text)


if __name__ == "__main__":
    main()
