from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Processes that run tests beside each other share the cores: threads of torch would wait for one another, five times as
# long as one thread takes.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def short_timing() -> Iterator[None]:
    """Time files for a moment: no test may depend on what is found, and at full length it is most that tests do."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in {"TURN_SECONDS": 0.01, "QUICK_SECONDS": 0.005, "PROFILE_SECONDS": 0.01}.items():
            patch.setattr(f"onnx_obc.pipeline.speed.{name}", seconds)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the repository: data sets and models that are not part of it."""
    path = Path(__file__).parents[1] / ".." / "shared"
    if not path.is_dir():
        pytest.skip("needs the shared material, which is not there")
    return path.resolve()
