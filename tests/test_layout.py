"""The shape of the package: who may import whom, how long a file may be, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnx_obc"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of ours, besides its own folder. None: anything but what NOBODY may.
ALLOWED: dict[str, set[str] | None] = {
    "errors": set(),
    "_version": set(),
    "stopwatch": set(),
    "level": {"errors"},
    "solver": {"level", "errors"},
    "graph": {"level", "errors"},
    "runtime": {"graph", "level", "errors"},
    "calibration": {"graph", "level", "errors", "runtime"},
    "correction": {"graph", "level", "errors", "runtime"},
    "search": {"graph", "level", "errors", "runtime", "output_loss", "calibration"},
    "levels": {"level", "errors"},
    "split": {"calibration"},
    "judge": {"calibration", "output_loss", "runtime"},
    "recipe": {"level", "errors"},
    "plan": {"graph", "level", "errors", "recipe"},
    "solving": {"calibration", "graph", "level", "recipe", "runtime", "solver"},
    "schedule": {"graph", "level", "recipe", "solver"},
    "output_loss": {"level"},
    "verify": {"output_loss", "calibration", "graph", "level", "errors", "recipe", "runtime", "solving"},
    "correcting": {"correction", "finish", "graph", "judge", "level", "plan", "recipe", "solving", "split"},
    "check": {"errors", "graph", "runtime"},
    "bench": {"check", "graph", "runtime", "search", "solver"},
    "terminal": set(),
    "report": {
        *("bench", "check", "level", "search", "correcting", "_version"),
        *("calibration", "errors", "graph", "plan", "recipe", "solving", "verify"),
    },
    "inspect": {"graph", "level", "report"},
}
MAY_IMPORT_COMPRESS = {"cli", "demo", "__init__"}


def part(path: Path) -> str:
    """The folder or module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The parts of our package that a file imports."""
    package = ["onnx_obc", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("onnx_obc.")}
    return found


def test_the_parts_are_told_apart() -> None:
    assert imports(PACKAGE / "graph" / "model.py") >= {"errors", "graph"}
    assert imports(PACKAGE / "cli.py") >= {"compress", "recipe", "report", "_version"}
    assert imports(PACKAGE / "solver" / "solve.py") == {"errors", "level", "solver"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_list(path: Path) -> None:
    own, found = part(path), imports(path) - {part(path)}
    assert "cli" not in found and "demo" not in found - ({"demo"} if own == "cli" else set())
    if "compress" in found:
        assert own in MAY_IMPORT_COMPRESS
    allowed = ALLOWED.get(own)
    assert allowed is None or found <= allowed, f"{own} imports {sorted(found - allowed)}"


def test_imports_of_our_own_are_relative() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("onnx_obc"), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_hold_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (250 if part(path) == "solver" else 400)


def test_no_test_imports_from_the_benchmarks() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "benchmarks" for name in names), path


def test_importing_the_package_loads_no_training_framework() -> None:
    heavy = ("torch", "transformers", "sklearn", "tokenizers", "PIL", "cyclopts", "rich")
    code = f"import sys, onnx_obc; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
