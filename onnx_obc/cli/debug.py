"""The command that says where a compressed file loses its accuracy. What it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..calibration.options import DataOptions
from ..core.errors import OutputError, RecipeError, plain
from ..core.plural import counted
from .options import DATA, DEBUG, RUN, DebugDataOptions, Flag, Html, Report, check_threads, given
from .results import check_not_read, check_results, files_of, told_what_was_written

MOST_FIXED = 10


def debug_command(
    dense: Path,
    compressed: Path,
    /,
    *,
    calib: Annotated[str, Parameter(group=DATA)] = "random",
    threshold: Annotated[float, Parameter(group=DEBUG)] = 20.0,
    fix: Annotated[int | None, Parameter(group=DEBUG)] = None,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), group=DEBUG)] = None,
    html: Html = None,
    report: Report = None,
    data: DebugDataOptions = DebugDataOptions(),
    threads: Annotated[int | None, Parameter(group=RUN)] = None,
    quiet: Annotated[bool, Flag, Parameter(group=RUN)] = False,
) -> None:
    """Where does COMPRESSED, whoever made it, lose the accuracy of DENSE, and which layers would gain most?

    Parameters
    ----------
    dense
        The model that the compressed file was made from.
    compressed
        The compressed file: of this tool, onnxruntime's quantizer, ModelOpt, NNCF, …
    calib
        Data as for compressing. On random numbers integers look worse than they are. [default: random]
    threshold
        Name the first value whose signal-to-noise ratio is lower, in dB. [default: 20]
    fix
        Write a recipe that returns so many layers, 1 to 10, to float or int8 weights: those that gain most.
    output
        Where the recipe of --fix goes, for --recipe when DENSE is compressed again. [default: COMPRESSED-fix.yaml here]
    html
        Write a page with the error along the depth of the graph.
    report
        Write all figures to this file too, as JSON.
    threads
        Threads of the runtime. [default: all cores]
    quiet
        Print nothing but errors.
    """
    from ..core.files import write_file
    from ..debug.debug import DebugOptions, debug_models
    from ..debug.mend import gaining, recipe_text
    from ..pipeline.recipe import Recipe
    from ..report.debug_json import write_debug_json
    from ..report.debug_page import write_debug_page
    from ..report.debug_table import debug_table
    from ..report.table import show
    from .terminal import progress_bar

    if fix is not None and not 1 <= fix <= MOST_FIXED:
        raise RecipeError(f"--fix {fix}: a recipe returns 1 to {MOST_FIXED} layers; write e.g. --fix 3")
    if output is not None and fix is None:
        raise RecipeError(f"--output {output} is where the recipe of --fix goes; say how many layers, e.g. --fix 3")
    check_threads(threads)
    recipe = (output or Path(f"{compressed.stem}-fix.yaml")) if fix is not None else None
    results = [path for path in (recipe, html, report) if path is not None]
    check_results(results, [], dense)
    for path in results:
        if path.resolve() == compressed.resolve():
            raise OutputError(f"cannot write {path}: it is the compressed model; name another file")
    check_not_read(results, {"--calib": calib, **files_of(data)})
    options = DataOptions(**given(data))
    with told_what_was_written(results):
        with progress_bar(quiet) as feedback:
            execution = Recipe(device="cpu", threads=threads).execution()
            found = debug_models(
                dense, compressed, calib, DebugOptions(threshold), data=options, execution=execution, feedback=feedback
            )
        chosen = gaining(found, fix or 0)
        if recipe is not None:
            write_file(recipe, recipe_text(found, chosen).encode())
        if report is not None:
            write_debug_json(found, report)
        if html is not None:
            write_debug_page(found, html)
        if quiet:
            return
        show(lambda width: debug_table(found, width))
        if recipe is not None:
            print(plain(_about_recipe(recipe, len(chosen), dense)))
        if others := [str(path) for path in (report, html) if path is not None]:
            print(plain(f"written: {', '.join(others)}"))


def _about_recipe(recipe: Path, count: int, dense: Path) -> str:
    """What the recipe is for, or that it is for nothing."""
    if not count:
        return f"written: {recipe}, without a rule of its own: no layer's return gains anything"
    return (
        f"written: {recipe}, which returns {counted(count, 'layer')}; next: onnx-obc {dense} OUTPUT --calib DATA "
        f"--recipe {recipe}"
    )
