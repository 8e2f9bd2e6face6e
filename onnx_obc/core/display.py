"""How results show themselves where HTML can be seen, such as in a notebook.

The room that makes results may not know the one that renders them: the package names it here, when it is imported, as a
function that loads it when something is shown.
"""

from __future__ import annotations

from collections.abc import Callable

page_of: Callable[[object], str] | None = None


def shown(result: object) -> str | None:
    """A result as HTML; None where nothing can render it."""
    return None if page_of is None else page_of(result)
