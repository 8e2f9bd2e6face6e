"""Databases that a Ray cluster builds: the same bytes, with machines that are lost and others that join."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import at_work
import pytest
from digits import CALIBRATION, MODEL, listing

from onnx_obc import DataOptions, Feedback, build
from onnx_obc.core.errors import CalibrationError, WorkerError
from onnx_obc.database import spread
from onnx_obc.pipeline import workers_ray
from onnx_obc.pipeline.tasks import DEATHS, Task
from onnx_obc.pipeline.workers import open_workers

FEW = DataOptions(samples=64)
LEVELS = "8w8a,2:4+8w8a"
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def fatal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fatal")


@pytest.fixture(scope="module")
def cluster(fatal: Path) -> Iterator[Any]:
    """Two machines, as far as Ray can tell."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv(at_work.FATAL, str(fatal))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # on this machine alone
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            made.add_node(num_cpus=1)
            ray.init(address=made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    return listing(build(MODEL, CALIBRATION, LEVELS, tmp_path_factory.mktemp("alone") / "db", data=FEW).folder)


def on_cluster(folder: Path, at_first_solution: Any = None) -> dict[str, bytes | None]:
    """What a cluster builds, with something done to it when the first solutions have come."""
    pending = [at_first_solution] if at_first_solution else []

    def told(stage: str, done: int, total: int) -> None:
        if stage == "solve" and done and pending:
            pending.pop()()

    feedback = Feedback(told)
    return listing(build(MODEL, CALIBRATION, LEVELS, folder, data=FEW, workers="ray", feedback=feedback).folder)


@pytest.mark.slow
def test_an_address_that_nobody_answers_at() -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    assert not ray.is_initialized()  # as by the cluster of the tests below
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(WorkerError, match=rf"^--workers ray://127\.0\.0\.1:{port}: nobody answers at 127\.0\.0\.1"),
        open_workers(f"ray://127.0.0.1:{port}", "cpu", None),
    ):
        pass
    with (
        pytest.raises(WorkerError, match=r"^--workers ray://x:y: no address; write ray://host:port$"),
        open_workers("ray://x:y", "cpu", None),
    ):
        pass


@pytest.mark.slow
def test_two_machines_make_the_same_bytes(cluster: Any, alone: dict[str, bytes | None], tmp_path: Path) -> None:
    assert on_cluster(tmp_path / "db") == alone


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_a_layer(
    cluster: Any, alone: dict[str, bytes | None], fatal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed from inside, with a layer solved and not handed back."""
    (fatal / "once").touch()
    monkeypatch.setattr(spread, "do_solve", at_work.solve)
    assert on_cluster(tmp_path / "db") == alone and not list(fatal.iterdir())


@pytest.mark.slow
def test_machines_join_and_are_lost(cluster: Any, alone: dict[str, bytes | None], tmp_path: Path) -> None:
    added = []
    assert on_cluster(tmp_path / "joined", lambda: added.append(cluster.add_node(num_cpus=1))) == alone
    assert on_cluster(tmp_path / "lost", lambda: cluster.remove_node(added[0], allow_graceful=False)) == alone


@pytest.mark.slow
def test_errors_come_back(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workers("ray", "cpu", None) as workers:
        with pytest.raises(CalibrationError, match=r"^a\.npz: not this one$"):
            list(workers.run([Task("x", at_work.refuse, "a.npz")]))
        with pytest.raises(WorkerError, match=r"^layer 'fc': a worker is out of memory; give fewer --workers"):
            list(workers.run([Task("layer 'fc'", at_work.exhaust, None)]))
        with pytest.raises(RuntimeError, match=r"(?s)^x failed in a worker:.*at_work\.py.*ZeroDivisionError"):
            list(workers.run([Task("x", at_work.fail, 3)]))
        with pytest.raises(WorkerError, match=rf"^layer 'fc': {DEATHS} workers died of it, most likely out of memory"):
            list(workers.run([Task("layer 'fc'", at_work.die, None)]))
        assert [result for _, result in workers.run([Task("4", at_work.double, 4)])] == [8]
    ours = workers_ray.versions()
    monkeypatch.setattr(workers_ray, "versions", lambda: ours | {"numpy": "1.0"})
    message = rf"^machine .* has numpy {ours['numpy']}, not 1\.0; install the same versions on all machines$"
    with pytest.raises(WorkerError, match=message), open_workers("ray", "cpu", None):
        pass


def test_a_cluster_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray leaves a note of the last cluster on this machine, and waits minutes for it."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not workers_ray._is_in_a_cluster()
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert workers_ray._is_in_a_cluster()
    assert not workers_ray._is_in_a_cluster()


def test_what_a_machine_lacks_is_said() -> None:
    workers_ray.check_versions(workers_ray.versions(), workers_ray.versions(), "b")
    theirs, ours = {"Python": "3.11.2"}, {"Python": "3.11.7", "numpy": "2.0"}
    message = r"^machine b has Python 3\.11\.2, not 3\.11\.7; numpy missing, not 2\.0; install the same versions on all"
    with pytest.raises(WorkerError, match=message):
        workers_ray.check_versions(theirs, ours, "b")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(WorkerError, match=r"^--workers ray: Ray is not installed; install onnx-obc\[ray\]$"),
        open_workers("ray", "cpu", None),
    ):
        pass
