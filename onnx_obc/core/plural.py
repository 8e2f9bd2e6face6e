"""Things by number, as a sentence has them."""

from __future__ import annotations


def counted(count: int, thing: str, things: str | None = None) -> str:
    """`1 sample`, `2 samples`. things: the plural, where it is not formed by an s."""
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"
