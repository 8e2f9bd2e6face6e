"""The site: `make docs` builds it from docs/, benchmarks/results/ and other pages, every warning an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_site")]

from errors import Errors  # noqa: E402

from onnx_obc.core.version import __version__  # noqa: E402

project = "onnx-obc"
copyright = "the onnx-obc authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]

# The source folder is the project's root, so that links between files mean the same here and in the repository.
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/targets/*.md",
    "benchmarks/results/*.md",
    "models/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [
    *(".*", "build", "dist", "onnx_obc", "tests", "tools", "work-models", "examples"),
    *("benchmarks/[!r]*", "benchmarks/regression.py"),
]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
nitpicky = True
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages have no pages here

html_theme = "furo"
html_title = f"onnx-obc {__version__}"
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
linkcheck_timeout = 20


def mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script from elsewhere."""
    block = isinstance(node, nodes.math_block)
    formula = node.astext().replace(r"\Big", "")  # MathML stretches brackets by itself
    formula = re.sub(r"\{\\rm (\w+)\}", r"\\mathrm{\1}", formula)
    translator.body.append(tex2mathml(formula, as_block=block))
    raise nodes.SkipNode


def plain(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a docstring, which is plain text with `code` in it, one that docutils reads as such."""
    for index, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line if index == 0 or not lines[index - 1] else line.lstrip())
        lines[index] = "".join(re.sub(r"([*|])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer of formulas, the list of errors, and how docstrings are read."""
    app.add_directive("errors", Errors)
    app.connect("autodoc-process-docstring", plain)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
