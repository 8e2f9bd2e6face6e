"""The commands that run files in engines: check, bench and time. What they need is imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..calibration.options import DataOptions
from ..core.errors import CalibrationError, ModelError, RecipeError, plain, shortened
from .options import DATA, RUN, CalibrationOptions, Flag, Html, Output, Report, Target, check_threads
from .results import check_not_read, check_results, files_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..core.arrays import Feed

Runtime = Annotated[Target, Parameter(name=("--target", "--runtime"))]  # --runtime: as it was called before
Data = Annotated[str, Parameter(group=DATA)]
Threads = Annotated[int | None, Parameter(group=RUN)]


def check_command(
    source: Path,
    /,
    *,
    target: Target,
    calib: Data = "random",
    data: CalibrationOptions = CalibrationOptions(),
    threads: Threads = None,
    report: Report = None,
    html: Html = None,
) -> None:
    """Check any ONNX file against the rules of a runtime, and against what it runs where the runtime is installed.

    Exit code 1 if the runtime would refuse the file or compute something else.

    Parameters
    ----------
    source
        The file, whoever wrote it.
    target
        The runtime.
    calib
        The input to run: data as for compressing, of which the first --batch samples are taken. [default: random]
    threads
        Threads of the runtime. [default: all cores]
    report
        Write all findings to this file too, as JSON.
    html
        Write all findings to this file too, as a page.
    """
    from ..core.files import write_plain
    from ..graph.model import read_model
    from ..report.engine_pages import write_check_page
    from ..report.engines import examination_table
    from ..report.table import show
    from ..targets.check import check_file

    check_threads(threads)
    check_results([report, html], [], source)
    _check_not_read([report, html], calib, data)
    found = check_file(source, target, _any_feed(read_model(source), calib, data), threads)
    if report is not None:
        write_plain(report, found.to_dict())
    if html is not None:
        write_check_page(found, html)
    show(lambda width: examination_table(found, width))
    if found.failed:
        sys.exit(1)


def bench_command(
    *files: Path,
    target: Runtime = "onnxruntime",
    calib: Data = "random",
    data: CalibrationOptions = CalibrationOptions(),
    threads: Threads = None,
    rounds: Annotated[int, Parameter(group=RUN)] = 15,
    report: Report = None,
    html: Html = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Time files against the first of them, in turn, in one runtime, and compare their outputs.

    Parameters
    ----------
    files
        The files, of models with the same inputs.
    target
        The runtime. [default: onnxruntime]
    calib
        The input to run: data as for compressing, of which the first --batch samples are taken. [default: random]
    threads
        Threads of the runtime. [default: all cores]
    rounds
        How often each file has its turn. [default: 15]
    report
        Write the figures to this file too, as JSON.
    html
        Write the figures to this file too, as a page.
    quiet
        Show no progress.
    """
    from ..core.files import write_plain
    from ..graph.model import read_model
    from ..report.engine_pages import write_bench_page
    from ..report.engines import bench_table
    from ..report.table import show
    from ..targets.bench import bench
    from .terminal import progress_bar

    if len(files) < 2:
        raise RecipeError("bench compares files: name two or more")
    check_threads(threads)
    if rounds < 1:
        raise RecipeError(f"--rounds {rounds}: ask for at least 1")
    for path in files:
        check_results([report, html], [], path)
    _check_not_read([report, html], calib, data)
    models = [read_model(path) for path in files]  # says what is wrong with one
    feed = read_feed(models[0], calib, data)
    for path, model in zip(files[1:], models[1:], strict=True):
        _check_inputs(path, model, files[0], feed)
    with progress_bar(quiet) as feedback:
        found = bench(files, target, feed, threads, rounds, feedback.progress)
    found = replace(found, synthetic=calib == "random")
    if report is not None:
        write_plain(report, found.to_dict())
    if html is not None:
        write_bench_page(found, html)
    show(lambda width: bench_table(found))


