"""The files around the package say what the package is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from onnx_obc import __version__

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_workflows_run_targets_that_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path
        told = re.findall(r"(?:run:|&&) make ([\w -]+)", path.read_text(encoding="utf-8"))
        assert {name for line in told for name in line.split()} <= targets, path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_image_has_versions_that_the_package_takes(name: str) -> None:
    (pinned,) = re.findall(rf"\b{name}==([\d.]+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    (wanted,) = re.findall(rf'"({name}>=[\d.]+)"', PROJECT)
    assert pinned in Requirement(wanted).specifier


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
