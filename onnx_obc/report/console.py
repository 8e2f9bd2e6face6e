"""What goes to a terminal: text without control characters, whatever names and messages hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..core.errors import plain


class PlainConsole(Console):
    """A console on which nothing but its own styles moves the cursor, sets colours or turns the direction of text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, their text made plain."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def messages(**options: Any) -> Console:
    """A console for lines of text on stderr."""
    return PlainConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, **options)
