"""The `rlhf` command: finding subcommands, and answering fast because nothing heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_lightning import __version__
from rlhf_lightning.cli.main import SUBCOMMANDS, main
from rlhf_lightning.experiment.config.compose import conf_directory

ROOT = Path(__file__).resolve().parents[2]

REPORT_IMPORTS = """
import sys
from rlhf_lightning.cli.main import main
heavy = {"torch", "transformers", "pytorch_lightning", "wandb", "datasets", "peft", "numpy", "matplotlib"}
try:
    sys.exit(main(sys.argv[1:]))
finally:
    print("heavy:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_help_lists_the_commands_and_hides_the_internal_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "train" in text
    assert "score" in text
    assert "run-job" not in text
    assert main([]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlhf_lightning {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("trian", "did you mean rlhf train?"),
        ("kl=none", "did you mean rlhf train kl=none?"),
        ("xyz", "there are: train"),
    ],
)
def test_unknown_command_is_answered_with_a_hint(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    assert hint in capsys.readouterr().err


def test_every_subcommand_can_be_loaded() -> None:
    for subcommand in SUBCOMMANDS.values():
        assert callable(subcommand.load())


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--help"], 0, "usage: rlhf COMMAND"),
        (["train", "--help"], 0, "groups (the default is marked *)"),
        (["train", "kl.coeff=1", "seed=x"], 2, "2 problems"),
        (["score", "--help"], 0, "--positive-label"),
        (["export", "--help"], 0, "--merge"),
        (["rerun", "--help"], 0, "exit code: 0 the same figures"),
    ],
)
def test_light_commands_import_nothing_heavy_and_answer_fast(arguments: list[str], code: int, expected: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REPORT_IMPORTS, *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    assert done.returncode == code, done.stderr
    assert expected in done.stdout + done.stderr
    assert "heavy: []" in done.stderr
    assert seconds < 20.0  # under a second on an idle machine; generous, since tests may share it


def test_the_configs_are_found_beside_the_package_and_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "rlhf_lightning"
    monkeypatch.setattr("rlhf_lightning.experiment.config.compose.PACKAGE", package)
    assert conf_directory() == tmp_path / "conf"  # a source tree
    (package / "conf").mkdir(parents=True)
    assert conf_directory() == package / "conf"  # a wheel
