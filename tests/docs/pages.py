"""The blocks of code on the project's pages, and why some of them are not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITTEN = {"gallery.md", "results.md"}  # by scripts that ran what they show, on models that are not here
PAGES = tuple(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name not in WRITTEN)
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES)


@dataclass(frozen=True)
class Block:
    """A block of code; `language` is empty where the page names none; `reason`: why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of every `onnx-obc` in it; lines that end in a backslash go on in the next."""
        if self.language not in ("", "bash", "console", "sh"):
            return []
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        told = [line.removeprefix("$ ") for line in lines]
        return [shlex.split(line, comments=True)[1:] for line in told if line.startswith("onnx-obc ")]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page: fenced ones, and commands that are indented.

    `<!-- not run: reason -->` between two blocks holds for the second.
    """
    found: list[Block] = []
    reason: str | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        start = at
        if note := re.fullmatch(r"<!-- not run: (.+) -->", lines[at]):
            reason = note[1]
        elif fence := re.match(r"( *)(`{3,})(\S*)", lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == fence[2])
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[at + 1 : end])
            found.append(Block(page, start + 1, fence[3], text, reason))
            reason, at = None, end
        elif re.match(r"    \S", lines[at]) and not lines[at - 1].strip():
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ") or not lines[at + 1].strip()):
                at += 1
            text = "\n".join(line.removeprefix("    ") for line in lines[start : at + 1])
            found.append(Block(page, start + 1, "", text, reason))
            reason = None
        at += 1
    return found
