"""What a checker has to say about a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One rule of a runtime that a file breaks, at one place.

    severity: `error` where the runtime refuses the file or computes something else, `slow` where it runs but not as
    fast as the file's form promises, `note` for what is only worth knowing. rule: a short name that stays the same.
    node: the node it is about, or what else has that name; empty for the whole file. message: what is wrong and why;
    remedy: what to do about it.
    """

    severity: Literal["error", "slow", "note"]
    rule: str
    node: str
    message: str
    remedy: str = ""
