"""Completion of commands and options in a shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from digits import run_cli

from onnx_obc.cli.main import COMMANDS


def test_a_shell_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "onnx-obc"
    assert run_cli("--install-completion", "--shell", "bash", "--output", script) == 0
    text = script.read_text(encoding="utf-8")
    assert all(each in text for each in (*COMMANDS, "--weights", "--calib", "--min-quality"))
    if bash := shutil.which("bash"):
        assert subprocess.run([bash, "-n", str(script)], capture_output=True).stderr == b""
    assert str(script) in capsys.readouterr().out
