"""Examines changes of the package in a warm process: pytest, with its tests collected and their imports made."""

from __future__ import annotations

import gc
import importlib
import json
import pkgutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from mutation.cases import CONFORMANCE, PACKAGE, ROOMS, Case
from mutation.children import Children, Limit, shown
from mutation.mutants import install

LONGEST_TEST = 5.0
BUDGET = 10.0
"""CPU seconds of a test, and of all tests that one sampled mutant gets, as they took without it."""

PATIENCE = 5.0
"""Times as long as without a mutant, and 10 s more, may its tests take until it counts as one that never ends."""


@dataclass
class Reach:
    """What a run of all tests under coverage tells.

    Attributes:
        tests: of each file of the package and each line, those that reach it.
        seconds: CPU seconds of each test that passed.
        durations: how long they took, waiting included.
        failed: tests that fail without any mutant.
    """

    tests: defaultdict[tuple[str, int], set[str]]
    seconds: dict[str, float]
    durations: dict[str, float]
    failed: list[str]

    @classmethod
    def read(cls, parts: list[dict[str, Any]]) -> Reach:
        """What several children found, each with its share of the tests."""
        reach = cls(defaultdict(set), {}, {}, [])
        for part in parts:
            reach.seconds |= part["seconds"]
            reach.durations |= part["durations"]
            reach.failed += part["failed"]
            for file, lines in part["lines"].items():
                for line, numbers in lines.items():
                    reach.tests[file, int(line)].update(part["names"][number] for number in numbers)
        return reach

    def of(self, case: Case) -> list[str]:
        """Tests that may catch it, in the order in which they should be tried."""
        lines = range(case.lines[0], case.lines[1] + 1)
        reaching = set[str]().union(*(self.tests[case.file, line] for line in lines if (case.file, line) in self.tests))
        reaching &= set(self.seconds)
        if case.room == CONFORMANCE:
            own, longest, budget = f"tests/{CONFORMANCE}/", inf, inf
            reaching = {name for name in reaching if name.startswith(own)}
        else:
            own, longest, budget = ROOMS[case.room].tests, LONGEST_TEST, BUDGET
        of_file: defaultdict[str, float] = defaultdict(float)
        for name in reaching:
            of_file[name.split("::")[0]] += self.seconds[name]

        def rank(name: str) -> tuple[bool, float, str, float]:
            file = name.split("::")[0]
            return not name.startswith(own), of_file[file], file, self.seconds[name]

        chosen, spent = [], 0.0
        for name in sorted(reaching, key=rank):
            if self.seconds[name] < longest and spent + self.seconds[name] <= budget:
                spent += self.seconds[name]
                chosen.append(name)
        return chosen


