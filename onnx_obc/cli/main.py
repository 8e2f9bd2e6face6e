"""The command line: arguments in, messages out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from ..calibration.samples import KINDS, DataOptions
from ..core.errors import ObcError, OutputError, RecipeError, shortened
from ..core.version import __version__
from ..database.build import build
from ..graph.save import check_output
from ..pipeline.compress import compress
from ..pipeline.finish import Result
from ..pipeline.recipe import Recipe, Rule, make_recipe, read_recipe
from ..report.as_json import write_json
from ..report.console import messages, say
from ..report.pareto import pareto_points, write_pareto
from ..report.table import report_table, show
from ..search.budget import Budget, parse_budget
from ..search.latency.table import read_timings
from ..search.profile import SearchOptions
from ..search.retarget import compress_to_budget, default_levels, load_task, output_names, retarget
from .demo import run_demo
from .engines import bench_command, check_command, time_command
from .inspect import inspect_model
from .options import (
    DATA,
    LEVELS,
    RUN,
    SEARCH,
    CalibrationOptions,
    FinishOptions,
    Flag,
    MethodOptions,
    RunOptions,
    SearchingOptions,
    TargetOptions,
    UniformOptions,
)
from .terminal import progress_bar

LONGEST_LINE = 1500  # characters of a message: what is longer quotes something
USAGES = {
    "": "onnx-obc SOURCE OUTPUT --calib DATA [OPTIONS]",
    "build": "onnx-obc build SOURCE DATABASE --calib DATA --levels LEVELS [OPTIONS]",
    "search": "onnx-obc search DATABASE --budget BUDGET -o OUTPUT [OPTIONS]",
    "inspect": "onnx-obc inspect SOURCE",
    "check": "onnx-obc check SOURCE --target RUNTIME",
    "bench": "onnx-obc bench FILE FILE … --runtime RUNTIME [OPTIONS]",
    "time": "onnx-obc time SOURCE -o TIMINGS --runtime RUNTIME --levels LEVELS [OPTIONS]",
    "demo": "onnx-obc demo",
}

app = App(
    name="onnx-obc",
    help="Prune and quantize a trained ONNX model, without training, by the exact greedy of Optimal Brain Compression.",
    usage="Usage: " + "\n       ".join(USAGES.values()) + "\n",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable="", show_default=False),
    suppress_keyboard_interrupt=False,
)


@app.default
def compress_command(
    source: Path,
    output: Path,
    /,
    *,
    calib: Annotated[str, Parameter(group=DATA)],
    recipe: Annotated[Path | None, Parameter(group=LEVELS)] = None,
    skip: Annotated[tuple[str, ...], Parameter(group=LEVELS)] = (),
    uniform: UniformOptions = UniformOptions(),
    target: TargetOptions = TargetOptions(),
    budget: Annotated[tuple[str, ...], Parameter(group=SEARCH)] = (),
    levels: Annotated[str | None, Parameter(group=SEARCH)] = None,
    database: Annotated[Path | None, Parameter(group=SEARCH)] = None,
    searching: SearchingOptions = SearchingOptions(),
    method: MethodOptions = MethodOptions(),
    finishing: FinishOptions = FinishOptions(),
    run: RunOptions = RunOptions(),
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
    budget
        Choose a level for every layer instead: bops=12x, obc-bops=8x, flops=3x, size=0.2x, latency=4x or drop=1%;
        several give several files.
    levels
        The levels to choose from: unstructured, block4, gpu, cpu, weight-only, or a list such as 8w8a,2:4+8w8a,int4.
    database
        Keep all solutions in this folder, for other budgets later.
    report
        Write the report to this file, as JSON.
    quiet
        Print nothing but errors.
    """
    chosen = _recipe(recipe, skip, uniform, target, method, finishing, run)
    budgets = [parse_budget(text) for text in budget]
    outputs = output_names(output, budgets)
    _check_together(bool(budgets), {"--levels": levels, "--database": database}, uniform, searching)
    _check_report(report, outputs, source)
    results = [path for path in (*outputs, report) if path is not None]
    read = {"--calib": re.sub(r"(\.py):\w+$", r"\1", calib), "--recipe": recipe, "--tokenizer": data.tokenizer}
    _check_not_read(results, {**read, "--timings": searching.timings})
    with _told_what_was_written(results, database):
        with progress_bar(quiet) as (progress, tell):
            found = DataOptions(**vars(data), seed=chosen.seed)
            if budgets:
                names, options = levels or default_levels(budgets[0], chosen.target), _search_options(searching)
                made = compress_to_budget(
                    *(source, calib, budgets, outputs, names, chosen, options, database),
                    data=found,
                    progress=progress,
                    say=tell,
                )
            else:
                made = [compress(source, calib, chosen, output, data=found, progress=progress, say=tell)]
        _show_results(made, budgets, output, report, quiet)


