"""From samples to feeds: which samples are taken, how many go into a feed, and whether they fit the model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from ...core.arrays import Array, Feed
from ...core.errors import CalibrationError, shortened
from ...core.plural import counted
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Batch, Samples

SAMPLES = 1024  # the number that the OBC paper calibrates with (section 6)
BATCH = 32
LARGE = 2**28  # bytes of one feed that are worth a look at what memory there is
HANDS, HAND = 10, 100  # at least so many hands; samples in a hand, where there are more


@dataclass(frozen=True)
class Plan:
    """order: the indices of the samples to take, in the order of reading. step, batch, notes: as in Samples."""

    order: tuple[int, ...]
    step: int
    batch: int
    notes: tuple[str, ...]


def spread(available: int, count: int) -> tuple[int, ...]:
    """`count` of `available` indices, evenly spread, dealt into ten hands or more: 0, 10, 20, …, 1, 11, …, 9, 19, …"""
    picked = [(2 * i + 1) * available // (2 * count) for i in range(count)]
    hands = max(HANDS, count // HAND)
    return tuple(index for hand in range(hands) for index in picked[hand::hands])


def plan_samples(
    available: int, what: str, inputs: list[InputSpec], options: DataOptions, *, whole: bool = False, copies: int = 1
) -> Plan:
    """Choose samples for a model with these inputs.

    what: what there are `available` of, for messages, e.g. "images in val". whole: they are whole feeds. copies: every
    one of them appears so often in succession; the order of the plan names it as often.
    Raises CalibrationError if there is not enough for one feed.
    """
    if available == 0:
        raise CalibrationError(f"there are no {what}: calibration needs at least one")
    wanted = options.samples or SAMPLES
    notes = too_few(available, what, options)
    fixed = None if whole else fixed_batch(inputs)
    step = fixed or 1
    total = min(wanted, available) * copies
    kept = total // step * step
    if kept == 0:
        raise CalibrationError(
            f"the {what} do not fill one feed: there are {total}, and the model takes {step} at once; "
            f"give at least {step}, or make the model's batch dimension free"
        )
    if kept < total:
        notes += (f"{total - kept} of {total} {what} left out: the model takes {step} samples at once",)
    if fixed is not None and options.batch not in (None, fixed):
        notes += (f"--batch {options.batch} has no effect: the model takes {counted(step, 'sample')} at once",)
    order = spread(available, -(-kept // copies))
    return Plan(
        order=tuple(index for index in order for _ in range(copies))[:kept],
        step=step,
        batch=1 if whole else fixed or options.batch or BATCH,
        notes=notes,
    )


def too_few(available: int, what: str, options: DataOptions) -> tuple[str, ...]:
    """The note for fewer samples than were asked for, if so."""
    if options.samples is None or available >= options.samples:
        return ()
    be = "was" if available == 1 else "were"
    return (
        f"{available} of {options.samples} samples asked for {be} found ({what}): the Hessian of a layer with more "
        "columns than positions is rank-deficient and leans on the damping; more data makes it reliable",
    )


def fixed_batch(inputs: list[InputSpec]) -> int | None:
    """The batch that the graph fixes, or None if it is free. Raises CalibrationError if the inputs do not agree."""
    fixed = {spec.name: spec.shape[0] for spec in inputs if spec.shape and spec.shape[0] is not None}
    if len(set(fixed.values())) > 1:
        (a, size_a), (b, size_b) = sorted(fixed.items(), key=lambda item: item[1] or 0)[:: len(fixed) - 1]
        raise CalibrationError(
            f"samples do not lie along the first axis of every input: it is {size_a} for {a!r} and {size_b} for {b!r}; "
            "give whole feeds: arrays with one more axis in front, or a Python function"
        )
    return next(iter(fixed.values()), None)


def deliver(
    plan: Plan,
    load: Callable[[int], Feed],
    inputs: list[InputSpec],
    source: str,
    name_of: Callable[[int], str],
    *,
    whole: bool = False,
    synthetic: bool = False,
    label: Callable[[int], Any] | None = None,
) -> Samples:
    """Samples of a plan.

    load(position): the sample at this position of the order, every array without its batch axis (an input of rank 0 as
    it is); if `whole`, the feed at this position. name_of(position): what the user calls it. label(position): what
    the data says of it, such as its class, if it does.
    Samples share a feed as long as it has room and they have the same shapes, and the same values for inputs of rank 0.
    """
    count = len(plan.order)

    def read(start: int, stop: int) -> Iterator[Batch]:
        check_range(start, stop, count, plan.step)
        held: list[Feed] = []
        for position in range(start, stop):
            sample = load(position)
            if whole:
                yield Batch(sample, position, 1, labels_of([position]))
                continue
            if held and (len(held) == plan.batch or not _alike(held[0], sample, inputs, plan.step, position)):
                yield batch(held, position)
                held = []
            held.append(sample)
        if held:
            yield batch(held, stop)

    def batch(held: list[Feed], stop: int) -> Batch:
        first = stop - len(held)
        return Batch(_stack(held, inputs), first, len(held), labels_of(range(first, stop)))

    def labels_of(positions: Iterable[int]) -> Array | None:
        return None if label is None else stack_labels([label(position) for position in positions])

    return Samples(count, source, read, synthetic, plan.notes, plan.step, plan.batch, name_of)


def stack_labels(labels: Sequence[Any]) -> Array:
    """Labels of samples as one array, (samples, …); of objects where they have different shapes."""
    arrays = [np.asarray(label) for label in labels]
    if len({(array.shape, array.dtype.kind) for array in arrays}) == 1:
        return np.stack(arrays)
    stacked = np.empty(len(arrays), object)
    stacked[:] = arrays
    return stacked


def check_range(start: int, stop: int, count: int, step: int) -> None:
    """Raise ValueError unless start and stop are multiples of step within 0 … count, in order."""
    if not 0 <= start <= stop <= count or start % step or stop % step:
        raise ValueError(f"samples {start} to {stop} of {count} cannot be read in steps of {step}")


def _alike(a: Feed, b: Feed, inputs: list[InputSpec], step: int, position: int) -> bool:
    """Whether two samples can share a feed. Raises CalibrationError if they cannot, but have to."""
    for spec in inputs:
        x, y = a[spec.name], b[spec.name]
        if x.shape == y.shape and (spec.shape or np.array_equal(x, y)):
            continue
        if position % step:
            raise CalibrationError(
                f"samples of input {spec.name!r} differ ({x.shape or x} and {y.shape or y}), but "
                f"the model takes {step} at once: bring them to one shape, or make the model's batch dimension free"
            )
        return False
    return True


def _stack(samples: list[Feed], inputs: list[InputSpec]) -> Feed:
    first = samples[0]
    return {
        spec.name: np.stack([sample[spec.name] for sample in samples]) if spec.shape else first[spec.name]
        for spec in inputs
    }


def check_feed(feed: object, inputs: list[InputSpec], where: str) -> Feed:
    """A whole feed of the user's own making, converted to what the model takes. Raises CalibrationError."""
    if not isinstance(feed, Mapping):
        raise CalibrationError(f"{where} is of type {type(feed).__name__}: a feed is a dict of input name to array")
    arrays = as_arrays(feed, where)
    check_names(arrays, inputs, where)
    result = {}
    for spec in inputs:
        array = arrays[spec.name]
        check_dtype(spec, array.dtype, where)
        check_shape(spec, array.shape, spec.shape, where)
        result[spec.name] = convert(array, spec, where)
    return result


