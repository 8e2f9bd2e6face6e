"""Every error that a user can cause. Each message names the thing, the cause and the remedy, on one line."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence
from typing import Any


class ObcError(Exception):
    """Base of all errors that the command line shows as one line; `exit_code` is what the process returns."""

    exit_code = 2


class ModelError(ObcError):
    """The ONNX model cannot be read, is not valid, or uses something that cannot be handled."""


class CalibrationError(ObcError):
    """The calibration data does not fit the model, or holds values that cannot be used."""


class RecipeError(ObcError):
    """The user asked for something that does not exist or does not go together."""


class OutputError(ObcError):
    """The result cannot be written where the user asked."""


class DatabaseError(ObcError):
    """A database of solutions is damaged, unfinished, or belongs to something else."""


class ReportError(ObcError):
    """A file is no report, or holds values that none has."""


class EngineError(ObcError):
    """A runtime is not installed, crashed, or cannot run a file."""


class WorkerError(ObcError):
    """Workers cannot be had, do not agree with this machine, or died of what they were given."""


class VerificationError(ObcError):
    """The written file failed one of its checks; it was left under a `.rejected` name."""

    exit_code = 1


class GateError(ObcError):
    """A model is not good or fast enough for the user's own gates; it was left under a `.rejected` name.

    results: of all models that were made, the refused ones too.
    """

    exit_code = 3

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


LONGEST = 200  # characters of another's message, or of a value, that a message of ours quotes


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())


def shortened(text: str, most: int = LONGEST) -> str:
    """Text on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


def quoted(value: object) -> str:
    """A value as Python writes it, shortened, whatever it is."""
    limits = reprlib.Repr()
    limits.maxstring = limits.maxother = limits.maxlong = LONGEST
    try:
        return shortened(limits.repr(value))
    except ValueError:  # Python writes no numbers of thousands of digits
        return "a number of thousands of digits"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def plain(text: str) -> str:
    """Text without control and format characters, but for line breaks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(each for each in text if each == "\n" or unicodedata.category(each) not in ("Cc", "Cf", "Cs"))
