"""The demonstration: the small classifier that comes with the package, at five levels, against the baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from ..core.errors import ModelError
from ..pipeline.compress import compress
from ..pipeline.recipe import Recipe, make_recipe
from ..runtime.session import open_session

LEVELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("int8, int8 inputs", {}),
    ("int4", {"weights": "int4", "activations": "none"}),
    ("int3", {"weights": "int3", "activations": "none"}),
    ("2:4+int8, int8 inputs", {"sparsity": "2:4"}),
    ("block4-0.50", {"sparsity": "block4:0.5", "weights": "float"}),
)


def run_demo(progress: Callable[[str, int, int], None]) -> RenderableType:
    """Compress at every level by the exact greedy and by the baseline; accuracy on digits neither has seen."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("level", "dense", "baseline", "onnx-obc", "file, bytes", "of dense"):
        table.add_column(name, justify="left" if name == "level" else "right")
    for row in demo_rows(progress):
        shown = (f"{100 * row[by]:.1f} %" for by in ("dense", "baseline", "exact"))
        table.add_row(row["level"], *shown, f"{row['bytes']:,}", f"{row['bytes'] / row['dense_bytes']:.2f}")
    return Group(
        "Handwritten digits: accuracy on held-out images, without any retraining",
        table,
        "baseline: plain rounding, and pruning by magnitude",
        "zeros are stored as zeros: sparsity pays at run time, or when the file is zipped",
    )


def demo_rows(progress: Callable[[str, int, int], None]) -> Iterator[dict[str, Any]]:
    """For every level: the accuracies of the dense model, the baseline and the exact greedy, and bytes of files."""
    folder = demo_folder()
    model, calibration = folder / "digits.onnx", folder / "digits_calibration.npz"
    dense = {"dense": accuracy(model, folder / "digits_test.npz"), "dense_bytes": model.stat().st_size}
    with tempfile.TemporaryDirectory(prefix="onnx-obc-") as scratch:
        for number, (name, values) in enumerate(LEVELS):
            found = {}
            for solver in ("baseline", "exact"):
                recipe: Recipe = make_recipe(
                    {
                        **values,
                        "solver": solver,
                        "effort": "normal" if solver == "exact" else "fast",
                        "reconstruction": False,  # figures are the same with torch and without
                    }
                )
                output = Path(scratch) / f"{number}-{solver}.onnx"
                compress(model, calibration, recipe, output)
                found[solver] = accuracy(output, folder / "digits_test.npz")
                progress("compressing", 1, 2 * len(LEVELS))
            yield {"level": name, **dense, **found, "bytes": output.stat().st_size}


def demo_folder() -> Path:
    """Where the demonstration's files are: in an installed package, or in a clone of the project."""
    installed = Path(__file__).parent / "demo_data"
    cloned = Path(__file__).parents[2] / "models"
    for folder in (installed, cloned):
        if (folder / "digits.onnx").is_file():
            return folder
    raise ModelError("the demonstration's model is missing; install onnx-obc again")


def accuracy(model: Path, test: Path) -> float:
    """The share of test images whose largest output is their label."""
    with np.load(test) as arrays:
        images, labels = arrays["image"], arrays["label"]
    (output,) = open_session(model, device="cpu").run({"image": images}).values()
    return float((output.argmax(axis=1) == labels).mean())
