"""Things by number, as a sentence has them."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
