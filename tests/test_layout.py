"""The shape of the package: who may import whom, how long a file may be, what an import costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_obc

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnx_obc"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the ground up: each imports only rooms before it.
ROOMS = (
    *("core", "graph", "solver", "runtime", "targets", "calibration", "correction"),
    *("pipeline", "database", "search", "study", "debug", "report", "cli"),
)
BLIND = {
    "graph": {"solver"},
    "solver": {"graph"},
    "runtime": {"solver"},
    "targets": {"solver"},
    "correction": {"targets"},
}


def room(path: Path) -> str:
    """The folder of the package that a file belongs to; `__init__` for the package's own file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    """`onnx_obc.graph.model` for its file, `onnx_obc.graph` for the `__init__.py` of that folder."""
    return ".".join(("onnx_obc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path, at_import: bool = False) -> set[str]:
    """The modules of our package that a file imports; `at_import`: only those that it loads when it is imported."""
    package = ["onnx_obc", *path.relative_to(PACKAGE).parts[:-1]]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loaded = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        loaded |= {
            name if name in MODULES else name.rpartition(".")[0] for name in names if name.startswith("onnx_obc.")
        }
    return loaded


def test_the_imports_of_a_file_are_read_right() -> None:
    own = {"onnx_obc.core.errors", *(f"onnx_obc.graph.{name}" for name in ("contributed", "layers", "tensors"))}
    assert imports(PACKAGE / "graph" / "model.py") == own
    assert "onnx_obc.targets.deepsparse" in imports(PACKAGE / "targets" / "registry.py")


def test_nothing_lies_at_the_root() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_rooms_below_them(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    others = {name.split(".")[1] for name in imports(path)} - {own}
    allowed = set(ROOMS[: ROOMS.index(own)]) - BLIND.get(own, set())
    assert others <= allowed, f"{own} imports {sorted(others - allowed)}"


def test_no_two_files_import_each_other() -> None:
    """No circle of imports, those inside functions and for type checkers alone included."""
    graph = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.slow
def test_imports_of_our_own_are_relative() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("onnx_obc"), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_hold_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (250 if room(path) == "solver" else 400)


def test_no_test_imports_from_the_benchmarks() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "benchmarks" for name in names), path


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "sklearn", "tokenizers", "PIL", "cyclopts", "rich")
    heavy += ("numpy", "onnx", "onnx_ir", "numba", "pydantic")
    code = f"import sys, onnx_obc; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_take_eight_parameters_at_most(path: Path) -> None:
    """Compiled kernels aside, which take arrays only, and commands, whose parameters are options."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or (room(path) == "cli" and node.name.endswith("_command")):
            continue
        if not any("compiled" in ast.unparse(decorator) for decorator in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([a for a in arguments if a.arg not in ("self", "cls")]) <= 8, f"{path}:{node.lineno} {node.name}"


@pytest.mark.slow
def test_the_architecture_page_has_the_imports() -> None:
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "architecture.md").read_text("utf-8").splitlines()]
    written = {cells[0].strip(" `"): cells[-1].strip() for cells in rows if len(cells) == 4 and "`" in cells[0]}
    imported: dict[str, set[str]] = {room(path): set() for path in FILES if room(path) != "__init__"}
    for path in FILES:
        if room(path) in imported:
            imported[room(path)] |= {name.split(".")[1] for name in imports(path)} - {room(path)}
    assert written == {name: ", ".join(r for r in ROOMS if r in imported[name]) for name in ROOMS if name in imported}


def test_the_names_of_the_package_are_where_type_checkers_see_them() -> None:
    """The imports for type checkers, the table of what is loaded when asked for, and `__all__` say the same."""
    declared = {
        alias.name: node.module
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert sorted(declared) == sorted(onnx_obc.__all__) and set(onnx_obc.__all__) <= set(dir(onnx_obc))
    for name, home in declared.items():
        assert getattr(onnx_obc, name) is getattr(importlib.import_module(f"onnx_obc.{home}"), name), name
    assert all(callable(getattr(onnx_obc, name)) for name in ("build", "compress", "retarget"))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = onnx_obc.nonsense
