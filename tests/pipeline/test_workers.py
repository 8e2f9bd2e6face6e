"""Workers that are processes of this machine: what they do, and what becomes of tasks that kill them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import at_work
import numpy as np
import psutil
import pytest

from onnx_obc.core.errors import CalibrationError, RecipeError, WorkerError
from onnx_obc.pipeline.tasks import DEATHS, Task
from onnx_obc.pipeline.workers import LocalWorkers, gpu_numbers, open_workers


@pytest.fixture(scope="module")
def two() -> Iterator[LocalWorkers]:
    with LocalWorkers(2) as workers:
        yield workers


def results(workers: LocalWorkers, function: object, jobs: object) -> list[object]:
    return [result for _, result in workers.run(Task(str(job), function, job) for job in jobs)]


@pytest.mark.slow
def test_every_task_is_done_once(two: LocalWorkers) -> None:
    assert sorted(results(two, at_work.double, range(20))) == list(range(0, 40, 2))
    assert len(set(results(two, at_work.process, range(8)))) <= two.many() == 2
    assert results(two, at_work.double, []) == []


@pytest.mark.slow
def test_tasks_are_asked_for_shortly_before_they_begin(two: LocalWorkers) -> None:
    asked = []

    def tasks() -> Iterator[Task]:
        for number in range(10):
            asked.append(number)
            yield Task(str(number), at_work.double, number)

    for done, _ in enumerate(two.run(tasks()), 1):
        assert len(asked) <= done + 2 + 1  # those at work, and one ahead
    assert len(asked) == 10


@pytest.mark.slow
def test_what_is_shared_arrives(two: LocalWorkers, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(7))
    shared = [two.share(np.zeros(5)), two.share_file(tmp_path / "file")]
    assert sorted(results(two, at_work.shared_length, shared)) == [5, 7]
    assert two.share_folder(tmp_path).place() == tmp_path


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_task_alone(two: LocalWorkers, tmp_path: Path) -> None:
    for number in range(DEATHS - 1):
        (tmp_path / str(number)).touch()
    jobs = [Task("fatal", at_work.die_while_there_are_files, str(tmp_path))]
    jobs += [Task(str(number), at_work.double, number) for number in range(5)]
    done = {task.name: result for task, result in two.run(jobs)}
    assert done == {"fatal": "done", "0": 0, "1": 2, "2": 4, "3": 6, "4": 8}


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_named(two: LocalWorkers) -> None:
    with pytest.raises(WorkerError, match=r"^layer 'fc': 3 workers died of it, most likely out of memory; give fewer"):
        list(two.run([Task("layer 'fc'", at_work.die, None)]))
    assert results(two, at_work.double, [4]) == [8]


def test_errors_come_back(two: LocalWorkers) -> None:
    with pytest.raises(CalibrationError, match=r"^a\.npz: not this one$"):
        results(two, at_work.refuse, ["a.npz"])
    with pytest.raises(WorkerError, match=r"^layer 'fc': a worker is out of memory; give fewer --workers"):
        list(two.run([Task("layer 'fc'", at_work.exhaust, None)]))
    with pytest.raises(RuntimeError, match=r"(?s)^3 failed in a worker:.*at_work\.py.*ZeroDivisionError"):
        results(two, at_work.fail, [3])
    assert results(two, at_work.double, [4]) == [8]


@pytest.mark.slow
def test_nothing_of_them_is_left() -> None:
    with LocalWorkers(2) as workers:
        pids = set(results(workers, at_work.process, range(4)))
        folder = Path(workers.share(1).path).parent
    assert not any(psutil.pid_exists(pid) for pid in pids) and not folder.exists()


@pytest.mark.slow
def test_each_has_a_gpu_of_its_own() -> None:
    with LocalWorkers(2, gpus=("4", "7")) as workers:
        seen = {result for _, result in _both_at_once(workers, at_work.environment, "CUDA_VISIBLE_DEVICES")}
    assert seen == {"4", "7"}
    assert gpu_numbers(["cuda:0", "cuda:1"], {}) == ("0", "1")
    assert gpu_numbers(["cuda:0", "cuda:1"], {"CUDA_VISIBLE_DEVICES": "3, 5"}) == ("3", "5")
    assert gpu_numbers([], {}) == ()


def _both_at_once(workers: LocalWorkers, function: object, job: object) -> Iterator[tuple[Task, object]]:
    """One task for each worker: a second is sent before the first result is asked for."""
    return workers.run(Task(str(number), function, job) for number in range(workers.many()))


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "rays", "99999", "http://a:1"])
def test_other_words_are_refused(text: str) -> None:
    with (
        pytest.raises(RecipeError, match=r"give a number of processes, auto, ray, or ray://host:port"),
        open_workers(text, "cpu", None),
    ):
        pass


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_obc.pipeline import workers as module

    monkeypatch.setattr(module, "usable", lambda threads: threads or 8)
    for text, threads, expected in (("2", None, (2, 4)), ("3", None, (3, 2)), ("16", None, (16, 1)), ("2", 6, (2, 3))):
        with open_workers(text, "cpu", threads) as found:
            assert (found.many(), found.threads) == expected
    with open_workers("auto", "cpu", None) as found:
        assert (found.many(), found.threads) == (8, 1)
    monkeypatch.setattr(module, "devices", lambda: ["cuda:0", "cuda:1"])
    with open_workers("auto", "auto", None) as found:
        assert (found.many(), found.threads) == (2, 4)
