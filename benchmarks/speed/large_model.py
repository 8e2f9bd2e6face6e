"""A model of 3 GB through the commands: time, and memory with and without pages of its file.

    python -m benchmarks.speed.large_model
    python -m benchmarks.speed.large_model --solve 2                # blocks to compress; the rest stays float
    python -m benchmarks.speed.large_model --commands inspect compress

A decoder of the Llama shape with 750 million random weights (12 blocks, hidden 2048, 32,000 tokens) is written tensor
by tensor, and `onnx-obc` run on it as a user would. A command that takes more than 12 GB beside pages of files is
stopped. Needs 20 GB of disk, in --folder, which is emptied at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.decoder import Shape, write_decoder
from benchmarks.common.processes import Run, run
from benchmarks.common.tables import machine, markdown

RESULTS = Path(__file__).parents[1] / "results"
LIMIT = 12e9  # bytes beside pages of files
MEMORY = 2  # GiB for Hessians and activations
SAMPLES = 8
COMMANDS = ("inspect", "compress", "check", "bench", "build", "search", "debug")
METHOD = ("--solver", "ordered", "--memory", str(MEMORY))


def arguments_of(command: str, shape: Shape, solved: int) -> list[str]:
    """The command line, in the folder of the model."""
    skip = [part for index in range(solved, shape.blocks) for part in ("--skip", f"block{index}/*")]
    skip += ["--skip", "logits"] if solved < shape.blocks else []
    compress = ["model.onnx", "int4.onnx", "--calib", "tokens.npz", "--weights", "int4", "--block", "32"]
    return {
        "inspect": ["inspect", "model.onnx"],
        "compress": [*compress, "--activations", "none", *METHOD, *skip],
        "check": ["check", "int4.onnx", "--target", "onnxruntime", "--calib", "tokens.npz"],
        "bench": ["bench", "model.onnx", "int4.onnx", "--target", "onnxruntime", "--calib", "tokens.npz"],
        "build": [
            "build",
            "model.onnx",
            "database",
            "--calib",
            "tokens.npz",
            "--levels",
            "int4-asym-b32",
            *METHOD,
            *skip,
        ],
        "search": ["search", "database", "--budget", "size=0.9x", "-o", "searched.onnx", "--sensitivity", "layer"],
        "debug": ["debug", "model.onnx", "int4.onnx", "--calib", "tokens.npz"],
    }[command]


def measure(
    folder: Path, commands: Sequence[str], shape: Shape, solved: int, hours: float
) -> list[tuple[str, Run, int]]:
    """Run the commands one after another. Each with what it took, and the bytes of the file that it wrote."""
    os.nice(10)
    os.environ["TMPDIR"] = str(folder)
    found = []
    for command in commands:
        line = [sys.executable, "-m", "onnx_obc.cli.main", *arguments_of(command, shape, solved)]
        took = run(line, folder, folder / f"{command}.log", hours * 3600, LIMIT)
        written = {"compress": "int4.onnx", "search": "searched.onnx"}.get(command, "")
        size = sum(x.stat().st_size for x in folder.glob(f"{written}*")) if written else 0
        print(f"{command}: {took}", flush=True)
        if took.error is not None:
            print((folder / f"{command}.log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
        found.append((command, took, size))
    return found


def page(found: Sequence[tuple[str, Run, int]], weights: int, shape: Shape, solved: int) -> str:
    """The results, in markdown."""
    rows = [
        [
            command,
            f"{took.seconds:,.0f}",
            f"{took.cpu_seconds:,.0f}",
            f"{took.private_bytes / 1e9:.2f}",
            f"{took.peak_bytes / 1e9:.2f}",
            f"{size / 1e9:.2f}" if size else "—",
            took.error or "✓",
        ]
        for command, took, size in found
    ]
    which = "all layers" if solved >= shape.blocks else f"the layers of {solved} of {shape.blocks} blocks"
    header = ["command", "seconds", "CPU seconds", "GB", "GB with pages of files", "file, GB", "ended"]
    return f"""# A large model

`python -m benchmarks.speed.large_model`, on {machine()},
at nice 10 beside other work: seconds by the clock are not those of a free machine. A decoder of the Llama shape with
{weights / 4e6:,.0f} million random weights, {weights / 1e9:.2f} GB in float32 beside its .onnx; {which} at int4 in
blocks of 32, {SAMPLES} samples of {shape.length} tokens, `{" ".join(METHOD)}`.

*GB*: the peak of the command and its children, without pages of mapped files, which the system takes back when it needs
them; a command is stopped at {LIMIT / 1e9:.0f} GB.

{markdown(header, rows)}
"""


def kept(file: Path) -> str:
    """The part of the page that this does not measure."""
    _, mark, rest = file.read_text(encoding="utf-8").partition("\n## How a session holds the weights")
    return mark + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--solve", type=int, default=Shape().blocks, help="blocks to compress")
    parser.add_argument("--hours", type=float, default=6, help="that a command may take")
    parser.add_argument("--folder", type=Path, help="for the model and the results; a temporary one if not named")
    given = parser.parse_args()
    shape = Shape()
    with tempfile.TemporaryDirectory(prefix="large-model-", dir=given.folder) as name:
        folder = Path(name)
        weights = write_decoder(folder / "model.onnx", shape)
        tokens = np.random.default_rng(1).integers(0, shape.vocabulary, (SAMPLES, shape.length))
        np.savez(folder / "tokens.npz", tokens=tokens)
        found = measure(folder, given.commands, shape, given.solve, given.hours)
    (RESULTS / "large_model.md").write_text(
        page(found, weights, shape, given.solve) + kept(RESULTS / "large_model.md"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
