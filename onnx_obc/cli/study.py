"""The command that studies pruning against quantization. What it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..calibration.options import DataOptions
from ..core.errors import RecipeError, plain
from .options import (
    DATA,
    RUN,
    STUDY,
    Flag,
    Html,
    MethodOptions,
    Report,
    RunOptions,
    StudyDataOptions,
    chosen_recipe,
    given,
)
from .results import check_not_read, check_results, files_of, told_what_was_written


def study_command(
    source: Path | None = None,
    /,
    *,
    calib: Annotated[str | None, Parameter(group=DATA)] = None,
    bits: Annotated[str, Parameter(group=STUDY)] = "2,3,4,8",
    size: Annotated[Literal["bytes", "paper", "bitmap", "entropy"], Parameter(group=STUDY)] = "bytes",
    prove: Annotated[float, Parameter(group=STUDY)] = 0.0,
    chunk: Annotated[int, Parameter(group=STUDY)] = 36,
    rows: Annotated[int | None, Parameter(group=STUDY)] = None,
    recipe: Annotated[Path | None, Parameter(group=STUDY)] = None,
    database: Annotated[Path | None, Parameter(group=STUDY)] = None,
    distributions: Annotated[bool, Flag, Parameter(group=STUDY)] = False,
    html: Html = None,
    report: Report = None,
    method: MethodOptions = MethodOptions(),
    run: RunOptions = RunOptions(),
    data: StudyDataOptions = StudyDataOptions(),
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Prune or quantize? What each layer of SOURCE loses at equal size, and which answers are proven.

    Parameters
    ----------
    source
        The trained model.
    calib
        Calibration data, as for compressing. [default: none: weights alone are looked at]
    bits
        Budgets, in bits for each weight, 2 to 8. [default: 2,3,4,8]
    size
        What counts as equal size: bytes of the compressed file; or 16 bits for each kept weight and a mask that is free
        (paper), of one bit for each weight (bitmap), or of its entropy. [default: bytes]
    prove
        Seconds for exact optima and bounds on chunks of layers. [default: 0]
    chunk
        Columns of a chunk. [default: 36]
    rows
        Rows of a layer that are solved, 0 for all. [default: all up to 64, 40 of more; fewer of layers with more than
        1152 columns]
    recipe
        Write a recipe that gives each layer its best way to this file (with several budgets: NAME-4bit.yaml), and
        compare whole models.
    database
        Take solutions from this folder, which onnx-obc build made.
    distributions
        Show the theory alone, of Gaussian, Laplace, uniform, Student-t and generalised Gaussian weights; no model.
    html
        Where to write the page. [default: SOURCE-study.html in the current folder]
    report
        Where to write all figures as JSON. [default: SOURCE-study.json in the current folder]
    quiet
        Print nothing but errors.
    """
    from ..report.study_table import study_table
    from ..report.table import show
    from .terminal import progress_bar

    if distributions:
        _show_theory(html, report, source, calib, quiet)
        return
    if source is None:
        raise RecipeError("name a model, or ask for --distributions, the theory that needs none")
    from ..report.study_json import write_study_json
    from ..report.study_page import write_study_page
    from ..study.study import StudyOptions, study_model
    from ..study.whole import recipe_paths

    page = html or Path(f"{source.stem}-study.html")
    figures = report or Path(f"{source.stem}-study.json")
    budgets = _budgets(bits)
    results = [page, figures, *recipe_paths(recipe, budgets).values()]
    check_results(results, [], source)
    check_not_read(results, {"--calib": calib, **files_of(data)})
    options = StudyOptions(budgets, size, prove, chunk, rows, recipe, database)
    chosen = chosen_recipe(None, (), method, run)
    with told_what_was_written(results):
        with progress_bar(quiet) as feedback:
            found = DataOptions(**{**given(data), "seed": chosen.seed})
            result = study_model(source, calib, options, chosen, data=found, feedback=feedback)
        write_study_json(result, figures)
        write_study_page(result, page)
        if not quiet:
            show(lambda width: study_table(result, width))
            print(plain(f"written: {', '.join(str(path) for path in results if path.exists())}"))
        if result.interrupted:
            raise KeyboardInterrupt


def _show_theory(html: Path | None, report: Path | None, source: Path | None, calib: str | None, quiet: bool) -> None:
    """The page, the figures and the table of the theory alone."""
    from ..report.study_json import write_study_json
    from ..report.study_table import theory_table
    from ..report.table import show
    from ..report.theory_page import write_theory_page
    from ..study.paper import theory

    if source is not None or calib is not None:
        raise RecipeError("--distributions is about no model: leave the model and --calib out, or leave it out")
    page, figures = html or Path("distributions.html"), report or Path("distributions.json")
    check_results([page, figures], [], None)
    with told_what_was_written([page, figures]):
        write_theory_page(page)
        write_study_json(theory(), figures)
        if not quiet:
            show(theory_table)
            print(plain(f"written: {page}, {figures}"))


def _budgets(text: str) -> tuple[int, ...]:
    """Bits separated by commas, each once, ascending."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"--bits {text!r}: write numbers of 2 to 8, such as 2,3,4,8")
    return tuple(sorted({int(part) for part in parts}))
