"""What the tests are worth: the share of planted mistakes, and of sampled mutants of the package, that they catch.

    python scripts/mutation_check.py                               # both parts, about 40 minutes of one core
    python scripts/mutation_check.py planted                       # known mistakes of PPO, against tests/conformance
    python scripts/mutation_check.py planted --only entropy_sign wrong_lambda
    python scripts/mutation_check.py sampled --out before.jsonl    # 45 mutants of each room, a line of JSON for each
    python scripts/mutation_check.py sampled --again before.jsonl  # the same ones after a change, and the difference

It runs outside CI. The tests are collected once. Forked children run them all under coverage, which tells which of them
reach a line; a test that fails there, or takes over 5 CPU seconds, catches nothing. Then a child for each mutant gives
the live functions their changed code, and runs the tests that reach it until one fails: those of the room first, then
the quick files before the slow, 10 CPU seconds of them at most. Tests that never end count as a catch. Each test that
caught a mutant is run once more without it, and is not believed if it fails.

Tests that start processes are left out: those import the package as it is on disk. The exit code is 1 if a planted
mistake is missed, a room's share is below 85%, or, with --again, the share over all rooms fell by more than a point.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mutation.cases import ROOMS, Case, again, planted_cases, sampled_cases
from mutation.laboratory import Laboratory
from mutation.planted import MISTAKES
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PROCESSES = (
    "cli",
    "end_to_end",
    "distributed",
    "comparison/test_report_in_browser.py",
    "test_benchmark_memory.py",
    "test_mutation_check.py",
    "test_packaging.py",
    "test_readme.py",
    "test_setup.py",
)
"""Tests that start processes, which a change of this one does not reach."""

WITHOUT_THREADS = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")},
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Environment in which what the tests import starts no threads: a process that has some cannot be forked."""

ENOUGH = 0.85
"""Share of a room's mutants that its tests have to catch."""


def report_planted(console: Console, cases: list[Case]) -> bool:
    table = Table("mistake", "what")
    table.add_column("caught by", overflow="fold")
    table.add_column("s", justify="right")
    for case in cases:
        table.add_row(
            case.name, case.what, escape(case.by.removeprefix("tests/conformance/") or "-"), f"{case.seconds:.1f}"
        )
    console.print(table)
    caught = sum(case.caught for case in cases)
    console.print(f"{caught} of {len(cases)} planted mistakes caught.")
    return caught == len(cases)


def report_sampled(console: Console, cases: list[Case], before: list[dict[str, Any]]) -> bool:
    columns = ("room", "sampled", "caught", "unreached", "share", *(("share before", "gone") if before else ()))
    table = Table(*columns[:1])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    enough = True
    rooms = [room for room in ROOMS if any(case.room == room for case in cases)]
    for room in (*rooms, "all"):
        mine = [case for case in cases if room in {case.room, "all"}]
        old = [case for case in before if room in {case["room"], "all"}]
        share, old_share = share_of([case.outcome for case in mine]), share_of([case["outcome"] for case in old])
        figures = [len(mine), sum(case.caught for case in mine), sum(case.outcome == "unreached" for case in mine)]
        more = [f"{old_share:.1%}", str(len(old) - len(mine))] if before else []
        table.add_row(room, *map(str, figures), f"{share:.1%}", *more)
        enough = enough and (share >= ENOUGH if room != "all" else not before or share >= old_share - 0.01)
    console.print(table)
    return enough


def share_of(outcomes: list[str]) -> float:
    return sum(outcome == "caught" for outcome in outcomes) / len(outcomes) if outcomes else 1.0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("planted", "sampled", "both"), default="both")
    parser.add_argument("--only", nargs="+", choices=MISTAKES, default=list(MISTAKES), metavar="NAME")
    parser.add_argument("--per-room", type=int, default=45, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", type=Path, help="the --out of an earlier run, whose mutants are taken")
    parser.add_argument("--out", type=Path, help="a line of JSON for each case")
    parser.add_argument("--reach", type=Path, help="keeps which tests reach which lines, from one run to the next")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the checkout")
    arguments = parser.parse_args(argv)
    root = arguments.root.resolve()
    before = [json.loads(line) for line in arguments.again.read_text().splitlines()] if arguments.again else []
    before = [case for case in before if case["room"] in ROOMS]
    planted = planted_cases(root, arguments.only) if arguments.part != "sampled" else []
    sampled = []
    if arguments.part != "planted":
        sampled = again(root, before) if before else sampled_cases(root, arguments.per_room, arguments.seed)
    os.environ |= WITHOUT_THREADS | {"PYTHONPATH": str(root)}
    sys.path[:0] = [str(root)]
    os.chdir(root)
    laboratory = Laboratory(root, planted + sampled, arguments.jobs, arguments.reach)
    tests = ["tests/conformance"] if arguments.part == "planted" else ["tests"]
    ignored = [f"--ignore=tests/{name}" for name in PROCESSES]
    # Without capture: a child has no terminal to write to. Without stored examples: each mutant meets the same ones.
    without = [word for plugin in ("cacheprovider", "xdist", "budget") for word in ("-p", f"no:{plugin}")]
    options = ["-q", "-s", "-m", "slow or not slow", "--hypothesis-seed=0", *without]
    status = pytest.main([*options, *tests, *ignored], plugins=[laboratory])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(status)
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(case.record()) + "\n" for case in planted + sampled))
    console = Console(width=None if sys.stdout.isatty() else 180)
    for test in laboratory.reach.failed:
        console.print(f"fails without a mutant: {test}", markup=False)
    good = not planted or (report_planted(console, planted) and not laboratory.reach.failed)
    return 0 if (not sampled or report_sampled(console, sampled, before)) and good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
