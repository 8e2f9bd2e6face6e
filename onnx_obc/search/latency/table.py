"""Tables of seconds: what every layer takes at every choice, in an engine on a machine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ...core.errors import RecipeError, quoted, shortened
from ...core.files import read_regular, write_plain

LARGEST = 2**26  # bytes
FORM = '{"layers": {layer: {"float": seconds, "8w8a": seconds}}, "rest": seconds}'


@dataclass(frozen=True)
class Timings:
    """Seconds of every layer at every choice that was timed, and of what lies outside the layers.

    runtime: the engine and its version; machine: what it ran on, see `this_machine`; batch, threads: of a run. Empty
    and 0 in a table that was written by hand. interpolated: the choices that lie between two that were timed. switches:
    for each layer, what its conversions take in either kind (`Choice.kind`) if the next layer has the other one.
    """

    layers: Mapping[str, Mapping[str, float]]
    rest: float = 0.0
    runtime: str = ""
    machine: str = ""
    batch: int = 0
    threads: int = 0
    interpolated: tuple[str, ...] = ()
    switches: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def over(self, layers: Mapping[str, Mapping[str, float]], switches: Mapping[str, Mapping[str, float]]) -> Timings:
        """This table with other seconds where they are given."""
        names = {*self.switches, *switches}
        return replace(
            self,
            layers={name: {**row, **layers.get(name, {})} for name, row in self.layers.items()},
            switches={name: {**self.switches.get(name, {}), **switches.get(name, {})} for name in names},
        )


def write_timings(timings: Timings, path: Path) -> None:
    """Write a table, under a temporary name first. Raises OutputError."""
    write_plain(path, asdict(timings), indent=1)


def read_timings(path: Path) -> Timings:
    """Read a table that `write_timings` wrote, or one by hand, of which only `layers` must be there.

    Choices are written as in the database, `float`, `8w8a`, `2:4+8w8a`. Raises RecipeError for what is no such table.
    """
    try:
        plain = json.loads(read_regular(path, LARGEST))
    except OSError as error:
        raise RecipeError(f"--timings {path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"--timings {path}: no valid JSON ({shortened(str(error))}); fix the file") from error
    layers = plain.get("layers") if isinstance(plain, dict) else None
    if not isinstance(layers, dict) or not all(isinstance(row, dict) for row in layers.values()):
        raise RecipeError(f"--timings {path}: it must have the form {FORM}")
    for layer, row in layers.items():
        for choice, seconds in row.items():
            if not _is_time(seconds):
                raise RecipeError(
                    f"--timings {path}: {layer} at {choice} takes {quoted(seconds)}; give seconds above 0"
                )
    rest = plain.get("rest", 0.0)
    if not (rest == 0 or _is_time(rest)):
        raise RecipeError(f"--timings {path}: rest is {quoted(rest)}; give seconds")
    about = {name: plain.get(name, "") for name in ("runtime", "machine")}
    counts = {name: plain.get(name, 0) for name in ("batch", "threads")}
    if not all(isinstance(text, str) for text in about.values()) or not all(
        isinstance(count, int) for count in counts.values()
    ):
        raise RecipeError(f"--timings {path}: runtime and machine are text, batch and threads numbers; mend them there")
    interpolated = plain.get("interpolated", [])
    if not isinstance(interpolated, list):
        raise RecipeError(f"--timings {path}: interpolated is {quoted(interpolated)}; give a list of choices")
    switches = plain.get("switches", {})
    if not isinstance(switches, dict) or not all(isinstance(row, dict) for row in switches.values()):
        raise RecipeError(f"--timings {path}: switches must have the form {{layer: {{kind: seconds}}}}; fix the file")
    for layer, row in switches.items():
        for kind, seconds in row.items():
            if not (seconds == 0 or _is_time(seconds)):
                raise RecipeError(
                    f"--timings {path}: switching {layer} from {kind} takes {quoted(seconds)}; give seconds"
                )
    return Timings(
        layers, float(rest), **about, **counts, interpolated=tuple(map(str, interpolated)), switches=switches
    )


def check_timings(timings: Timings, target: str, machine: str | None) -> None:
    """Raise RecipeError if a table is of another runtime than the target, or of another machine than this one.

    machine: this machine; None lets tables of others pass. What a table by hand does not say is not checked.
    """
    if timings.runtime and timings.runtime.split()[0].lower() != target:
        raise RecipeError(
            f"--timings: the table is for {timings.runtime}, but the model is written for {target}; "
            f"make another one with onnx-obc time --runtime {target}, or choose --target {timings.runtime.split()[0]}"
        )
    if timings.machine and machine is not None and timings.machine != machine:
        raise RecipeError(
            f"--timings: the table was measured on {timings.machine}, and this is {machine}; measure here with "
            "onnx-obc time, or say --other-machine if the model is to run where the table comes from"
        )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
