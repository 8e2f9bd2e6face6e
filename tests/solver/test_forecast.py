from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_obc.core.level import parse_level
from onnx_obc.solver.forecast import LONGEST, Job, Machine, calibrate, choose_solvers, predict, rows_to_compare

KINDS = ("bits", "unstructured", "nm", "block")
MACHINE = Machine(2, dict.fromkeys(KINDS, 1e-4), dict.fromkeys(KINDS, 1e-2), 1e11, 2e10)
LEVELS = ("int4", "2:4", "sparse-0.60", "block4-0.50", "2:4+int4")
JOBS = st.builds(
    Job,
    st.sampled_from([1, 3]),
    st.integers(1, 5000),
    st.sampled_from([1, 9, 128, 500, 2000, 9000]),
    st.sampled_from([parse_level(level) for level in LEVELS]),
)


def job(rows, columns, level="int4", groups=1):
    return Job(groups, rows, columns, parse_level(level))


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_grows_from_width_to_width(level):
    exact = [predict(job(1000, columns, level), MACHINE)[0] for columns in (64, 128, 300, 1024, 1500, 4608)]
    assert sorted(exact) == exact
    assert exact[-1] > 3 * exact[-2]
    double = predict(job(2000, 4608, level), MACHINE)[0]
    assert 1.9 * exact[-1] < double < 2 * exact[-1]  # the inverse is made once


def test_what_was_timed_is_predicted():
    kinds = {"bits": 1.0, "unstructured": 2.0, "nm": 3.0, "block": 5.0}
    machine = replace(MACHINE, narrow=kinds, wide={kind: 100 * value for kind, value in kinds.items()}, double=1e30)
    for level, value in (("int4", 1), ("sparse-0.60", 2), ("2:4", 3), ("block4-0.50", 5), ("block4-0.50+int4", 6)):
        assert predict(job(10, 128, level), machine)[0] == pytest.approx(10 * value)
        assert predict(job(10, 1024, level), machine)[0] == pytest.approx(1000 * value)
    assert predict(job(1, 128), machine)[0] == pytest.approx(2)  # the second thread idles
    assert predict(job(10, 128, "float"), machine) == (0, 0)


def test_the_ordered_solver_wins_where_layers_are_large():
    exact, ordered = predict(job(4096, 14336, "2:4"), MACHINE)
    assert exact > 20 * ordered > 0
    exact, ordered = predict(job(512, 100, "2:4"), MACHINE)
    assert exact == ordered  # it is the exact solver there


def test_without_a_limit_each_layer_is_judged_alone():
    jobs = [job(100, 576), job(4096, 14336), job(512, 4608)]
    assert predict(jobs[1], MACHINE)[0] > LONGEST > predict(jobs[2], MACHINE)[0]
    assert [forecast.solver for forecast in choose_solvers(jobs, MACHINE)] == ["exact", "ordered", "exact"]


@settings(max_examples=50, deadline=None)
@given(st.lists(JOBS, max_size=8), st.floats(0, 1e5))
def test_the_limit_holds_and_no_further_layer_fits(jobs, limit):
    forecasts = choose_solvers(jobs, MACHINE, limit)
    assert [(f.exact, f.ordered) for f in forecasts] == [predict(job, MACHINE) for job in jobs]
    total = sum(f.seconds for f in forecasts)
    dearer = [f for f in forecasts if f.exact > f.ordered]
    assert total <= limit * (1 + 1e-9) or all(f.solver == "ordered" for f in dearer)
    assert all(f.solver == "exact" for f in forecasts if f.exact <= f.ordered)
    assert all(total + f.exact - f.ordered > limit * (1 - 1e-9) for f in dearer if f.solver == "ordered")


def test_a_longer_limit_makes_more_layers_exact():
    jobs = [job(512, columns) for columns in (300, 600, 1200, 2400, 4800)]
    counts = [
        sum(f.solver == "exact" for f in choose_solvers(jobs, MACHINE, limit)) for limit in (0, 10, 100, 1000, 1e4)
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 5


def test_rows_to_compare():
    assert rows_to_compare(job(4096, 14336), MACHINE) == 0
    assert rows_to_compare(job(4096, 600), MACHINE) == 16
    assert rows_to_compare(job(3, 600), MACHINE) == 3
    assert 0 < rows_to_compare(job(4096, 4608), MACHINE, seconds=20.0) < 16
    assert rows_to_compare(job(4096, 600, "float"), MACHINE) == 0


@pytest.mark.slow
def test_calibration_measures_something():
    machine = calibrate(1)
    assert machine.threads == 1 and machine.single > machine.double > 1e8
    assert all(0 < machine.narrow[kind] < machine.wide[kind] < 10 for kind in KINDS)
