"""The script that shows what the tests are worth: planted mistakes, and mutants of a package of a few lines."""

from __future__ import annotations

import ast
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest
from load_script import SCRIPTS, load_script

PACKAGE = SCRIPTS.parent / "rlhf_lightning"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def mutants(source: str) -> list[tuple[str, str, str]]:
    from mutation.mutants import mutants_of

    return [(mutant.name, mutant.was, mutant.now) for mutant in mutants_of(ast.parse(source))]


@pytest.mark.parametrize(
    ("statement", "changes"),
    [
        ("x < y", [("compare", "x < y", "x <= y")]),
        ("x is not y", [("compare", "x is not y", "x is y")]),
        ("x or y", [("boolean", "x or y", "x and y")]),
        ("x * y", [("arithmetic", "x * y", "x / y")]),
        ("-x", [("sign", "-x", "x")]),
        ("not x", [("sign", "not x", "x")]),
        ("True", [("constant", "True", "False")]),
        ("7", [("constant", "7", "8"), ("constant", "7", "6")]),
        ("x += y", [("arithmetic", "x += y", "x -= y"), ("statement", "x += y", "pass")]),
        ("return x", [("return", "return x", "return None")]),
        ("raise ValueError(x + y)", [("statement", "raise ValueError(x + y)", "pass")]),
        ("x.step()", [("statement", "x.step()", "pass")]),
        ("x = min(x, y)", [("call", "min(x, y)", "max(x, y)")]),
        ("x = y.detach()", [("call", "y.detach()", "y")]),
        ("x = f(y, dim=x)", [("keyword", "f(y, dim=x)", "f(y)")]),
        ("x = y if x else f", [("condition", "y if x else f", "y if not x else f")]),
        ("x = [y for y in x if y]", [("condition", " for y in x if y", " for y in x if not y")]),
        ("while not x: f", [("sign", "not x", "x")]),
    ],
)
def test_mutants_of_a_statement(statement: str, changes: list[tuple[str, str, str]]) -> None:
    source = f"def f(x, y):\n    {statement}\n"
    assert [(name.split(":")[1], was.strip(), now.strip()) for name, was, now in mutants(source)] == [
        (operator, was.strip(), now.strip()) for operator, was, now in changes
    ]


def test_a_condition_is_turned_once_and_named_by_its_first_line() -> None:
    assert mutants("def f(x):\n    if not x:\n        return\n") == [
        ("f:condition:0", "if not x:", "if x:"),
        ("f:sign:0", "not x", "x"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        "X = 1 + 1\n",
        "def f(x: 'int' = 3) -> 'a + b': x\n",
        "@cache(4)\ndef f(x): x\n",
        "class A:\n    x: int = 3\n",
        "def f(x):\n    'text'\n    return\n",
        "def f(x): x = f'{x + 1}' + 'text'\n",
        "def f(x): logger.info('%d', x + 1)\n",
        "def f(x): console.print(x + 1)\n",
        "def f(x): problem = Problem('key', f'{x - 1}', fix='lower it')\n",
        "def f(x): x = fail('key', fix='lower it')\n",
    ],
)
def test_messages_and_what_runs_at_import_are_left_alone(source: str) -> None:
    assert mutants(source) == []


def test_mutants_are_numbered_within_their_function() -> None:
    source = "class A:\n    def f(self, x):\n        return x + x + x\ndef f(x):\n    x = x + x\n"
    assert [name for name, _, _ in mutants(source)] == [
        "A.f:return:0",
        "A.f:arithmetic:0",
        "A.f:arithmetic:1",
        "f:arithmetic:0",
    ]


@pytest.mark.parametrize(
    ("name", "expected"), [("none", (4, [3, 2])), ("A.next", (2, [3, 2])), ("A.down", (4, [3, 4]))]
)
def test_a_mutant_is_installed_in_live_functions_whatever_wraps_them(
    name: str, expected: tuple[int, list[int]]
) -> None:
    from mutation.mutants import install, mutants_of

    source = (
        "import functools\n"
        "class A:\n"
        "    x = 3\n"
        "    @property\n"
        "    def next(self): return self.x + 1\n"
        "    @functools.lru_cache\n"
        "    def down(self, n): return [self.x - i for i in range(n)]\n"
    )
    file = f"live {name}.py"
    before = compile(source, file, "exec")
    exec(before, space := {})
    live = [thing for thing in gc.get_objects() if type(thing) is FunctionType and thing.__code__.co_filename == file]
    tree = ast.parse(source)
    chosen = [mutant for mutant in mutants_of(tree) if mutant.name == f"{name}:arithmetic:0"]
    for mutant in chosen:
        mutant.apply()
    assert install(live, before, compile(tree, file, "exec")) == len(chosen)
    thing = space["A"]()
    assert (thing.next, thing.down(2)) == expected


def test_every_planted_mistake_fits_the_package_as_it_is() -> None:
    from mutation.planted import MISTAKES

    for name, mistake in MISTAKES.items():
        source = (PACKAGE / mistake.file).read_text(encoding="utf-8")
        compile(mistake.plant(source), mistake.file, "exec")
        assert mistake.plant(source) != source, name
        first, last = mistake.lines(source)
        assert mistake.text.strip() in "\n".join(source.splitlines()[first - 1 : last]), name


