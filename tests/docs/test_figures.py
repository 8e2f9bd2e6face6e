"""The figures of the README, docs/choosing.md and docs/results.md are those of benchmarks/results."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pages import ROOT

MEASURED = r"\d[\d.,]*\s?(%|×|x\b|times|points?|dB|[MG]i?B|ms\b|seconds|minutes|hours)"


def front(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.front", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_tables_are_those_of_the_results() -> None:
    found = front("--check")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/choosing.md"])
def test_no_figure_stands_elsewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"<!-- \w+ -->", text)) >= 2
    text = re.sub(r"<!-- \w+ -->.*?<!-- / -->|```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    assert [match[0] for match in re.finditer(MEASURED, text)] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 140
