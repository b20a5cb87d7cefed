"""The `rlhf` command: finding subcommands, and answering fast because nothing heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning import __version__
from rlhf_lightning.cli.main import SUBCOMMANDS, main
from rlhf_lightning.runs.compose import conf_directory
from rlhf_lightning.stages.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {"torch", "transformers", "pytorch_lightning", "wandb", "datasets", "peft", "numpy", "scipy", "matplotlib"}

ANSWER = """
import contextlib, io, json, sys, time
from rlhf_lightning.cli.main import main
answers, said = [], io.StringIO()
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(command)
        except SystemExit as ended:
            code = ended.code
    answers.append((code, said.getvalue(), list(sys.modules)))
    said.seek(said.truncate(0))
print(json.dumps([answers, time.process_time()]))
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


def answers(*commands: list[str]) -> list[tuple[int, str, list[str]]]:
    """What a new interpreter says to some commands, one after the other: exit code, text, modules after it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-c", ANSWER, json.dumps(commands)]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    said, seconds = json.loads(done.stdout)
    assert seconds < 20.0  # of the processor; about one on an idle machine
    return [(code, text, modules) for code, text, modules in said]


def test_what_reads_runs_imports_nothing_heavy_and_no_hydra(tmp_path: Path) -> None:
    job = RunDirectory.create(tmp_path / "0", {"seed": 1, "pipeline": {"stages": ["ppo"]}}, ["seed=1"])
    job.write_metrics({"objective": 1.0})
    job.write_text("history.csv", "stage,step,episodes,name,value\nppo,1,8,objective/kl,2.0\n")
    job.update_status(state="finished")
    (tmp_path / "sweep.json").write_text("{}")
    expected = {
        ("--help",): "usage: rlhf COMMAND",
        ("sweep", "status", str(tmp_path)): "1 jobs: 1 finished",
        ("doctor", str(job.path)): "healthy (finished, 1 PPO iterations)",
        ("compare", str(tmp_path)): "1 run in 1 group",
    }
    for (command, words), (code, text, modules) in zip(expected.items(), answers(*map(list, expected)), strict=True):
        assert code == 0, text
        assert words in text
        assert not {*HEAVY, "hydra", "omegaconf"} & set(modules), command


def test_what_reads_configs_imports_nothing_heavy() -> None:
    expected = {
        ("score", "--help"): (0, "--positive-label"),
        ("export", "--help"): (0, "--merge"),
        ("rerun", "--help"): (0, "exit code: 0 the same figures"),
        ("constitution", "list"): (0, "Harmless, helpful and honest"),
        ("constitution", "show", "hhh"): (0, "hhh, version 1"),
        ("constitution", "show", "hhhh"): (2, "did you mean hhh?"),
        ("train", "--help"): (0, "groups (the default is marked *)"),
        ("train", "kl.coeff=1", "seed=x"): (2, "2 problems"),
    }
    said = answers(*map(list, expected))
    for (command, (exit_code, words)), (code, text, modules) in zip(expected.items(), said, strict=True):
        assert code == exit_code, text
        assert words in text
        assert not HEAVY & set(modules), command


def test_the_configs_are_found_beside_the_package_and_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "rlhf_lightning"
    monkeypatch.setattr("rlhf_lightning.runs.compose.PACKAGE", package)
    assert conf_directory() == tmp_path / "conf"  # a source tree
    (package / "conf").mkdir(parents=True)
    assert conf_directory() == package / "conf"  # a wheel
