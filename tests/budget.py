"""The suite's budget: seconds per directory and the slowest tests are printed, and a run that takes too long fails.

Of a test its fixtures' time counts too: whoever is the first to ask for a run that others read pays for it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

LONGEST_TEST = 60.0
"""Seconds of one test."""

LONGEST_RUN = 25 * 60.0
"""Seconds of the whole run, on two cores. The aim is 12 minutes, set-up included: the rest is for busier machines."""

SHOWN = 10


class Budget:
    """Adds up what tests take; in a run of several workers, in the process that gathers their reports."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if self.overruns() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        yield

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.seconds:
            return
        terminalreporter.section("seconds")
        for folder, seconds in sorted(self.folders().items(), key=lambda entry: -entry[1]):
            terminalreporter.write_line(f"{seconds:8.1f}  {folder}")
        terminalreporter.write_line("slowest:")
        for test in sorted(self.seconds, key=lambda test: -self.seconds[test])[:SHOWN]:
            terminalreporter.write_line(f"{self.seconds[test]:8.1f}  {test}")
        for overrun in self.overruns():
            terminalreporter.write_line(f"OVER BUDGET: {overrun}", red=True)

    def folders(self) -> dict[str, float]:
        """Seconds by directory; files of the top level count as one."""
        folders: dict[str, float] = defaultdict(float)
        for test, seconds in self.seconds.items():
            folders[str(PurePosixPath(test.partition("::")[0]).parent)] += seconds
        return folders

    def overruns(self) -> list[str]:
        """What took longer than it may, in words."""
        run = time.monotonic() - self.started
        tests = [
            f"{test} took {seconds:.0f} s, of {LONGEST_TEST:.0f}"
            for test, seconds in self.seconds.items()
            if seconds > LONGEST_TEST
        ]
        return tests + ([f"the run took {run:.0f} s, of {LONGEST_RUN:.0f}"] if run > LONGEST_RUN else [])


def pytest_configure(config: pytest.Config) -> None:
    # A worker reports to the process that started it, which alone sees all tests.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Budget(), "budget-of-the-suite")
