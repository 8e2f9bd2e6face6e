"""Options said once: a frozen dataclass for each group, from which recipes and the command line are made."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Doc:
    """What an option does, in the words of `--help`; the annotation of a field."""

    text: str


def names(group: type) -> tuple[str, ...]:
    """The options of a group."""
    return tuple(field.name for field in fields(group))