def as_arrays(values: Mapping[Any, Any], where: str) -> dict[str, Array]:
    """The values as arrays. Raises CalibrationError for what cannot become one."""
    try:
        return {str(name): np.asarray(values[name]) for name in values}
    except Exception as error:  # of whatever kind: ragged lists, classes of the user's own
        cause = shortened(f"{type(error).__name__}: {error}")
        raise CalibrationError(f"{where}: not all of it can become arrays ({cause}); give plain arrays") from error


def check_names(names: Iterable[str], inputs: list[InputSpec], where: str) -> None:
    """Raise CalibrationError unless these are the names of the model's inputs."""
    given, wanted = list(names), [spec.name for spec in inputs]
    extra = [name for name in given if name not in wanted]
    for name in wanted:
        if name not in given:
            near = difflib.get_close_matches(name, extra, n=1, cutoff=0.5) or (extra if len(extra) == 1 else [])
            hint = f"rename {near[0]!r} to it if that is what it is" if near else "add it"
            raise CalibrationError(
                f"{where} has no array for the model's input {name!r}, only for "
                f"{', '.join(map(repr, given)) or 'none'}; {hint}"
            )
    if extra:
        raise CalibrationError(
            f"{where} has {', '.join(map(repr, extra))}, which the model does not take; leave it out, or call it "
            f"'labels' if it is what a metric needs (inputs: {', '.join(wanted)})"
        )


