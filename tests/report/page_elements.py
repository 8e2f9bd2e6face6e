"""The elements of a page, as a parser of HTML sees them."""

from __future__ import annotations

from html.parser import HTMLParser


class Elements(HTMLParser):
    """Tags in order, with their attributes, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def having(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    @property
    def sections(self) -> list[str | None]:
        return [found["id"] for found in self.having("section") if "id" in found]
