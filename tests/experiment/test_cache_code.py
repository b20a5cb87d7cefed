"""A stage's key follows the code that makes it, and no other."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.experiment.cache.code import (
    DECIDES_NOTHING,
    NAME,
    PACKAGE,
    code_hash,
    modules_below,
)
from rlhf_lightning.experiment.cache.code import (
    MODULES as PLACE,
)
from rlhf_lightning.settings.run import RunSettings
from rlhf_lightning.settings.stages import STAGES

S, C, R, P, E = "sft", "comparisons", "reward_model", "ppo", "evaluate"
K, V, J, F = "critique_revision", "revision_sft", "judge_calibration", "ai_feedback"

MODULES = {name: f"{PLACE}.{stage.module}" for name, stage in STAGES.items()}

Edit = Callable[[str, Callable[[str], str]], set[str]]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package."""
    place = tmp_path_factory.mktemp("copied") / PACKAGE.name
    return shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__", "assets"))


@pytest.fixture(scope="module")
def edited(copied: Path) -> Edit:
    """Edits a file in a copy of the package; gives the stages whose code is then another."""
    before = {stage: code_hash(stage, copied) for stage in STAGES}

    def edit(name: str, change: Callable[[str], str]) -> set[str]:
        path = copied / name
        text = path.read_text(encoding="utf-8")
        path.write_text(change(text), encoding="utf-8")
        after = {stage: code_hash(stage, copied) for stage in STAGES}
        path.write_text(text, encoding="utf-8")
        return {stage for stage in STAGES if before[stage] != after[stage]}

    return edit


@pytest.fixture(scope="module")
def followed() -> dict[str, set[str]]:
    """The modules that a stage's key follows."""
    return {stage: modules_below(module) for stage, module in MODULES.items()}


def one_line_more(text: str) -> str:
    return f"{text}\nONE_LINE_MORE = 1\n"


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("algorithms/sft.py", {S, V}),
        ("algorithms/reward_model.py", {R}),
        ("algorithms/ppo.py", {P}),
        ("objectives/ppo.py", {P}),
        ("objectives/preference.py", {R}),
        ("rollouts/sampler.py", {K, C, J, F, P, E}),
        ("worlds/courtesy/gold.py", set(STAGES)),
        ("worlds/courtesy/__init__.py", set(STAGES)),
        ("experiment/training.py", {S, V, R, P}),
        ("experiment/stages/sft.py", {S, V}),
        ("experiment/stages/comparisons.py", {C}),
        ("experiment/stages/judge_calibration.py", {J}),
        ("experiment/prompt_pool.py", {K, F}),
        ("data/demonstrations.py", {S, K, V}),
        ("constitutions/rendering.py", {K, J, F, E}),
        ("feedback/critique_revision.py", {K}),
        ("feedback/speaker.py", {K, J, F, E}),
        ("feedback/labelling.py", {J, F, E}),
        ("feedback/local_judge.py", {J, F, E}),
        ("feedback/openai_judge.py", {J, F, E}),
        ("worlds/courtesy/recorded.py", {J}),
        ("evaluation/judge_calibration.py", {J}),
        ("evaluation/judge_report.py", {J}),
        ("evaluation/gold.py", {E}),
        ("evaluation/statistics.py", {J, R, E}),
        ("callbacks/kl_budget.py", {P}),
        ("tracking/wandb_run.py", set()),
        ("cli/train.py", set()),
        ("evaluation/summary.py", set()),
        ("evaluation/plots/style.py", set()),
        ("experiment/pipeline.py", set()),
        ("experiment/run_directory.py", set()),
        ("experiment/memory/static.py", set()),
        ("experiment/config/preflight.py", set()),
        ("diagnosis/doctor.py", set()),
        ("errors.py", set()),
    ],
)
def test_code_counts_where_it_is_used(followed: dict[str, set[str]], name: str, stages: set[str]) -> None:
    assert (PACKAGE / name).is_file()
    module = f"{NAME}.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
    assert {stage for stage in STAGES if module in followed[stage]} == stages


@pytest.mark.parametrize(
    ("name", "stages"), [("experiment/training.py", {S, V, R, P}), ("experiment/pipeline.py", set())]
)
def test_a_line_more_counts_in_the_stages_that_the_code_is_followed_from(
    edited: Edit, name: str, stages: set[str]
) -> None:
    assert edited(name, one_line_more) == stages


def reformatted(text: str) -> str:
    """The same code with another comment, other docstrings and other line breaks."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Expr(ast.Constant("Said otherwise."))
    return f"# A comment.\n\n\n{ast.unparse(tree)}\n"


def test_comments_docstrings_and_formatting_do_not_count(
    edited: Edit,
) -> None:
    assert edited("algorithms/ppo.py", reformatted) == set()


def test_a_function_that_only_a_docstring_filled_is_still_a_function(
    edited: Edit,
) -> None:
    assert edited("algorithms/ppo.py", lambda text: f'{text}\ndef said() -> None:\n    """Said."""\n') == {P}


def test_an_import_within_a_function_is_followed(edited: Edit) -> None:
    source = (PACKAGE / "data" / "sources.py").read_text(encoding="utf-8")
    assert "    from rlhf_lightning.data.hub import" in source, "the case that is tested"
    assert edited("data/hub.py", one_line_more) == set(STAGES)


def test_what_counts_for_nothing_is_there() -> None:
    gone = [
        name
        for name in DECIDES_NOTHING
        if not (PACKAGE / name.replace(".", "/")).is_dir() and not (PACKAGE / f"{name.replace('.', '/')}.py").is_file()
    ]
    assert gone == []


def test_packages_whose_code_is_not_followed_hold_no_code(followed: dict[str, set[str]]) -> None:
    """Importing `a.b` runs `a/__init__.py` too; only what is imported by name is followed."""
    counted = set().union(*followed.values())
    packages = {parent for name in counted for parent in parents(name)} - counted - {PLACE, NAME}
    for name in packages:
        file = PACKAGE.joinpath(*name.split(".")[1:]) / "__init__.py"
        body = ast.parse(file.read_text(encoding="utf-8")).body
        harmless = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
        assert all(isinstance(statement, harmless) for statement in body), name


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def test_imports_in_the_package_are_written_in_full() -> None:
    """A relative import would not be followed."""
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*from\s*\.", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_a_stage_does_not_depend_on_another(followed: dict[str, set[str]]) -> None:
    for stage, module in MODULES.items():
        assert not (set(MODULES.values()) - {module}) & followed[stage], stage
        assert f"{NAME}.algorithms.ppo" not in followed[stage] or stage == P


def test_what_is_declared_is_there() -> None:
    """Each stage has a section of the schema that it declares, and a module that runs it."""
    for name, stage in STAGES.items():
        assert RunSettings.model_fields[name].annotation is stage.settings
        assert (PACKAGE.parent / f"{MODULES[name].replace('.', '/')}.py").is_file(), name
