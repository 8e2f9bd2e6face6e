from __future__ import annotations

import os
from pathlib import Path

import pytest

# Processes that run tests beside each other share the cores: threads of torch would wait for one another, five times as
# long as one thread takes.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the repository: data sets and models that are not part of it."""
    path = Path(__file__).parents[1] / ".." / "shared"
    if not path.is_dir():
        pytest.skip("needs the shared material, which is not there")
    return path.resolve()
