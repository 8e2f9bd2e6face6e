"""Pages from templates: one file each, which loads nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..core.errors import plain
from ..core.files import write_file

_TEMPLATES = Path(__file__).parent / "templates"


def write_page(template: str, values: Mapping[str, object], path: Path) -> None:
    """Write a page under a temporary name, then rename it. Raises OutputError."""
    write_file(path, render_page(template, values).encode())


def render_page(template: str, values: Mapping[str, object]) -> str:
    """A page as text.

    Whatever names and messages hold is text: it is escaped, and control characters are left out of it.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    hashes = {"style_hash": _hash(style), "script_hash": _hash(script)}
    return environment.get_template(template).render(style=style, script=script, **hashes, **values)


def sortable(value: float | None) -> str:
    """A number as the script of pages sorts a table by it; nothing for what comes last."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.6g}".replace("inf", "Infinity")


def island(value: object) -> Markup:
    """Plain values as JSON that stands in a page as data: no text in it can end the element that it is in."""
    text = plain(json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _finalize(value: object) -> object:
    """What stands where a value is put: markup as it is, text made plain."""
    return value if hasattr(value, "__html__") else plain(str(value))


def _hash(text: str) -> str:
    """The hash by which a page's policy allows one style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
