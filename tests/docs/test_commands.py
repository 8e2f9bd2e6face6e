"""Every command and every piece of Python on the pages runs, on tiny models, or says on its page why it does not."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import workshop
from digits import run_cli
from pages import PAGES, ROOT, Block, blocks

# Numbers that only say how long to go on, made smaller, and what a layer of so few weights cannot have.
SHORTER = {"--prove": "1", "--global-adaprune": "1", "--samples": "64", "--rounds": "2"}
SMALL = {"size=0.1x": "size=0.17x", "drop=1%": "drop=30%"}
SHORT_STUDY = ("--rows", "4", "--bits", "4")
ELSEWHERE = {
    "--workers": "processes and Ray clusters: tests/database/test_spread.py and test_spread_ray.py",
    "demo": "tests/cli/test_demo.py",
}


ran: set[tuple[str, ...]] = set()  # what several pages say is run once: the files that it reads are there anyway


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    workshop.make(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "work"


def not_here(arguments: list[str]) -> str | None:
    """What a command needs that this machine lacks."""
    engine = next((arguments[i + 1] for i, each in enumerate(arguments) if each == "--target"), "onnxruntime")
    runs = arguments[0] in ("bench", "time") or any("latency=" in each for each in arguments)
    if runs and engine in ("deepsparse", "tensorrt"):
        return f"the engine of {engine}"
    if engine == "openvino" and importlib.util.find_spec("openvino") is None:
        return "onnx-obc[openvino]"
    if "--global-adaprune" in arguments and importlib.util.find_spec("torch") is None:
        return "onnx-obc[torch]"
    return next((reason for name, reason in ELSEWHERE.items() if name in arguments), None)


def run(arguments: list[str], block: Block) -> None:
    """Run a command as it stands on its page, for a shorter time where it would take long."""
    told = [SMALL.get(each, each) for each in arguments]
    if told[0] == "study" and told[1].endswith(".onnx"):
        told += SHORT_STUDY if "--bits" not in told else SHORT_STUDY[:2]
    for index, each in enumerate(told[:-1]):
        told[index + 1] = SHORTER.get(each, told[index + 1])
    commands = ("build", "search", "report", "inspect", "study", "debug", "check", "bench", "time", "demo", "compress")
    path = Path(told[1] if told[0] in commands else told[0])
    kept = path.read_bytes() if path.is_file() else None
    if "--tokenizer" in told:  # pages call models of text `in.onnx` and `model.onnx` too
        shutil.copy("text.onnx", path)
    allowed = {0}
    allowed |= {3} if any(each.startswith("--min-") for each in told) else set()  # a gate may refuse so small a model
    allowed |= {1} if told[0] == "check" else set()  # what the file was made for may be another target
    assert run_cli(*told) in allowed, f"{block.page.name}:{block.line}: onnx-obc {' '.join(told)}"
    if "--tokenizer" in told and kept is not None:
        path.write_bytes(kept)


def with_commands() -> list[Path]:
    return [page for page in PAGES if any(block.commands for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands(), ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    for block in blocks(page):
        for arguments in block.commands if block.reason is None else []:
            if not_here(arguments) is None and tuple(arguments) not in ran:
                run(arguments, block)
                ran.add(tuple(arguments))


def with_python() -> list[Path]:
    return [page for page in PAGES if any(b.language == "python" and b.reason is None for b in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    """The blocks of one page are one program; `samples` and `labels` are there, as on the pages."""
    samples, labels = workshop.labelled_images(workshop.np.random.default_rng(5), 64)
    names: dict[str, object] = {"samples": samples, "labels": labels}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            code = re.sub(r"prove=\d+", "prove=1, rows=4", block.text)
            exec(compile(code, f"{page.name}:{block.line}", "exec"), names)


def test_what_is_not_run_says_why() -> None:
    """A reason names what is missing: a word or two would not."""
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason is not None]
    assert all(len(reason.split()) >= 3 for reason in reasons)


def test_a_block_is_read_with_its_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = ["x", "", "    onnx-obc a b \\", "      --calib c  # why", "", "y", "<!-- not run: it needs a GPU -->"]
    page.write_text("\n".join([*text, "```bash", "$ onnx-obc inspect m", "onnx-obcs", "```", "```", "z", "```"]))
    found = blocks(page)
    assert [block.reason for block in found] == [None, "it needs a GPU", None]
    assert [block.commands for block in found] == [[["a", "b", "--calib", "c"]], [["inspect", "m"]], []]
    assert (ROOT / "docs") in {each.parent for each in PAGES}
