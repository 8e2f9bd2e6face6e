"""The command line: arguments in, messages out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, UnusedCliTokensError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ._version import __version__
from .calibration.data import KINDS, DataOptions
from .compress import compress
from .demo import run_demo
from .errors import ObcError, OutputError
from .graph.place import check_output
from .inspect import inspect_model
from .recipe import Activations, Recipe, Rule, Weights, make_recipe, read_recipe
from .report.report import write_json
from .report.table import report_table, show

STAGES = {
    "compile": "compiling the solver",
    "capture": "running the calibration data",
    "solve": "solving rows",
    "verify": "comparing outputs",
}

USAGE = "onnx-obc SOURCE OUTPUT --calib DATA [OPTIONS]"

LEVELS = Group("What the layers become", sort_key=1)
DATA = Group("Calibration data", sort_key=2)
METHOD = Group("How it is done", sort_key=3)
RUN = Group("Run", sort_key=4)

Flag = Parameter(negative="")
Several = Parameter(consume_multiple=True)

app = App(
    name="onnx-obc",
    help="Prune and quantize a trained ONNX model, without training, by the exact greedy of Optimal Brain Compression.",
    usage=f"Usage: {USAGE}\n       onnx-obc inspect SOURCE\n       onnx-obc demo\n",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable="", show_default=False),
    suppress_keyboard_interrupt=False,
)


@Parameter(name="*")
@dataclass(frozen=True)
class RecipeOptions:
    """The fields of a Recipe; None where the recipe file, or else the recipe's own default, decides."""

    weights: Annotated[Weights | None, Parameter(group=LEVELS)] = None
    """The weights of every layer. [default: int8]"""
    activations: Annotated[Activations | None, Parameter(group=LEVELS)] = None
    """The inputs of layers with integer weights; int4 is simulated: no kernel computes with it. [default: int8]"""
    sparsity: Annotated[str | None, Parameter(group=LEVELS)] = None
    """Which weights become zero: 2:4, 4:8, block4:0.7 (70 % of blocks of 4), 0.6 (anywhere), none. [default: none]"""
    asymmetric: Annotated[bool | None, Parameter(group=LEVELS)] = None
    """Give every weight row a zero point. [default: below 8 bits, but not for tensorrt]"""
    embeddings: Annotated[Literal["float", "int8", "int4"] | None, Parameter(group=LEVELS)] = None
    """Store the tables of Gather as integers, by rounding. [default: float]"""
    target: Annotated[Literal["onnxruntime", "tensorrt"] | None, Parameter(group=LEVELS)] = None
    """The runtime to write for. [default: onnxruntime]"""

    solver: Annotated[Literal["auto", "exact", "ordered", "baseline"] | None, Parameter(group=METHOD)] = None
    """auto: exact, or ordered for huge layers; baseline: rounding and magnitude, to compare with. [default: auto]"""
    time_limit: Annotated[float | None, Parameter(group=METHOD)] = None
    """Seconds for solving all layers: auto then solves exactly as many as fit."""
    refine: Annotated[Literal["none", "auto"] | int | None, Parameter(group=METHOD)] = None
    """Search for better solutions from the greedy's: none, auto, or for so many sweeps. [default: auto]"""
    grid: Annotated[Literal["mse", "minmax"] | None, Parameter(group=METHOD)] = None
    """How a weight row's scale is found: mse clips where that lowers the error, minmax never. [default: mse]"""
    ranges: Annotated[Literal["mse", "minmax", "percentile"] | None, Parameter(group=METHOD)] = None
    """How the range of an activation is found. [default: mse]"""
    all_positions: Annotated[bool | None, Parameter(group=METHOD)] = None
    """Use every position of every sample for the Hessians, not a draw of 64 for every column."""
    damp: Annotated[float | None, Parameter(group=METHOD)] = None
    """Damping, relative to the mean of the Hessian's diagonal. [default: 0.01]"""
    precision: Annotated[Literal["auto", "float32", "float64"] | None, Parameter(group=METHOD)] = None
    """The solver's arithmetic; auto takes float64 where float32 would not do. [default: auto]"""
    seed: Annotated[int | None, Parameter(group=METHOD)] = None
    """Of every random draw. [default: 0]"""

    device: Annotated[Literal["auto", "cpu", "cuda"] | None, Parameter(group=RUN)] = None
    """Where the model runs and the layers are solved. [default: auto: a GPU if there is one]"""
    threads: Annotated[int | None, Parameter(group=RUN)] = None
    """How many threads solve; the result does not depend on it. [default: all cores]"""
    memory: Annotated[float | None, Parameter(group=RUN)] = None
    """GiB for Hessians and activations at a time. [default: half of what is free]"""
    verify: Annotated[bool | None, Parameter(group=RUN)] = None
    """Read the file back and check it. [default: yes]"""


