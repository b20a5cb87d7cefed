"""A stage's key follows the code that makes it: the rooms that compute, and its own file."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.runs.code_identity import NAME, PACKAGE, ROOMS, code_of, hash_of_module
from rlhf_lightning.stages.declaration import STAGES

Edit = Callable[[str, Callable[[str], str]], set[str]]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package."""
    place = tmp_path_factory.mktemp("copied") / PACKAGE.name
    return shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__", "assets"))


@pytest.fixture(scope="module")
def edited(copied: Path) -> Edit:
    """Edits a file in a copy of the package; gives the stages whose code is then another."""
    before = {name: code_of(stage, copied) for name, stage in STAGES.items()}

    def edit(name: str, change: Callable[[str], str]) -> set[str]:
        path = copied / name
        text = path.read_text(encoding="utf-8")
        path.write_text(change(text), encoding="utf-8")
        after = {name: code_of(stage, copied) for name, stage in STAGES.items()}
        path.write_text(text, encoding="utf-8")
        return {stage for stage in STAGES if before[stage] != after[stage]}

    return edit


def one_line_more(text: str) -> str:
    return f"{text}\nONE_LINE_MORE = 1\n"


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("stages/sft.py", {"sft"}),
        ("stages/comparisons.py", {"comparisons"}),
        ("stages/context.py", set(STAGES)),
        ("algorithms/ppo.py", set(STAGES)),
        ("worlds/courtesy/gold.py", set(STAGES)),
        ("batches.py", set(STAGES)),
        ("tracking/wandb_run.py", set()),
        ("cli/train.py", set()),
        ("errors.py", set()),
    ],
)
def test_code_counts_where_it_may_decide(edited: Edit, name: str, stages: set[str]) -> None:
    assert edited(name, one_line_more) == stages


def test_rooms_are_there() -> None:
    assert all(any((PACKAGE / room).rglob("*.py")) for room in ROOMS)


def reformatted(text: str) -> str:
    """The same code with another comment, other docstrings and other line breaks."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Expr(ast.Constant("Said otherwise."))
    return f"# A comment.\n\n\n{ast.unparse(tree)}\n"


def test_comments_docstrings_and_formatting_do_not_count(edited: Edit) -> None:
    assert edited("algorithms/ppo.py", reformatted) == set()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("temperature", "temperatur"),
        lambda text: f'{text}\ndef said() -> None:\n    """Said."""\n',
        lambda text: f"{text}\nONE = {{1, 2}} == {{1, 3}}\n",
    ],
    ids=["a name", "a function that only a docstring fills", "a constant"],
)
def test_what_the_compiler_sees_counts(edited: Edit, change: Callable[[str], str]) -> None:
    assert edited("algorithms/ppo.py", change) == set(STAGES)


def test_the_hash_is_the_same_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(word):\n    return word in {'a', 'b', 'c'}, ('x', 1.5)\n")
    program = "from rlhf_lightning.runs.code_identity import hash_of_module; print(hash_of_module('mine'))"
    path = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_each_stage_has_a_file_of_its_own() -> None:
    files = [type(stage).__module__ for stage in STAGES.values()]
    assert files == [f"{NAME}.stages.{name}" for name in STAGES]


def test_of_a_package_every_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine").mkdir()
    for name in ("__init__", "stage", "helper"):
        (tmp_path / "of_mine" / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = hash_of_module("of_mine.stage")
    (tmp_path / "of_mine" / "helper.py").write_text("NAME = 'another'\n")
    assert hash_of_module("of_mine.stage") != before


def test_a_module_that_is_not_there_counts_by_its_name() -> None:
    assert hash_of_module("no_such_module") == "no_such_module"
