"""What a terminal shows while something runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..core.progress import Feedback
from ..report.console import messages

STAGES = {
    "compile": "compiling the solver",
    "capture": "running the calibration data",
    "solve": "solving rows",
    "order": "solving rows in order",
    "fisher": "sampling gradients",
    "learn": "learning, % of parts",
    "sensitivity": "sensitivity of levels",
    "alone": "quantizing layers alone",
    "mix": "drafts with layers in float",
    "search": "profiles tried",
    "drop": "sizes tried",
    "transform": "looking at channels",
    "correct": "correcting statistics",
    "reconstruct": "training, % of parts",
    "adaprune": "epochs",
    "verify": "comparing outputs",
    "time": "timing levels",
    "latency": "profiles timed",
    "bench": "rounds",
    "weights": "looking at weights",
    "study": "studying layers",
    "prove": "proving on chunks",
    "compare": "comparing models",
    "walk": "comparing values",
    "return": "returning layers",
}


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Feedback]:
    """Shows how far each stage is, and lines of text above that, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = messages(quiet=quiet)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        reached: dict[str, int] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            elif done and reached[stage] >= total:
                bars.reset(tasks[stage])
                reached[stage] = 0
            reached[stage] = reached.get(stage, 0) + done
            bars.update(tasks[stage], completed=reached[stage], total=total)

        yield Feedback(advance, console.print)