def check_shape(
    spec: InputSpec, shape: tuple[int, ...], expected: tuple[int | None, ...], where: str, prefix: str = ""
) -> None:
    """Raise CalibrationError unless the shape is as expected; None fits any size; `prefix` stands in front."""
    if len(shape) != len(expected):
        hint = f"add the batch axis in front, {spec.name}[None]" if len(shape) + 1 == len(expected) else "reshape it"
        raise CalibrationError(
            f"{where}: {spec.name!r} has {counted(len(shape), 'axis', 'axes')}, {shape}, but the model takes "
            f"{_text(expected)}; {hint}"
        )
    for size, wanted in zip(shape, expected, strict=True):
        if wanted is not None and size != wanted:
            moved = (*shape[:-3], shape[-1], *shape[-3:-1]) if len(shape) >= 3 else shape
            fits = all(other in (None, size) for size, other in zip(moved, expected, strict=True))
            hint = "move the channels to the front" if fits else "bring it to that size"
            raise CalibrationError(
                f"{where}: {spec.name!r} is {prefix}{shape}, but the model takes {prefix}{_text(expected)}: "
                f"{size} where {wanted} is fixed; {hint}"
            )


def check_dtype(spec: InputSpec, dtype: np.dtype[Any], where: str) -> None:
    """Raise CalibrationError unless values of this type can become the input's: float to float, integer to integer."""
    given, wanted = dtype.kind, spec.dtype.kind
    if wanted == "O" and given in "OUT":  # text
        return
    if dtype == spec.dtype or (given, wanted) == ("f", "f") or (given in "biu" and wanted in "iu"):
        return
    if wanted == "f" and given in "iub":
        hint = "scale them as for training, e.g. x.astype('float32') / 255"
    elif given == "f" and wanted in "iu":
        hint = f"round them yourself if they are whole numbers: x.astype({spec.dtype.name!r})"
    else:
        hint = f"convert them: x.astype({'str' if wanted == 'O' else repr(spec.dtype.name)})"
    raise CalibrationError(
        f"{where}: {spec.name!r} holds {dtype.name} values, but the model takes "
        f"{'text' if wanted == 'O' else spec.dtype.name}; {hint}"
    )


def convert(array: Array, spec: InputSpec, where: str) -> Array:
    """The values in the input's type. `check_dtype` must have passed. Raises CalibrationError if they do not fit."""
    size = array.size * spec.dtype.itemsize
    if size > LARGE and size > psutil.virtual_memory().available:
        raise CalibrationError(f"{where}: {spec.name!r} takes {size / 2**30:.0f} GiB; give smaller feeds")
    if spec.dtype.hasobject:
        text = np.array(array, dtype=object, order="C")
        if not all(isinstance(value, str) for value in text.flat):
            raise CalibrationError(f"{where}: {spec.name!r} holds other objects than text; give str")
        return text
    if array.dtype.kind == "f" and np.isnan(array).any():  # infinity is what masks are made of
        raise CalibrationError(f"{where}: {spec.name!r} holds NaN; remove the sample or mend what made it")
    if array.dtype.kind in "iu" and array.dtype != spec.dtype and array.size:
        limits = np.iinfo(spec.dtype.name)
        for value in (int(array.min()), int(array.max())):
            if not limits.min <= value <= limits.max:
                raise CalibrationError(
                    f"{where}: {spec.name!r} holds {value}, which {spec.dtype.name} cannot hold; "
                    "check the data, or declare the model's input as int64"
                )
    with np.errstate(over="ignore"):
        result = np.array(array, dtype=spec.dtype, order="C")
    if array.dtype.kind == "f" and array.dtype != spec.dtype and not np.array_equal(np.isinf(result), np.isinf(array)):
        raise CalibrationError(
            f"{where}: {spec.name!r} holds values too large for {spec.dtype.name}; scale them as for training"
        )
    return result


def _text(shape: tuple[int | None, ...]) -> str:
    inside = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"
