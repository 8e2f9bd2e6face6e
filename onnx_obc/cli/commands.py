"""The commands that make models: compress, build and search. What they need is imported when they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..calibration.options import DataOptions
from ..core.errors import GateError, RecipeError, plain
from ..core.plural import counted
from .options import (
    LEVELS,
    RUN,
    SEARCH,
    Budgets,
    Calib,
    CalibrationOptions,
    Eval,
    FinishOptions,
    Flag,
    Html,
    MethodOptions,
    Metric,
    Output,
    Overlay,
    Report,
    RunOptions,
    SearchingOptions,
    UniformOptions,
    chosen_recipe,
    given,
)
from .report import Beside, check_beside, write_beside
from .results import check_not_read, files_of, told_what_was_written

if TYPE_CHECKING:
    from ..pipeline.examine import Evaluation
    from ..pipeline.finish import Result
    from ..search.budget import Budget
    from ..search.profile import SearchOptions


def compress_command(
    source: Path,
    /,
    output: Output,
    *,
    calib: Calib,
    recipe: Annotated[Path | None, Parameter(group=LEVELS)] = None,
    skip: Annotated[tuple[str, ...], Parameter(group=LEVELS)] = (),
    uniform: UniformOptions = UniformOptions(),
    budget: Budgets = (),
    levels: Annotated[str | None, Parameter(group=SEARCH)] = None,
    database: Annotated[Path | None, Parameter(group=SEARCH)] = None,
    searching: SearchingOptions = SearchingOptions(),
    method: MethodOptions = MethodOptions(),
    metric: Metric = None,
    eval_data: Eval = None,
    finishing: FinishOptions = FinishOptions(),
    run: RunOptions = RunOptions(),
    data: CalibrationOptions = CalibrationOptions(),
    report: Report = None,
    html: Html = None,
    overlay: Overlay = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Compress the model SOURCE on calibration data and write OUTPUT.

    Parameters
    ----------
    source
        The trained model.
    output
        Where to write the compressed model.
    recipe
        A YAML file with options, and rules for layers by name; options given here come before those in the file.
    skip
        Leave layers alone of this name, or that match it as a shell pattern; may be given several times.
    levels
        The levels to choose from: unstructured, block4, gpu, cpu, dynamic, weight-only, or a list such as 8w8a,int4.
    database
        Keep all solutions in this folder, for other budgets later.
    report
        Write the report to this file, as JSON.
    html
        Write the report to this file as a page, which opens in a browser and loads nothing.
    overlay
        Write the layers' figures for a graph viewer: a .json file for Model Explorer, an .onnx file for Netron.
    quiet
        Print nothing but errors.
    """
    from ..pipeline.compress import compress
    from ..search.budget import parse_budget
    from ..search.retarget import compress_to_budget, output_names
    from .terminal import progress_bar

    chosen = chosen_recipe(recipe, skip, uniform, method, finishing, run)
    budgets = [parse_budget(text) for text in budget]
    outputs = output_names(output, budgets)
    _check_together(bool(budgets), {"--levels": levels, "--database": database}, uniform, searching)
    results = check_beside(outputs, Beside(report, html, overlay), budgets, source)
    read = {"--calib": calib, "--eval": eval_data, "--metric": metric, "--task": searching.task, "--recipe": recipe}
    check_not_read(results, {**read, **files_of(data), "--timings": searching.timings})
    with told_what_was_written(results, database):
        with progress_bar(quiet) as feedback:
            found = DataOptions(**{**given(data), "seed": chosen.seed})
            judged = _evaluation(metric, eval_data, found)

            def make() -> list[Result]:
                if not budgets:
                    return [compress(source, calib, chosen, output, data=found, evaluation=judged, feedback=feedback)]
                options = replace(_search_options(searching), levels=levels, database=database, evaluation=judged)
                return compress_to_budget(
                    source, calib, budgets, outputs, chosen, options, data=found, feedback=feedback
                )

            made, refusal = _made(make)
        _show_results(made, budgets, output, Beside(report, html, overlay), quiet)
    if refusal is not None:
        raise refusal