@Parameter(name="*", group=DATA)
@dataclass(frozen=True)
class CalibrationOptions:
    """The fields of DataOptions, but for the seed."""

    samples: int | None = None
    """Read at most so many samples, evenly spread over the data. [default: 1024]"""
    batch: int | None = None
    """Samples in a feed, where the model leaves the batch free. [default: 32]"""
    preprocess: Literal["imagenet", "tf", "unit", "raw"] | None = None
    """How images become inputs."""
    mean: Annotated[tuple[float, ...] | None, Several] = None
    """Mean of every channel, of pixels in 0 … 1; instead of --preprocess."""
    std: Annotated[tuple[float, ...] | None, Several] = None
    """Standard deviation of every channel, of pixels in 0 … 1."""
    size: tuple[int, int] | None = None
    """Height and width of the images, where the model leaves them free."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """The order of the image dimensions, where it cannot be told from the model."""
    augment: int = 1
    """Use every image so often: once as it is, then flipped and cropped at random. [default: 1]"""
    tokenizer: str | None = None
    """The tokenizer.json for text."""
    max_tokens: int | None = None
    """Cut texts to so many tokens. [default: 128]"""
    allow_random: Annotated[bool, Flag] = False
    """Let --calib random pass."""


@app.default
def compress_command(
    source: Path,
    output: Path,
    /,
    *,
    calib: Annotated[str, Parameter(group=DATA)],
    recipe: Annotated[Path | None, Parameter(group=LEVELS)] = None,
    skip: Annotated[tuple[str, ...], Parameter(group=LEVELS)] = (),
    options: RecipeOptions = RecipeOptions(),
    data: CalibrationOptions = CalibrationOptions(),
    report: Annotated[Path | None, Parameter(group=RUN)] = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Compress the model SOURCE on calibration data and write OUTPUT.

    Parameters
    ----------
    source
        The trained model.
    output
        Where to write the compressed model.
    calib
        An .npz file; a folder of .npz or .npy files; a folder or zip of images; a .csv, .tsv, .txt or .jsonl text, for
        which --tokenizer is needed; module.py:function yielding feeds; or random.
    recipe
        A YAML file with options, and rules for layers by name; options given here come before those in the file.
    skip
        Leave layers alone whose name matches this shell pattern; may be given several times.
    report
        Write the report to this file, as JSON.
    quiet
        Print nothing but errors.
    """
    chosen = _recipe(recipe, skip, options)
    if report is not None:
        if report.resolve() in (output.resolve(), output.with_name(f"{output.name}.data").resolve()):
            raise OutputError(f"cannot write the report to {report}: the model goes there; name another file")
        check_output(report, source)
    results = [path for path in (output, report) if path is not None]
    _check_not_read(
        results, {"--calib": re.sub(r"(\.py):\w+$", r"\1", calib), "--recipe": recipe, "--tokenizer": data.tokenizer}
    )
    before = {path: _stamp(path) for path in results}
    try:
        with _progress_bar(quiet) as (progress, say):
            found = DataOptions(**vars(data), seed=chosen.seed)
            result = compress(source, calib, chosen, output, data=found, progress=progress, say=say)
        if report is not None:
            write_json(result.report, report)
        if not quiet:
            show(lambda width: report_table(result.report, width))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*(str(path) for path in results if _stamp(path) != before[path])) from None


@app.command(name="inspect")
def inspect_command(source: Path, /) -> None:
    """Show the layers of a model, and which levels are impossible for them, and why.

    Parameters
    ----------
    source
        The model.
    """
    show(inspect_model(source))


@app.command(name="demo")
def demo_command(*, quiet: Annotated[bool, Flag] = False) -> None:
    """Compress the small classifier that comes with the package at five levels, and compare with rounding.

    Parameters
    ----------
    quiet
        Show no progress.
    """
    with _progress_bar(quiet) as (progress, _):
        table = run_demo(progress)
    show(lambda width: table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one line for every error that a user can cause, and its exit code."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        errors.print(f"error: {_explain(error)}; see onnx-obc --help")
        sys.exit(2)
    except ObcError as error:
        errors.print(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        written = ", ".join(interrupt.args)
        errors.print(f"interrupted; written: {written}" if written else "interrupted; nothing was written")
        sys.exit(130)


def _explain(error: CycloptsError) -> str:
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.argument.required:
        if error.argument.name == "--calib":
            return f"--calib is missing: name the calibration data, {KINDS}"
        return f"{error.argument.name} is missing; usage: {USAGE}"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {' '.join(error.unused_tokens or ())!r}; usage: {USAGE}"
    return " ".join(str(error).split()).removesuffix(".")


def _recipe(path: Path | None, skip: Sequence[str], options: RecipeOptions) -> Recipe:
    """The recipe file, if any, with the options of the command line over it and --skip before its rules."""
    base = Recipe() if path is None else read_recipe(path)
    given = {name: value for name, value in vars(options).items() if value is not None}
    rules = (*(Rule(match=pattern, skip=True) for pattern in skip), *base.layers)
    return make_recipe({**dict(base), **given, "layers": rules}, source="command line")


def _check_not_read(results: Sequence[Path], read: dict[str, str | Path | None]) -> None:
    """Raise OutputError if a result would replace a file that an option names to be read."""
    for option, name in read.items():
        for path in results:
            if name is not None and path.resolve() == Path(name).resolve():
                raise OutputError(f"cannot write {path}: {option} reads it; name another file")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _progress_bar(quiet: bool) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    """Shows how far each stage is, and lines of text above that, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, quiet=quiet)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], advance=done, total=total)

        yield advance, console.print