class Laboratory:
    """A pytest plugin that examines cases in place of running the tests that were collected."""

    def __init__(self, root: Path, cases: list[Case], jobs: int, reach_file: Path | None) -> None:
        self.root = root
        self.cases = cases
        self.children = Children(jobs)
        self.reach_file = reach_file
        self.reach = Reach.read([])
        self.items: dict[str, pytest.Item] = {}
        self.reports: list[pytest.TestReport] = []
        self.coverage: Any = None
        self.context = ""
        self.trusted: set[str] = set()
        self.functions: defaultdict[str, list[FunctionType]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """What a fixture reaches is reached by each test that has it, not only by the first."""
        if self.coverage is None:
            return (yield)
        before, self.context = self.context, f"fixture {fixturedef.argname}"
        self.coverage.switch_context(self.context)
        try:
            return (yield)
        finally:
            self.context = before
            self.coverage.switch_context(self.context)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Failed("some tests could not be collected")
        self.items = {item.nodeid: item for item in session.items}
        self.reach = self.reach_of_the_tests()
        self.index_functions()
        gc.freeze()
        self.examine(self.cases)
        while doubtful := self.unreliable():
            self.reach.failed += doubtful
            for test in doubtful:
                self.reach.seconds.pop(test)
            self.examine([case for case in self.cases if case.by in doubtful])
        return True

    def examine(self, cases: list[Case]) -> None:
        works, reached = [], []
        for case in cases:
            tests = self.reach.of(case)
            case.outcome, case.by = "survived" if tests else "unreached", ""
            if tests:
                works.append((lambda case=case, tests=tests: self.try_case(case, tests), self.limit(tests)))
                reached.append(case)
        found = self.children.run(works)
        for index, result in shown(found, "Mutants", len(works)):
            case = reached[index]
            if "died" in result:
                case.outcome, case.by = "caught", "it crashed or did not end"
            elif "error" in result:
                raise RuntimeError(f"{case.name}: {result['error']}")
            else:
                case.seconds, case.by = result["seconds"], result["by"]
                case.outcome = "caught" if case.by else case.outcome

    def limit(self, tests: list[str]) -> Limit:
        seconds, durations = (sum(of[test] for test in tests) for of in (self.reach.seconds, self.reach.durations))
        return Limit(10 + PATIENCE * seconds, 60 + PATIENCE * durations)

    def unreliable(self) -> list[str]:
        """Tests that caught something, and fail alone in the package as it is."""
        tests = sorted({case.by for case in self.cases} & set(self.items) - self.trusted)
        self.trusted.update(tests)
        found = self.children.run([(lambda test=test: self.run_tests([test]), self.limit([test])) for test in tests])
        results = shown(found, "The tests that caught one, without it", len(tests))
        return [tests[index] for index, result in results if result.get("by") != ""]

    def try_case(self, case: Case, tests: list[str]) -> dict[str, Any]:
        path = self.root / PACKAGE / case.file
        before = compile(path.read_text(encoding="utf-8"), str(path), "exec")
        after = compile(case.changed(), str(path), "exec")
        if not install(self.functions[case.file], before, after):
            return {"error": "no live function has changed"}
        return self.run_tests(tests)

    def run_tests(self, tests: list[str]) -> dict[str, Any]:
        """Run them until one fails: which it is, and the seconds that it took."""
        started = time.perf_counter()
        for test, following in zip_longest(tests, tests[1:]):
            self.reports.clear()
            item = self.items[test]
            item.ihook.pytest_runtest_protocol(item=item, nextitem=self.items[following] if following else None)
            if any(report.failed for report in self.reports):
                return {"by": test, "seconds": time.perf_counter() - started}
        return {"by": "", "seconds": time.perf_counter() - started}

    def reach_of_the_tests(self) -> Reach:
        if self.reach_file and self.reach_file.exists():
            kept = json.loads(self.reach_file.read_text())
            import_all(kept["modules"])
            return Reach.read(kept["parts"])
        files: defaultdict[str, list[pytest.Item]] = defaultdict(list)
        for item in self.items.values():
            files[item.nodeid.split("::")[0]].append(item)
        shares = [list(files.values())[first :: self.children.jobs] for first in range(self.children.jobs)]
        works = [
            (lambda items=[item for file in share for item in file]: self.run_under_coverage(items), Limit(3600, 7200))
            for share in shares
        ]
        parts = [part for _, part in shown(self.children.run(works), "The tests under coverage", len(works))]
        for part in parts:
            if "died" in part:
                raise RuntimeError(f"the tests do not come to an end: {part['died']}")
        modules = sorted({name for part in parts for name in part.pop("modules")})
        if self.reach_file:
            self.reach_file.write_text(json.dumps({"parts": parts, "modules": modules}))
        import_all(modules)
        return Reach.read(parts)

    def run_under_coverage(self, items: list[pytest.Item]) -> dict[str, Any]:
        import coverage

        measured = coverage.Coverage(data_file=None, include=[str(self.root / PACKAGE / "*")], config_file=False)
        seconds: dict[str, float] = {}
        durations: dict[str, float] = {}
        failed, fixtures_of = [], {}
        measured.start()
        self.coverage = measured
        for item, following in zip_longest(items, items[1:]):
            self.reports.clear()
            self.context = item.nodeid
            measured.switch_context(self.context)
            started = time.process_time()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            used = time.process_time() - started
            if any(report.failed for report in self.reports):
                failed.append(item.nodeid)
            elif any(report.when == "call" for report in self.reports):
                seconds[item.nodeid] = used
                durations[item.nodeid] = sum(report.duration for report in self.reports)
                fixtures_of[item.nodeid] = [f"fixture {name}" for name in getattr(item, "fixturenames", ())]
        measured.stop()
        using: defaultdict[str, list[int]] = defaultdict(list)
        for number, (test, fixtures) in enumerate(fixtures_of.items()):
            for context in (test, *fixtures):
                using[context].append(number)
        data, lines = measured.get_data(), {}
        for file in data.measured_files():
            lines[str(Path(file).relative_to(self.root / PACKAGE))] = {
                line: sorted({number for context in contexts for number in using.get(context, ())})
                for line, contexts in data.contexts_by_lineno(file).items()
            }
        times = {"seconds": seconds, "durations": durations}
        return {"names": list(fixtures_of), "lines": lines, **times, "failed": failed, "modules": list(sys.modules)}

    def index_functions(self) -> None:
        package = importlib.import_module(PACKAGE)
        if not Path(str(package.__file__)).is_relative_to(self.root):
            raise RuntimeError(f"the tests would import {package.__file__}, not the package in {self.root}")
        for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(self.root / PACKAGE)):
                self.functions[str(Path(thing.__code__.co_filename).relative_to(self.root / PACKAGE))].append(thing)


def import_all(modules: Sequence[str]) -> None:
    """Import once what the tests imported as they went, so that not each child has to."""
    packages = {name.split(".")[0] for name in sys.modules} - {"setuptools", "distutils", "pkg_resources"}
    for name in modules:
        if name.split(".")[0] in packages and name != "__main__":
            with suppress(ImportError):
                importlib.import_module(name)