@pytest.mark.parametrize(("text", "times"), [("nowhere to be found", 0), ("scores", 2)])
def test_a_mistake_whose_text_does_not_stand_there_once_is_an_error(text: str, times: int) -> None:
    from mutation.planted import Mistake

    mistake = Mistake("a mistake", "objectives/advantages.py", text, "")
    with pytest.raises(
        ValueError, match=f"a mistake: its text stands {times} times in objectives/advantages.py, not once"
    ):
        mistake.plant("whiten(scores) / scores.std()")


LIMITS = """
import json, sys, time
from mutation.children import Children, Limit

def spin():
    while True:
        pass

works = [(lambda: 1 + 1, Limit(5, 5)), (spin, Limit(1, 60)), (lambda: time.sleep(60), Limit(5, 0.5))]
results = dict(Children(3).run(works))
print(json.dumps([results[index] for index in range(3)]))
"""


def test_a_child_that_does_not_end_is_ended() -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run([sys.executable, "-c", LIMITS], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2, {"died": ""}, {"died": ""}]


CLIP = """
class Clip:
    def __init__(self, low, high):
        self.low = low
        self.high = high

    def clip(self, value):
        return min(max(value, self.low), self.high)

    def more(self):
        return self.low + 3

    def unused(self):
        return self.high - self.low
"""
TESTS = """
import pytest
from rlhf_lightning.objectives.clip import Clip

@pytest.fixture(scope="module")
def clip():
    return Clip(1, 3)

def test_more(clip):
    assert clip.more() >= 3

@pytest.mark.parametrize(("value", "clipped"), [(2, 2), (0, 1), (5, 3)])
def test_clip(clip, value, clipped):
    assert clip.clip(value) == clipped
"""


def figures(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A checkout of a package of a few lines, and its tests."""
    for folder in ("rlhf_lightning/objectives", "tests/objectives"):
        (tmp_path / folder).mkdir(parents=True)
    for package in ("rlhf_lightning", "rlhf_lightning/objectives"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "rlhf_lightning/objectives/clip.py").write_text(CLIP)
    (tmp_path / "tests/objectives/test_clip.py").write_text(TESTS)
    return tmp_path


def test_mutants_of_a_few_lines(toy: Path) -> None:
    results = toy / "results.jsonl"
    command = [sys.executable, str(SCRIPTS / "mutation_check.py"), "sampled", "--root", str(toy), "--out", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    # Caught: two of __init__ (a dropped assignment), three of clip (None, min, max), two of more (None, -2). What it
    # adds may be 4, or 2, and nothing calls unused, which has two.
    assert figures(done.stdout)["objectives"] == ["11", "7", "2", "63.6%"], done.stderr
    assert done.returncode == 1
    outcomes = {
        case["name"]: (case["outcome"], case["by"]) for case in map(json.loads, results.read_text().splitlines())
    }
    file = "objectives/clip.py"
    assert outcomes[f"{file}:Clip.more:arithmetic:0"] == ("caught", "tests/objectives/test_clip.py::test_more")
    assert outcomes[f"{file}:Clip.more:constant:1"] == ("survived", "")
    assert outcomes[f"{file}:Clip.unused:arithmetic:0"] == ("unreached", "")


def test_a_sample_is_the_same_for_a_seed_and_takes_each_operator_in_turn(toy: Path) -> None:
    from mutation.cases import sampled_cases

    names = [[case.name for case in sampled_cases(toy, 5, seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    operators = [name.split(":")[2] for name in names[2]]
    assert operators == ["arithmetic", "call", "constant", "return", "statement"]


def test_the_same_mutants_are_found_after_a_change(toy: Path) -> None:
    from mutation.cases import again, sampled_cases

    before = [case.record() for case in sampled_cases(toy, 45, 0)]
    source = toy / "rlhf_lightning/objectives/clip.py"
    kept = CLIP[: CLIP.index("    def unused")]
    source.write_text(kept.replace("return self.low + 3", "low = 7 + self.low\n        return self.low + 3"))
    found = {case.name: case for case in again(toy, before)}
    # The two of unused are gone. The new line has an addition, and a constant with two mutants, before the old ones.
    assert len(before) - len(found) == 2
    moved = found["objectives/clip.py:Clip.more:arithmetic:1"]
    assert moved.what == "self.low + 3 -> self.low - 3"
    assert "objectives/clip.py:Clip.more:constant:2" in found
    assert "return self.low - 3" in ast.unparse(moved.changed())


@pytest.mark.parametrize(("caught", "before", "enough"), [(17, 17, True), (16, 16, False), (17, 18, False)])
def test_a_room_below_85_percent_or_a_fall_by_more_than_a_point_is_not_enough(
    caught: int, before: int, enough: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from mutation.cases import Case
    from rich.console import Console

    def outcome(index: int, caught: int) -> str:
        return "caught" if index < caught else "survived"

    cases = [Case("", "data", "", "", (1, 1), lambda: ast.Module(), outcome(index, caught)) for index in range(20)]
    old = [{"room": "data", "outcome": outcome(index, before)} for index in range(20)]
    script = load_script("mutation_check")
    assert script.report_sampled(Console(width=100), cases, old) is enough
    expected = ["20", str(caught), "0", f"{caught / 20:.1%}", f"{before / 20:.1%}", "0"]
    assert figures(capsys.readouterr().out)["data"] == expected
