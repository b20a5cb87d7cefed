"""The script that plants mistakes in copies of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from load_script import load_script

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "mutation_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("mutation_check")


def test_every_mutation_fits_the_package_as_it_is(script: ModuleType, tmp_path: Path) -> None:
    script.make_copy(tmp_path)
    for name, mutation in script.MUTATIONS.items():
        path = tmp_path / "rlhf_lightning" / mutation.file
        before = path.read_text(encoding="utf-8")
        mutation.plant(tmp_path / "rlhf_lightning")
        after = path.read_text(encoding="utf-8")
        assert after != before, name
        compile(after, str(path), "exec")
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize("text", ["nowhere to be found", "scores"])
def test_a_mutation_whose_text_does_not_stand_there_once_is_an_error(
    text: str, script: ModuleType, tmp_path: Path
) -> None:
    script.make_copy(tmp_path)
    mutation = script.Mutation("a mistake", "objectives/rewards.py", text, "")
    with pytest.raises(ValueError, match=r"a mistake: its text stands \d+ times in objectives/rewards.py"):
        mutation.plant(tmp_path / "rlhf_lightning")


def test_a_copy_that_is_not_imported_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not the copy"):
        script.require_import_from(tmp_path, {"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_a_mutation_is_caught_and_the_package_passes() -> None:
    command = [sys.executable, str(SCRIPT), "--only", "mean_of_means"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout
    assert "1 of 1 mutations caught; without one the suite passes." in done.stdout