@app.command(name="build")
def build_command(
    source: Path,
    database: Path,
    /,
    *,
    calib: Annotated[str, Parameter(group=DATA)],
    levels: Annotated[str, Parameter(group=LEVELS)],
    skip: Annotated[tuple[str, ...], Parameter(group=LEVELS)] = (),
    target: TargetOptions = TargetOptions(),
    method: MethodOptions = MethodOptions(),
    run: RunOptions = RunOptions(),
    data: CalibrationOptions = CalibrationOptions(),
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Solve every layer of SOURCE at every level, into the folder DATABASE, for `onnx-obc search`.

    Can be interrupted at any time; the same command goes on where it stopped.

    Parameters
    ----------
    source
        The trained model.
    database
        The folder to build into.
    calib
        Calibration data, as for compressing: see onnx-obc --help.
    levels
        unstructured, block4, gpu, cpu, weight-only, or a list such as 8w8a,2:4+8w8a,int4.
    skip
        Leave layers alone whose name matches this shell pattern; may be given several times.
    quiet
        Print nothing but errors.
    """
    chosen = _recipe(None, skip, target, method, run)
    with _told_what_was_written((), database), progress_bar(quiet) as (progress, tell):
        found = DataOptions(**vars(data), seed=chosen.seed)
        built = build(source, calib, levels, database, chosen, data=found, progress=progress, say=tell)
    if not quiet:
        layers = sum(len(entry.choices) > 1 for entry in built.manifest.layers)
        say(f"{database}: {layers} layers, {built.solved} solutions solved, {built.reused} were there already")


@app.command(name="search")
def search_command(
    database: Path,
    /,
    *,
    budget: Annotated[tuple[str, ...], Parameter(group=SEARCH)],
    output: Annotated[Path, Parameter(alias="-o", group=SEARCH)],
    searching: SearchingOptions = SearchingOptions(),
    finishing: FinishOptions = FinishOptions(),
    run: RunOptions = RunOptions(),
    report: Annotated[Path | None, Parameter(group=RUN)] = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Make a model for a budget from a database that `onnx-obc build` made.

    Parameters
    ----------
    database
        The folder.
    budget
        bops=12x, obc-bops=8x, flops=3x, size=0.2x, latency=4x (with --timings) or drop=1%; several give several files,
        and a plot of what they reach.
    output
        Where to write the model; with several budgets, their names are put before its ending.
    report
        Write the report to this file, as JSON; with several budgets, a list.
    quiet
        Print nothing but errors.
    """
    budgets = [parse_budget(text) for text in budget]
    outputs = output_names(output, budgets)
    over = _given(finishing, run)
    _check_report(report, outputs, None)
    results = [path for path in (*outputs, report) if path is not None]
    _check_not_read(results, {"--timings": searching.timings, "the database": database / "model.onnx"})
    with _told_what_was_written(results):
        with progress_bar(quiet) as (progress, tell):
            made = retarget(database, budgets, outputs, _search_options(searching), over, progress=progress, say=tell)
        _show_results(made, budgets, output, report, quiet)


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
    with progress_bar(quiet) as (progress, _):
        table = run_demo(progress)
    show(lambda width: table)


app.command(check_command, name="check")
app.command(bench_command, name="bench")
app.command(time_command, name="time")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one line for every error that a user can cause, and its exit code."""
    errors = messages()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(tokens or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        command = tokens[0] if tokens[0] in USAGES else ""
        said = shortened(_explain(error, USAGES[command]), LONGEST_LINE)
        errors.print(f"error: {said}; see onnx-obc {command} --help".replace("  ", " "))
        sys.exit(2)
    except ObcError as error:
        errors.print(f"error: {shortened(str(error), LONGEST_LINE)}")
        sys.exit(error.exit_code)
    except MemoryError:
        errors.print("error: out of memory; give fewer --samples, a smaller --batch, or a lower --memory")
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        written = ", ".join(interrupt.args)
        errors.print(f"interrupted; written: {written}" if written else "interrupted; nothing was written")
        sys.exit(130)


def _explain(error: CycloptsError, usage: str) -> str:
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.argument.required:
        if error.argument.name == "--calib":
            return f"--calib is missing: name the calibration data, {KINDS}"
        return f"{error.argument.name} is missing; usage: {usage}"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {' '.join(error.unused_tokens or ())!r}; usage: {usage}"
    return " ".join(str(error).split()).removesuffix(".")


def _recipe(path: Path | None, skip: Sequence[str], *options: object) -> Recipe:
    """The recipe file, if any, with the options of the command line over it and --skip before its rules."""
    base = Recipe() if path is None else read_recipe(path)
    rules = (*(Rule(match=pattern, skip=True) for pattern in skip), *base.layers)
    return make_recipe({**dict(base), **_given(*options), "layers": rules}, source="command line")


def _given(*options: object) -> dict[str, object]:
    """The options that were given."""
    return {name: value for group in options for name, value in vars(group).items() if value is not None}


def _search_options(options: SearchingOptions) -> SearchOptions:
    if options.task is not None and options.sensitivity != "task":
        raise RecipeError("--task has no effect without --sensitivity task; add it")
    timings = None if options.timings is None else read_timings(options.timings)
    task = None if options.task is None else load_task(options.task)
    batch = options.timing_batch
    if batch < 1:
        raise RecipeError(f"--timing-batch {batch}: ask for at least 1")
    return SearchOptions(options.sensitivity, options.search, timings, batch, options.other_machine, task)


def _check_together(
    budget: bool, only_with: dict[str, object], uniform: UniformOptions, searching: SearchingOptions
) -> None:
    """Raise RecipeError for options that need a budget, and for levels where a budget chooses them."""
    for name, value in only_with.items():
        if value is not None and not budget:
            raise RecipeError(f"{name} needs a --budget, such as bops=12x or size=0.2x")
    if searching != SearchingOptions() and not budget:
        raise RecipeError("--sensitivity, --search, --task and --timings need a --budget, such as bops=12x")
    if budget and (given := _given(uniform)):
        name = next(iter(given)).replace("_", "-")
        raise RecipeError(
            f"--{name} fixes a level, but with a budget the search chooses; leave it out, or use --levels"
        )


def _show_results(
    made: Sequence[Result], budgets: Sequence[Budget], output: Path, report: Path | None, quiet: bool
) -> None:
    """Write reports and the plot, and print what a terminal shows."""
    if report is not None:
        write_json([result.report for result in made] if len(budgets) > 1 else made[0].report, report)
    if not quiet:
        for result in made:
            show(lambda width, result=result: report_table(result.report, width))  # type: ignore[misc]
    if len(budgets) > 1:
        files = write_pareto(pareto_points(made), output.with_name(f"{output.stem}-pareto"))
        if not quiet:
            say(f"written: {', '.join(str(path) for path in files)}")


@contextmanager
def _told_what_was_written(results: Sequence[Path], database: Path | None = None) -> Iterator[None]:
    """On an interrupt, say which of the results had been written, and what there is of a database."""
    before = {path: _stamp(path) for path in results}
    try:
        yield
    except KeyboardInterrupt:
        written = [str(path) for path in results if _stamp(path) != before[path]]
        if database is not None and database.exists():
            written.append(f"a part of {database}; the same command goes on from there")
        raise KeyboardInterrupt(*written) from None


def _check_report(report: Path | None, outputs: Sequence[Path], source: Path | None) -> None:
    """Raise OutputError if the report cannot be written, or would replace a model that was read or is written."""
    if report is None:
        return
    taken = {path.with_name(path.name + end).resolve() for path in outputs for end in ("", ".data")}
    if report.resolve() in taken:
        raise OutputError(f"cannot write the report to {report}: the model goes there; name another file")
    check_output(report, source)


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


if __name__ == "__main__":
    main()
