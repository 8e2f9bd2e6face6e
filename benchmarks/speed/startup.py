"""What the command line takes before it does anything: CPU seconds, and how many times those of an empty program.

python -m benchmarks.speed.startup             # under a minute
python -m benchmarks.speed.startup --repeats 3
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.common.tables import machine, markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ONNX_OBC = ("-m", "onnx_obc.cli.main")
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {  # arguments of Python, and what is allowed
    "python -c pass": (("-c", "pass"), None),
    "import onnx_obc": (("-c", "import onnx_obc"), None),
    "onnx-obc --version": ((*ONNX_OBC, "--version"), 0.3),
    "onnx-obc --nix (no such option)": ((*ONNX_OBC, "--nix"), 0.3),
    "onnx-obc --help": ((*ONNX_OBC, "--help"), None),
    "onnx-obc inspect models/digits.onnx": ((*ONNX_OBC, "inspect", "models/digits.onnx"), 1.5),
    "from onnx_obc import compress": (("-c", "from onnx_obc import compress"), None),
}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """CPU seconds, of the user and the system, of one run of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(1 + repeats):  # in turn, so that what else the machine does hits all; the first round is not counted
        for name, (arguments, _) in COMMANDS.items():
            seconds[name].append(cpu_seconds(arguments))
    found = {name: median(values[1:]) for name, values in seconds.items()}
    least = found["python -c pass"]
    rows = [
        [f"`{name}`", f"{found[name]:.3f}", f"{found[name] / least:.0f}", "" if limit is None else f"{limit:g}"]
        for name, (_, limit) in COMMANDS.items()
    ]
    table = markdown(["command", "CPU seconds", "times an empty program", "at most"], rows)
    page = f"""# What starting takes

`python -m benchmarks.speed.startup`, on {machine()}: median of {repeats} runs, files in the page cache.

{table}
"""
    (RESULTS / "startup.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
