"""What a report's page says in words: its answers first."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..core.errors import shortened
from ..core.plural import counted
from .plain_report import EnginePart, LayerPart, PlainReport, SpeedPart

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def file_name(path: str) -> str:
    """The last part of a path, of whatever system."""
    return re.split(r"[/\\]", path)[-1]


def size(count: int | None) -> str:
    """Bytes in three digits: 812 bytes, 25.3 kB, 1.04 MB."""
    if count is None:
        return "–"
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} {'byte' if count == 1 else 'bytes'}" if not unit else f"{value:.3g} {_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds in three digits, in the unit that fits."""
    if seconds is None:
        return "–"
    for unit, name in ((1e-6, "µs"), (1e-3, "ms")):
        if seconds < 1000 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def figure(value: float | None) -> str:
    """A number in three digits; a dash where it is not known."""
    if value is None:
        return "–"
    return re.sub("e([-+])0", r"e\1", f"{value:.3g}").replace("-", "−").replace("+", "")


def percent(share: float | None) -> str:
    """A share in per cent, never rounded to all or none of what is not."""
    if share is None:
        return "–"
    shown = f"{100 * share:.1f}"
    if (shown == "100.0" and share < 1) or (shown == "0.0" and share > 0):
        shown = f"{100 * share:.3g}" if share < 0.5 else f"{100 * share:.5g}"
    return f"{shown.removesuffix('.0')} %"


def times(ratio: float | None) -> str:
    """A ratio: 3.72×."""
    return "–" if ratio is None else f"{ratio:.3g}×"


def smaller(report: PlainReport) -> float | None:
    """How many times smaller the file is, None where the dense one's size is not known."""
    before, after = report.file_bytes_before, report.file_bytes_after
    return before / after if before and after else None


def size_words(report: PlainReport) -> str:
    """The size before and after, as the first answer."""
    ratio, before, after = smaller(report), report.file_bytes_before, report.file_bytes_after
    if ratio is None:
        return f"{size(after)}"
    how = f"{ratio:.3g}× smaller" if ratio >= 1 else f"{1 / ratio:.3g}× larger"
    return f"{how}: {size(before)} → {size(after)}"


def speed_words(speed: SpeedPart) -> str:
    """The measured speed against the dense model."""
    ratio = speed.ratio
    how = f"{ratio:.3g}× as fast as the dense model" if ratio else "not timed"
    spread = f" ({speed.low:.3g} … {speed.high:.3g})" if speed.low is not None and speed.high is not None else ""
    return f"{how}{spread} in {speed.runtime}: {duration(speed.dense_seconds)} → {duration(speed.seconds)}"


def quality_words(report: PlainReport) -> str | None:
    """How close the outputs are to the dense model's, on which samples; None if they were not compared."""
    held = report.calibration.held_out
    where = counted(held, "held-out sample") if held else "the calibration samples themselves"
    if (share := _agreement(report)) is not None:
        return f"the dense model's class on {percent(share)} of {where}"
    floats = [one for one in report.outputs if not one.integers]
    known = [one for one in floats if one.sqnr_db is not None]
    if known:
        worst = min(known, key=lambda one: one.sqnr_db or 0.0)
        return f"outputs at {figure(worst.sqnr_db)} dB SQNR to the dense model's on {where}"
    return f"outputs equal to the dense model's on {where}" if floats else None


def metric_words(report: PlainReport) -> str | None:
    """What the user's own measure says."""
    one = report.metric
    if one is None:
        return None
    error = "" if one.standard_error is None else f" ± {percent(one.standard_error)}"
    how = "a drop of" if (one.drop or 0) >= 0 else "better by"
    drop = "" if one.drop is None else f", {how} {percent(abs(one.drop))}{error}"
    on = "" if one.samples is None else f" on {counted(one.samples, 'sample')}"
    return f"{one.name} {figure(one.dense)} → {figure(one.compressed)}{drop}{on}"


def answers(report: PlainReport) -> list[str]:
    """The result, the answer first: size, speed, quality."""
    found = [size_words(report)]
    if report.speed is not None:
        found.append(speed_words(report.speed))
    found += [words for words in (metric_words(report), quality_words(report)) if words is not None]
    return [words[0].upper() + words[1:] for words in found]


def levels_words(report: PlainReport) -> str:
    """How many layers became what, the most frequent first."""
    found = Counter(layer.level for layer in report.layers)
    parts = [f"{count} × {level}" for level, count in found.most_common(6)]
    more = len(found) - 6
    left = [counted(len(report.left_out), "layer left as it is", "layers left as they are")] if report.left_out else []
    return ", ".join([*parts, *([f"{more} other levels"] if more > 0 else []), *left])


def budget_of(report: PlainReport, number: int) -> str:
    """What a run is called beside others."""
    return report.search.budget if report.search is not None else file_name(report.output) or f"report {number}"


def reasons(report: PlainReport) -> list[tuple[str, list[str]]]:
    """Why layers were left as they are, with their names."""
    found: dict[str, list[str]] = {}
    for one in report.left_out:
        found.setdefault(one.reason, []).append(one.name)
    return list(found.items())


