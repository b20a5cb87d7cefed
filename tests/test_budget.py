"""The budget of the suite fails a run that takes too long."""

from __future__ import annotations

import pytest
from budget import Budget

pytest_plugins = ["pytester"]

SUITE = """
    import time

    import pytest

    @pytest.fixture
    def slow():
        time.sleep(0.2)

    def test_quick():
        pass

    def test_waits(slow):
        pass
"""


def test_a_test_over_budget_fails_the_run_its_fixtures_included(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budget.LONGEST_TEST", 0.1)
    pytester.makepyfile(SUITE)
    ended = pytester.runpytest_inprocess("-p", "budget", "-p", "no:xdist")
    assert ended.ret == pytest.ExitCode.TESTS_FAILED
    ended.assert_outcomes(passed=2)
    ended.stdout.fnmatch_lines(["OVER BUDGET: *test_waits took 0 s, of 0"])
    assert "OVER BUDGET: test_quick" not in ended.stdout.str()


def test_a_run_over_budget_is_one_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget()
    assert budget.overruns() == []
    monkeypatch.setattr("budget.LONGEST_RUN", 1500.0)
    budget.started -= 1501
    assert budget.overruns() == ["the run took 1501 s, of 1500"]
    monkeypatch.setattr("budget.LONGEST_RUN", 1600.0)
    assert budget.overruns() == []


def test_seconds_are_added_up_by_directory() -> None:
    budget = Budget()
    budget.seconds.update(
        {"tests/a/test_x.py::test_1": 1.0, "tests/a/test_y.py::test_2[b/c]": 2.0, "tests/test_z.py::test": 4.0}
    )
    assert budget.folders() == {"tests/a": 3.0, "tests": 4.0}
