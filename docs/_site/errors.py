"""The `errors` directive: every message that the package raises for a user's fault, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

PACKAGE = Path(__file__).parents[1] / "onnx_obc"


def messages(kind: str) -> list[str]:
    """The messages of `raise KIND(…)` in the package, what they fill in written as …, in the order of the alphabet."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and isinstance(node.exc.func, ast.Name)
                and node.exc.func.id == kind
                and node.exc.args
            ):
                found.add(_text(node.exc.args[0]))
    return sorted(text for text in found if any(each.isalpha() for each in text))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


class Errors(Directive):
    """`{errors} ModelError`: a list of its messages."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The list."""
        items = [
            nodes.list_item("", nodes.paragraph("", "", nodes.literal("", text)))
            for text in messages(self.arguments[0])
        ]
        return [nodes.bullet_list("", *items)]
