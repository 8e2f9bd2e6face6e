"""What --help shows: the options that most people need, and examples; --help-all shows every option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

HELP, ALL = ("--help", "-h"), "--help-all"

USAGES = {
    "": "onnx-obc SOURCE OUTPUT --calib DATA [OPTIONS]",
    "compress": "onnx-obc compress SOURCE OUTPUT --calib DATA [OPTIONS]",
    "build": "onnx-obc build SOURCE DATABASE --calib DATA --levels LEVELS [OPTIONS]",
    "search": "onnx-obc search DATABASE --budget BUDGET -o OUTPUT [OPTIONS]",
    "report": "onnx-obc report REPORT -o OUTPUT [OPTIONS]",
    "inspect": "onnx-obc inspect SOURCE",
    "study": "onnx-obc study SOURCE [--calib DATA] [OPTIONS]",
    "debug": "onnx-obc debug DENSE COMPRESSED [--calib DATA] [OPTIONS]",
    "check": "onnx-obc check SOURCE --target RUNTIME",
    "bench": "onnx-obc bench FILE FILE … --target RUNTIME [OPTIONS]",
    "time": "onnx-obc time SOURCE -o OUTPUT --target RUNTIME [OPTIONS]",
    "demo": "onnx-obc demo",
}

EXAMPLES = (  # each on one line of 80 columns, to be pasted
    "onnx-obc in.onnx out.onnx --calib images.zip --preprocess imagenet",
    "onnx-obc in.onnx out.onnx --calib data.npz --weights int4 --activations none",
    "onnx-obc in.onnx out.onnx --calib texts.csv --tokenizer tokenizer.json",
    "onnx-obc in.onnx out.onnx --calib data.npz --target tensorrt --budget bops=6x",
)

# What most people need, and what the commands that time files need besides.
EVERYDAY = {
    *("--calib", "--samples", "--preprocess", "--tokenizer", "--target", "--weights", "--activations", "--sparsity"),
    *("--skip", "--recipe", "--budget", "--levels", "--output", "--report", "--html", "--quiet"),
}
ENGINES = {"--batch", "--threads", "--rounds"}
DEBUG = {"--threshold", "--fix"}
STUDY = {"--bits", "--size", "--prove", "--distributions"}


@dataclass(frozen=True)
class Help:
    """Shows a panel of a command's help without the options that few need, unless `everything` is asked for."""

    command: str
    everything: bool

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print the panel, if anything is left of it."""
        from cyclopts.help.formatters import DefaultFormatter

        entries = [entry for entry in panel.entries if panel.format == "command" or self.shown(entry)]
        if entries:
            DefaultFormatter()(console, options, panel.copy(entries=entries))

    def shown(self, entry: HelpEntry) -> bool:
        """Whether an option is to be shown."""
        more = {
            **dict.fromkeys(("check", "bench", "time"), ENGINES),
            "study": STUDY,
            "debug": DEBUG,
            "report": {"--overlay"},
        }
        wanted = EVERYDAY | more.get(self.command, set())
        return self.everything or bool(wanted.intersection(entry.all_options)) or entry.positional_label is not None


def epilogue(command: str, everything: bool) -> str:
    """What stands below the options."""
    lines = []
    if command in ("", "compress"):
        lines = ["Examples:", *(f"  {example}" for example in EXAMPLES), ""]
    if not everything and command not in ("report", "inspect", "demo"):
        lines.append(f"All options: {' '.join(filter(None, ('onnx-obc', command)))} {ALL}")
    return "\n".join(lines)
