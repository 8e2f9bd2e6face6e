"""The command line: arguments in, messages out. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from ..calibration.options import KINDS
from ..core.errors import ObcError, plain, shortened
from ..core.version import __version__
from .commands import build_command, compress_command, search_command
from .debug import debug_command
from .engines import bench_command, check_command, time_command
from .help import ALL, HELP, USAGES, Help, epilogue
from .options import Flag
from .report import report_command
from .results import typed
from .study import study_command


def inspect_command(source: Path, /) -> None:
    """Show the layers of a model, and which levels are impossible for them, and why.

    Parameters
    ----------
    source
        The model.
    """
    from ..report.table import show
    from .inspect import inspect_model

    show(inspect_model(source))


def demo_command(*, quiet: Annotated[bool, Flag] = False) -> None:
    """Compress the small classifier that comes with the package at five levels, and compare with rounding.

    Parameters
    ----------
    quiet
        Show no progress.
    """
    from ..report.table import show
    from .demo import run_demo
    from .terminal import progress_bar

    with progress_bar(quiet) as feedback:
        table = run_demo(feedback.progress)
    show(lambda width: table)


LONGEST_LINE = 1500  # characters of a message: what is longer quotes something
app = App(
    name="onnx-obc",
    help="Prune and quantize a trained ONNX model, without labels, by the exact greedy of Optimal Brain Compression.",
    usage="Usage: " + "\n       ".join(USAGES.values()) + "\n",
    version=__version__,
    help_flags=(*HELP, ALL),
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable="", show_default=False),
    suppress_keyboard_interrupt=False,
)
app.default(compress_command)
COMMANDS: dict[str, Callable[..., None]] = {
    "compress": compress_command,
    "build": build_command,
    "search": search_command,
    "report": report_command,
    "inspect": inspect_command,
    "study": study_command,
    "debug": debug_command,
    "check": check_command,
    "bench": bench_command,
    "time": time_command,
    "demo": demo_command,
}
for number, (name, function) in enumerate(COMMANDS.items()):
    app.command(function, name=name, usage=f"Usage: {USAGES[name]}\n", sort_key=number)
app.register_install_completion_command(add_to_startup=False, help="Write the completion of your shell to its folder.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: one line for every error that a user can cause, and its exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    command = tokens[0] if tokens and tokens[0] in USAGES else ""
    if meant := _misspelt(tokens):
        _say(f"error: {tokens[0]!r} is no command, and no file of that name is there; did you mean {meant}?")
        sys.exit(2)
    typed.set(tuple(tokens))
    everything = ALL in tokens
    app.help_formatter = Help(command, everything)
    app.help_epilogue = epilogue(command, everything)
    try:
        app(tokens or ["--help"], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        said = shortened(_explain(error, USAGES[command]), LONGEST_LINE)
        _say(f"error: {said}; see {' '.join(filter(None, ('onnx-obc', command)))} --help")
        sys.exit(2)
    except ObcError as error:
        _say(f"error: {shortened(str(error), LONGEST_LINE)}")
        sys.exit(error.exit_code)
    except MemoryError:
        _say("error: out of memory; give fewer --samples, a smaller --batch, or a lower --memory")
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        written = ", ".join(interrupt.args)
        _say(f"interrupted; written: {written}" if written else "interrupted; nothing was written")
        sys.exit(130)


def _misspelt(tokens: Sequence[str]) -> str | None:
    """The command that the first argument is a slip of, unless it can name a model."""
    if not tokens or not tokens[0].isalpha() or tokens[0] in COMMANDS:
        return None
    near = difflib.get_close_matches(tokens[0].lower(), COMMANDS, n=1, cutoff=0.7)
    return near[0] if near and not Path(tokens[0]).exists() else None


def _say(line: str) -> None:
    print(plain(line), file=sys.stderr)


def _explain(error: CycloptsError, usage: str) -> str:
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.argument.required:
        if error.argument.name == "--calib":
            return f"--calib is missing: name the calibration data, {KINDS}"
        named = error.argument.field_info
        name = (
            named.names[0].upper() if named.is_positional else error.argument.name
        )  # OUTPUT, which --output names too
        return f"{name} is missing; usage: {usage}"
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument {' '.join(error.unused_tokens or ())!r}; usage: {usage}"
    return " ".join(str(error).split()).removesuffix(".")


if __name__ == "__main__":
    main()