def build_command(
    source: Path,
    /,
    database: Output,
    *,
    calib: Calib,
    levels: Annotated[str, Parameter(group=LEVELS)],
    skip: Annotated[tuple[str, ...], Parameter(group=LEVELS)] = (),
    method: MethodOptions = MethodOptions(),
    run: RunOptions = RunOptions(),
    workers: Annotated[str | None, Parameter(group=RUN)] = None,
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
    levels
        unstructured, block4, gpu, cpu, dynamic, weight-only, or a list such as 8w8a,2:4+8w8a,int4.
    skip
        Leave layers alone of this name, or that match it as a shell pattern; may be given several times.
    workers
        Share the work out: over so many processes; auto, one for each GPU or else core; ray, the Ray cluster that this
        machine is in, or ray://host:port.
    quiet
        Print nothing but errors.
    """
    from ..database.build import build
    from .terminal import progress_bar

    chosen = chosen_recipe(None, skip, method, run)
    with told_what_was_written((), database), progress_bar(quiet) as feedback:
        found = DataOptions(**{**given(data), "seed": chosen.seed})
        built = build(source, calib, levels, database, chosen, data=found, feedback=feedback, workers=workers)
    if not quiet:
        layers = sum(len(entry.choices) > 1 for entry in built.manifest.layers)
        solved = f"{counted(built.solved, 'solution')} solved, {built.reused} there already"
        print(plain(f"{database}: {counted(layers, 'layer')}, {solved}"))


def search_command(
    database: Path,
    /,
    output: Output,
    *,
    budget: Budgets,
    searching: SearchingOptions = SearchingOptions(),
    metric: Metric = None,
    eval_data: Eval = None,
    finishing: FinishOptions = FinishOptions(),
    run: RunOptions = RunOptions(),
    data: CalibrationOptions = CalibrationOptions(),
    report: Report = None,
    html: Html = None,
    overlay: Overlay = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Make a model for a budget from a database that `onnx-obc build` made.

    Parameters
    ----------
    database
        The folder.
    output
        Where to write the model; with several budgets, their names are put before its ending.
    report
        Write the report to this file, as JSON; with several budgets, a list.
    html
        Write the report to this file as a page, which opens in a browser and loads nothing; one for all budgets.
    overlay
        Write the layers' figures for a graph viewer: a .json file for Model Explorer, an .onnx file for Netron.
    quiet
        Print nothing but errors.
    """
    from ..search.budget import parse_budget
    from ..search.retarget import output_names, retarget
    from .terminal import progress_bar

    budgets = [parse_budget(text) for text in budget]
    outputs = output_names(output, budgets)
    over = given(finishing, run)
    results = check_beside(outputs, Beside(report, html, overlay), budgets, None)
    read = {"--eval": eval_data, "--metric": metric, "--task": searching.task, **files_of(data)}
    check_not_read(results, {**read, "--timings": searching.timings, "the database": database / "model.onnx"})
    with told_what_was_written(results):
        if eval_data is None and (fixed := given(data)):
            raise RecipeError(f"--{next(iter(fixed)).replace('_', '-')} has no effect without --eval; leave it out")
        judged = _evaluation(metric, eval_data, DataOptions(**given(data)))
        options = replace(_search_options(searching), evaluation=judged)
        with progress_bar(quiet) as feedback:
            made, refusal = _made(lambda: retarget(database, budgets, outputs, options, over, feedback=feedback))
        _show_results(made, budgets, output, Beside(report, html, overlay), quiet)
    if refusal is not None:
        raise refusal


def _made(make: Callable[[], list[Result]]) -> tuple[Sequence[Result], GateError | None]:
    """What was made, and the error if a gate refused some of it: reports are written of that too."""
    try:
        return make(), None
    except GateError as error:
        return error.results, error


def _evaluation(metric: str | None, data: str | None, options: DataOptions) -> Evaluation | None:
    from ..pipeline.examine import Evaluation

    if metric is None and data is not None:
        raise RecipeError(f"--eval {data} has no effect without --metric; add it, e.g. --metric top-1")
    return None if metric is None else Evaluation(metric, data, replace(options, samples=None))


def _search_options(options: SearchingOptions) -> SearchOptions:
    from ..search.latency.table import read_timings
    from ..search.profile import SearchOptions
    from ..search.retarget import load_task

    if options.task is not None and options.sensitivity != "task":
        raise RecipeError("--task has no effect without --sensitivity task; add it")
    timings = None if options.timings is None else read_timings(options.timings)
    task = None if options.task is None else load_task(options.task)
    return SearchOptions(options.sensitivity, options.search, timings, options.other_machine, task)


def _check_together(
    budget: bool, only_with: dict[str, object], uniform: UniformOptions, searching: SearchingOptions
) -> None:
    """Raise RecipeError for options that need a budget, and for levels where a budget chooses them."""
    for name, value in only_with.items():
        if value is not None and not budget:
            raise RecipeError(f"{name} needs a --budget, such as bops=12x or size=0.2x")
    if searching != SearchingOptions() and not budget:
        default = vars(SearchingOptions())
        name = next(name for name, value in vars(searching).items() if value != default[name])
        raise RecipeError(f"--{name.replace('_', '-')} needs a --budget, such as bops=12x")
    if budget and (fixed := given(uniform)):
        name = next(iter(fixed)).replace("_", "-")
        raise RecipeError(
            f"--{name} fixes a level, but with a budget the search chooses; leave it out, or use --levels"
        )


def _show_results(made: Sequence[Result], budgets: Sequence[Budget], output: Path, beside: Beside, quiet: bool) -> None:
    """Write reports and the plot, and print what a terminal shows."""
    from ..report.pareto import pareto_points, write_pareto
    from ..report.table import report_table, show

    if beside != Beside():
        write_beside([result.report for result in made], beside)
    if not quiet:
        for result in made:
            show(lambda width, result=result: report_table(result.report, width))  # type: ignore[misc]
    if len(budgets) > 1:
        files = write_pareto(pareto_points(made), output.with_name(f"{output.stem}-pareto"))
        if not quiet:
            print(plain(f"written: {', '.join(str(path) for path in files)}"))