def listed(names: Sequence[str], most: int = 6) -> str:
    """Names one after the other, the last ones by number."""
    shown = ", ".join(shortened(name, 80) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def command_words(command: Iterable[str]) -> str:
    """The command as it can be typed again."""
    return shlex.join(("onnx-obc", *command))


def changed_options(recipe: Mapping[str, object]) -> str:
    """The options of a recipe that say something, as words."""
    shown = {name: value for name, value in recipe.items() if value not in (None, (), [], "", 0, False)}
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in shown.items())


def _plain(value: object) -> str:
    if value is True:
        return "yes"
    if isinstance(value, list | tuple | dict):
        return counted(len(value), "rule") if isinstance(value, list | tuple) else "…"
    return shortened(str(value), 60)


def correction_words(kinds: Sequence[str], sites: int) -> str:
    """What was tried, and at how many places."""
    if tuple(kinds) == ("sequential",):
        return f"{counted(sites, 'layer')} solved in order"
    if tuple(kinds) == ("rounding",):
        return f"{counted(sites, 'layer')} of 8 bits rounded to nearest"
    return f"{' and '.join(kinds)} at {counted(sites, 'place')}"


def budgets_words(reports: Sequence[PlainReport]) -> str:
    """How much smaller the models of several budgets are, and how much faster, where that was measured."""
    ratios = [ratio for report in reports if (ratio := smaller(report)) is not None]
    speeds = [report.speed.ratio for report in reports if report.speed is not None]
    parts = []
    if ratios and min(ratios) >= 1:
        parts.append(f"{_between(ratios)} smaller")
    elif ratios:
        parts.append(f"files of {1 / max(ratios):.2f} to {1 / min(ratios):.2f} of the dense one's size")
    parts += [f"{_between(speeds)} as fast"] if speeds else []
    return f"{len(reports)} budgets: {', '.join(parts) or 'sizes below'}"


def _between(ratios: Sequence[float]) -> str:
    low, high = times(min(ratios)), times(max(ratios))
    return low if low == high else f"{low} to {high}"


def quality_title(reports: Sequence[PlainReport]) -> str:
    """What `quality_figure` shows of all of them."""
    return "same class" if all(_agreement(report) is not None for report in reports) else "SQNR"


def quality_figure(report: PlainReport) -> str:
    """How often the dense model's class was kept, or else how close the outputs are."""
    if (share := _agreement(report)) is not None:
        return percent(share)
    floats = [one.sqnr_db for one in report.outputs if not one.integers]
    known = [one for one in floats if one is not None]
    return f"{figure(min(known))} dB" if known else "equal" if floats else "–"


def _agreement(report: PlainReport) -> float | None:
    return min((one.top1_agreement for one in report.outputs if one.top1_agreement is not None), default=None)


def engine_words(engine: EnginePart) -> str:
    """What the runtime does with the file."""
    if not engine.ran:
        return f"Not run in its runtime: {engine.runtime}"
    parts = []
    if engine.quantized:
        parts.append(f"{engine.in_integers} of {engine.quantized} quantized layers run in integers")
    if engine.integer_weights:
        count = f"{engine.in_weight_kernels} of {engine.integer_weights}"
        parts.append(f"{count} layers with integer weights alone run in kernels for them")
    return f"{engine.runtime}: {'; '.join(parts) or 'it runs'}"


def over_bound(layer: LayerPart) -> float | None:
    """The loss as a multiple of its lower bound: how far from the optimum it is at most."""
    if layer.loss_measured == 0:
        return 1.0
    return layer.loss_measured / layer.loss_bound if layer.loss_measured and layer.loss_bound else None


def time_after(report: PlainReport, layer: LayerPart) -> float | None:
    """The seconds that a layer takes in the runtime now."""
    found = report.speed.layers if report.speed is not None else None
    return found[layer.name][1] if found and layer.name in found else None


def faster(report: PlainReport, layer: LayerPart) -> float | None:
    """How many times faster a layer is than in the dense model."""
    found = report.speed.layers if report.speed is not None else None
    before, after = found[layer.name] if found and layer.name in found else (None, None)
    return before / after if before and after else None


def refused(report: PlainReport) -> bool:
    """Whether the file misses what the user demanded."""
    return any(not gate.passed for gate in report.gates)


def total(layers: Sequence[LayerPart], field: str) -> int:
    """The sum of a field."""
    return sum(int(getattr(layer, field)) for layer in layers)


def largest(layers: Sequence[LayerPart]) -> int:
    """The bytes of the largest layer, before or after."""
    return max((max(layer.bytes_before, layer.bytes_after) for layer in layers), default=0)


def any_left(reports: Sequence[PlainReport]) -> bool:
    """Whether a run left something as it was."""
    return any(report.left_out for report in reports)


def corrected(reports: Sequence[PlainReport]) -> bool:
    """Whether a run tried a correction."""
    return any(report.corrections for report in reports)


def compared(reports: Sequence[PlainReport]) -> bool:
    """Whether a run compared outputs."""
    return any(report.outputs for report in reports)


def sample_name(name: str) -> str:
    """A sample's name without the folders that its file lies in."""
    return file_name(name) if "/" in name and " of " not in name else name.partition(" of ")[0]
