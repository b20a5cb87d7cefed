"""Changes of the package that its tests should catch: planted mistakes, and a sample of the mutants of each room."""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from mutation.mutants import Mutant, functions_of, mutants_of
from mutation.planted import MISTAKES

PACKAGE = "rlhf_lightning"


@dataclass(frozen=True)
class Room:
    """Places in the package whose mutants are counted together, and how the names of their own tests begin."""

    places: tuple[str, ...]
    tests: str


ROOMS = {
    "objectives": Room(("objectives",), "tests/objectives/"),
    "algorithms": Room(("algorithms",), "tests/algorithms/"),
    "rollouts": Room(("rollouts",), "tests/rollouts/"),
    "models": Room(("models",), "tests/models/"),
    "data": Room(("data",), "tests/data/"),
    "cache": Room(
        (
            *("runs/cache_store.py", "runs/stage_cache.py"),
            *("runs/identity.py", "runs/code_identity.py", "runs/input_identity.py"),
        ),
        "tests/runs/test_cache",
    ),
    "config": Room(
        (
            *("runs/compose.py", "runs/constitution.py", "runs/environment_checks.py", "runs/overrides.py"),
            *("runs/preflight.py", "runs/rules.py", "runs/schema.py", "runs/validation.py"),
            *("stages/plugins.py", "stages/targets.py"),
        ),
        "tests/runs/",
    ),
}
CONFORMANCE = "conformance"
"""Where planted mistakes are caught: the room that they are in."""


@dataclass
class Case:
    """A change of the package, and what came of it.

    Attributes:
        name: `file:function:operator:ordinal`, or that of a planted mistake.
        what: the change in one line.
        lines: those of the file whose tests may catch it.
        changed: makes the syntax tree of the changed file.
        outcome: "caught", "survived" or "unreached", once examined.
        by: the test that caught it.
    """

    name: str
    room: str
    file: str
    what: str
    lines: tuple[int, int]
    changed: Callable[[], ast.Module]
    outcome: str = ""
    by: str = ""
    seconds: float = 0.0

    @property
    def place(self) -> str:
        """Its name without the ordinal."""
        return self.name.rpartition(":")[0]

    @property
    def caught(self) -> bool:
        return self.outcome == "caught"

    def record(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "changed"}


def planted_cases(root: Path, names: Sequence[str]) -> list[Case]:
    cases = []
    for name in names:
        mistake = MISTAKES[name]
        source = (root / PACKAGE / mistake.file).read_text(encoding="utf-8")
        planted = mistake.plant(source)
        lines = mistake.lines(source)
        cases.append(Case(name, CONFORMANCE, mistake.file, mistake.what, lines, lambda text=planted: ast.parse(text)))
    return cases


def sampled_cases(root: Path, per_room: int, seed: int) -> list[Case]:
    """The same number from each room, and in it from each operator, as far as there are; the same ones for a seed."""
    chosen: list[Case] = []
    for cases in all_cases(root).values():
        by_operator: defaultdict[str, list[Case]] = defaultdict(list)
        for case in sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case.name}".encode()).digest()):
            by_operator[case.place.rpartition(":")[2]].append(case)
        in_turn = chain.from_iterable(zip_longest(*(by_operator[operator] for operator in sorted(by_operator))))
        chosen += islice((case for case in in_turn if case is not None and is_valid(root, case)), per_room)
    return chosen


def all_cases(root: Path) -> dict[str, list[Case]]:
    rooms: dict[str, list[Case]] = {}
    for name, room in ROOMS.items():
        paths = [root / PACKAGE / place for place in room.places]
        files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
        rooms[name] = [case for file in files for case in cases_of(root, name, file)]
    return rooms


def cases_of(root: Path, room: str, path: Path) -> list[Case]:
    source, file = path.read_text(encoding="utf-8"), str(path.relative_to(root / PACKAGE))

    def case(position: int, mutant: Mutant) -> Case:
        def changed() -> ast.Module:
            tree = ast.parse(source)
            list(mutants_of(tree))[position].apply()
            return tree

        what = f"{mutant.was} -> {mutant.now}"
        return Case(f"{file}:{mutant.name}", room, file, what, mutant.lines, changed)

    return [case(position, mutant) for position, mutant in enumerate(mutants_of(ast.parse(source)))]


def is_valid(root: Path, case: Case) -> bool:
    """Whether it can be compiled, differs from the file, and closes over the same variables."""
    source = (root / PACKAGE / case.file).read_text(encoding="utf-8")
    before, after = (functions_of(compile(tree, case.file, "exec")) for tree in (ast.parse(source), case.changed()))
    same_cells = all(after[name].co_freevars == code.co_freevars for name, code in before.items())
    return same_cells and before != after


def again(root: Path, before: list[dict[str, Any]]) -> list[Case]:
    """The mutants of an earlier run that the package still has: the same change of the same function."""
    now: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for cases in all_cases(root).values():
        for case in cases:
            now[case.place, case.what].append(case)
    found = []
    for was in before:
        place, _, ordinal = was["name"].rpartition(":")
        alike = now[place, was["what"]]
        if alike:
            # Its ordinal has changed if the function got, or lost, other mutants before it.
            found.append(min(alike, key=lambda case: abs(int(case.name.rpartition(":")[2]) - int(ordinal))))
            alike.remove(found[-1])
    return found
