"""Calibration data that Python code makes: a function that yields feeds, or a list of feeds.

Every feed is a dict of input name to array, used whole, as it is; one sample is one feed. An entry `labels` that is no
input is what metrics compare its outputs with. A function is called without
arguments every time the data is read, and must yield the same feeds each time. It is called once at opening, to count
and check them; at most as many feeds are taken as samples were asked for, the first ones.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ...core.arrays import Feed
from ...core.errors import CalibrationError, shortened
from ...core.plural import counted
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Batch, Samples
from .arrays import LABELS
from .feeds import SAMPLES, check_feed, check_range, deliver, plan_samples, stack_labels, too_few
from .magnitudes import magnitude_notes, magnitudes


def open_list(data: Sequence[object], inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of a list of feeds. Raises CalibrationError."""
    plan = plan_samples(len(data), "feeds in the list", inputs, options, whole=True)

    def name_of(position: int) -> str:
        return f"feed {plan.order[position]} of the list"

    def load(position: int) -> Feed:
        return _split(data[plan.order[position]], inputs, name_of(position))[0]

    def label(position: int) -> Any:
        return _split(data[plan.order[position]], inputs, name_of(position))[1]

    labelled = all(label(position) is not None for position in range(len(plan.order)))
    sizes = [magnitudes(load(position)) for position in range(len(plan.order))]
    plan = replace(plan, notes=plan.notes + magnitude_notes(sizes, name_of))
    named = label if labelled else None
    return deliver(plan, load, inputs, "feeds from Python", name_of, whole=True, label=named)


def open_function(
    function: Callable[[], Any], inputs: list[InputSpec], options: DataOptions, source: str | None = None
) -> Samples:
    """Samples of a function that yields feeds. Raises CalibrationError, also for what the function raises."""
    name = source or f"{getattr(function, '__name__', 'the function')}()"

    def name_of(position: int) -> str:
        return f"feed {position} of {name}"

    def feeds(stop: int) -> Iterator[tuple[Feed, Any]]:
        for index, feed in enumerate(islice(_call(function, name), stop)):
            yield _split(feed, inputs, name_of(index))

    sizes = [magnitudes(feed) for feed, _ in feeds(options.samples or SAMPLES)]
    count = len(sizes)
    if count == 0:
        raise CalibrationError(f"{name} yields no feed: calibration needs at least one")

    def read(start: int, stop: int) -> Iterator[Batch]:
        check_range(start, stop, count, 1)
        index = -1
        for index, (feed, label) in enumerate(feeds(stop)):
            if index >= start:
                yield Batch(feed, index, 1, None if label is None else stack_labels([label]))
        if index + 1 < stop:
            raise CalibrationError(
                f"{name} yielded {counted(count, 'feed')} at first, and now {index + 1}; "
                "it must yield the same each time it is called"
            )

    notes = too_few(count, f"feeds of {name}", options) + magnitude_notes(sizes, name_of)
    return Samples(count, f"feeds of {name}", read, notes=notes, name_of=name_of)


def _split(feed: object, inputs: list[InputSpec], where: str) -> tuple[Feed, Any]:
    """A feed of the user's own making, and what its entry `labels` says of it, if that is no input of the model."""
    label = None
    if isinstance(feed, Mapping) and LABELS in feed and all(spec.name != LABELS for spec in inputs):
        label = feed[LABELS]
        feed = {name: array for name, array in feed.items() if name != LABELS}
    return check_feed(feed, inputs, where), label


def load_function(path: Path, name: str) -> Callable[[], Any]:
    """The function of this name in a Python file. Raises CalibrationError, also for what the file raises."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the path ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too: the file says nothing about how this program ends
        raise CalibrationError(f"{path} cannot be imported: {_line(error)}; run it with Python to see where") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'no function'}"
        raise CalibrationError(f"{path} has no function {name!r}; {hint}")
    return function  # type: ignore[no-any-return]


def _call(function: Callable[[], Any], name: str) -> Iterator[object]:
    try:
        yield from function()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise CalibrationError(f"{name} raised {_line(error)}; call it in Python to see where") from error


def _line(error: BaseException) -> str:
    return shortened(f"{type(error).__name__}: {error}")