def time_command(
    source: Path,
    /,
    output: Annotated[Output, Parameter(name=("--output", "-o", "--json"))],
    *,
    target: Runtime = "onnxruntime",
    levels: Annotated[str, Parameter(group=RUN)] = "8w8a",
    calib: Data = "random",
    data: CalibrationOptions = CalibrationOptions(),
    threads: Threads = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Time every layer of a model at every level in a runtime, for budgets of latency.

    Parameters
    ----------
    source
        The model.
    output
        Where to write the table, as JSON; search reads it with --timings.
    target
        The runtime. [default: onnxruntime]
    levels
        unstructured, block4, gpu, cpu, dynamic, weight-only, or a list such as 8w8a,2:4+8w8a. [default: 8w8a]
    calib
        The input to run: data as for compressing, of which the first --batch samples are taken. [default: random]
    threads
        Threads of the runtime. [default: all cores]
    quiet
        Show no progress.
    """
    from ..core.level_sets import read_levels
    from ..graph.model import read_model
    from ..graph.save import check_output
    from ..pipeline.plan import check_any, possible_choices, prepare
    from ..pipeline.recipe import make_recipe
    from ..pipeline.speed import subject_of
    from ..report.engines import timing_table
    from ..report.table import show
    from ..search.latency.layer_times import time_layers
    from ..search.latency.table import write_timings
    from ..targets.registry import TARGETS
    from .terminal import progress_bar

    check_output(output, source)
    _check_not_read([output], calib, data)
    recipe = make_recipe({"target": target, "threads": threads}, "command line")
    model = read_model(source)
    subject = subject_of(prepare(model))
    wanted = read_levels(levels, zero_points=TARGETS[recipe.target].zero_points(None))
    choices = possible_choices(subject.layers, wanted, recipe)
    check_any(choices, levels)
    feed = read_feed(model, calib, data)
    with progress_bar(quiet) as feedback:
        found = time_layers(subject, choices, feed, recipe, feedback.progress)
    write_timings(found, output)
    if not quiet:
        show(lambda width: timing_table(found, wanted))


def _check_not_read(results: Sequence[Path | None], calib: str, data: CalibrationOptions) -> None:
    check_not_read([path for path in results if path is not None], {"--calib": calib, **files_of(data)})


def read_feed(model: ir.Model, calib: str, data: CalibrationOptions) -> Feed:
    """One feed of --batch samples of the data; random numbers do, as only time or form is looked at."""
    from ..calibration.data import open_samples
    from ..graph.model import input_specs

    specs = input_specs(model)
    sizes = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    batch = data.batch or (sizes.pop() if len(sizes) == 1 else 1)
    given = {name: value for name, value in vars(data).items() if value is not None}
    options = {**given, "batch": batch, "samples": data.samples or batch, "allow_random": True}
    samples = open_samples(calib, specs, DataOptions(**options), model)
    return next(iter(samples.read(0, samples.count))).feed


def _check_inputs(path: Path, model: ir.Model, first: Path, feed: Feed) -> None:
    """Raise ModelError unless a model takes what was made for the first."""
    from ..graph.model import input_specs

    for spec in input_specs(model):
        if (array := feed.get(spec.name)) is None:
            raise ModelError(
                f"{path} takes input {spec.name!r}, which {first} has not; name files with the same inputs"
            )
        fits = len(array.shape) == len(spec.shape) and all(
            size in (None, given) for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            given = f"{array.dtype.name}{list(array.shape)}"
            raise ModelError(
                f"{path} takes {spec.words} for input {spec.name!r}, but {first} was given {given}; name files with "
                "the same inputs, or a --batch and data that fit both"
            )


def _any_feed(model: ir.Model, calib: str, data: CalibrationOptions) -> Feed | None:
    """The same, or None where random numbers do not fit a model: its form can still be checked."""
    try:
        return read_feed(model, calib, data)
    except (CalibrationError, ModelError) as error:
        if calib != "random":
            raise
        print(plain(f"not run: {shortened(str(error))}"), file=sys.stderr)
        return None
