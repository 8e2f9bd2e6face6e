"""The command line: arguments in, messages out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ._version import __version__
from .calibration.data import DataOptions
from .compress import Result, compress
from .demo import run_demo
from .errors import ObcError
from .inspect import inspect_model
from .recipe import Activations, Recipe, Weights, make_recipe, read_recipe
from .report.report import write_json
from .report.table import report_table, show

STAGES = {"capture": "running the calibration data", "solve": "solving rows", "verify": "comparing outputs"}

app = App(
    name="onnx-obc",
    help="Prune and quantize a trained ONNX model, without training, by the exact greedy of Optimal Brain Compression.",
    version=__version__,
    help_format="plaintext",
)


@app.default
def compress_command(
    source: Path,
    output: Path,
    /,
    *,
    calib: str,
    weights: Weights | None = None,
    activations: Activations | None = None,
    sparsity: str | None = None,
    recipe: Path | None = None,
    target: Literal["onnxruntime", "tensorrt"] | None = None,
    asymmetric: bool | None = None,
    embeddings: Literal["float", "int8", "int4"] | None = None,
    grid: Literal["mse", "minmax"] | None = None,
    ranges: Literal["mse", "minmax", "percentile"] | None = None,
    skip: list[str] | None = None,
    samples: int | None = None,
    batch: int | None = None,
    all_positions: bool | None = None,
    damp: float | None = None,
    precision: Literal["auto", "float32", "float64"] | None = None,
    preprocess: Literal["imagenet", "tf", "unit", "raw"] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: tuple[int, int] | None = None,
    layout: Literal["NCHW", "NHWC"] | None = None,
    augment: int = 1,
    tokenizer: Path | None = None,
    max_tokens: int | None = None,
    allow_random: bool = False,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    threads: int | None = None,
    memory: float | None = None,
    verify: bool | None = None,
    report: Path | None = None,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compress SOURCE on calibration data and write OUTPUT.

    Parameters
    ----------
    source: The trained model.
    output: Where to write the compressed model.
    calib: Calibration data: an .npz file; a folder of .npz or .npy files; a folder or zip of images; a .csv, .txt or
        .jsonl text with --tokenizer; module.py:function yielding feeds; or random.
    weights: float, int8, int4, int3 or int2. [default: int8]
    activations: none, int8, or int4 (simulated: no kernel computes with it). [default: int8]
    sparsity: 2:4, 4:8, block4:0.7, 0.6 (unstructured), or none. [default: none]
    recipe: A YAML file with these options, and rules for layers by name; the first rule that matches a layer wins.
    target: The runtime to write for. [default: onnxruntime]
    asymmetric: Give every weight row a zero point.
    embeddings: Store the tables of Gather as integers, by rounding. [default: float]
    grid: How a weight row's scale is found: mse clips where that lowers the error, minmax never. [default: mse]
    ranges: How the range of an activation is found. [default: mse]
    skip: Leave layers alone whose name matches this shell pattern; may be given several times.
    samples: Read at most so many samples; evenly spread over the data.
    batch: Samples in a feed, where the model leaves the batch free. [default: 32]
    all_positions: Use every position of every sample for the Hessians, not a draw of 64 for every column.
    damp: Damping, relative to the mean of the Hessian's diagonal. [default: 0.01]
    precision: The solver's arithmetic; auto takes float64 where float32 would not do. [default: auto]
    preprocess: How images become inputs: imagenet, tf, unit or raw.
    mean: Mean of every channel, of pixels in 0 … 1; instead of --preprocess.
    std: Standard deviation of every channel, of pixels in 0 … 1.
    size: Height and width of the images, where the model leaves them free.
    layout: The order of the image dimensions, where it cannot be told from the model.
    augment: Use every image so often: once as it is, then flipped and cropped at random.
    tokenizer: The tokenizer.json for text.
    max_tokens: Cut texts to so many tokens. [default: 128]
    allow_random: Let --calib random pass.
    seed: Of every random draw. [default: 0]
    device: Where the model runs. [default: auto]
    threads: How many threads solve. [default: all cores]
    memory: GiB for Hessians and activations at a time. [default: half of what is free]
    verify: Read the file back and check it. [default: yes]
    report: Write the report as JSON.
    quiet: Print nothing but errors.
    """
    options = locals()
    with _progress_bar(quiet) as progress:
        result = compress(source, calib, _recipe(options), output, data=_data_options(options), progress=progress)
    _finish(result, report, quiet)


@app.command(name="inspect")
def inspect_command(source: Path, /) -> None:
    """Show the layers of a model, and which levels are impossible for them, and why.

    Parameters
    ----------
    source: The model.
    """
    show(inspect_model(source))


@app.command(name="demo")
def demo_command(*, quiet: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Compress the small classifier that comes with the package at five levels, and compare with rounding.

    Parameters
    ----------
    quiet: Show no progress.
    """
    with _progress_bar(quiet) as progress:
        table = run_demo(progress)
    show(table)


def main() -> None:
    """Entry point: one line for every error that a user can cause, and its exit code."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        app(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        errors.print(f"error: {' '.join(str(error).split())}; see onnx-obc --help")
        sys.exit(2)
    except ObcError as error:
        errors.print(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        sys.exit(130)


def _recipe(options: dict[str, Any]) -> Recipe:
    """The recipe file, if any, with the options of the command line over it."""
    values = read_recipe(options["recipe"]) if options["recipe"] is not None else {}
    given = {name: options[name] for name in Recipe.model_fields if options.get(name) is not None}
    skipped = [{"match": pattern, "skip": True} for pattern in options["skip"] or []]
    rules = [*skipped, *(values.get("layers") or [])]
    return make_recipe({**values, **given, "layers": rules}, source=str(options["recipe"] or "command line"))


def _data_options(options: dict[str, Any]) -> DataOptions:
    names = DataOptions.__dataclass_fields__
    given = {name: value for name, value in options.items() if name in names and value is not None}
    return DataOptions(**given)


def _finish(result: Result, report: Path | None, quiet: bool) -> None:
    if report is not None:
        write_json(result.report, report)
    if not quiet:
        show(report_table(result.report))


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], advance=done, total=total)

        yield advance
