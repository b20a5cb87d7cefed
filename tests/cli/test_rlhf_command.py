"""The `rlhf` command: finding subcommands, and answering fast because nothing heavy is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning import __version__
from rlhf_lightning.cli.main import SUBCOMMANDS, main
from rlhf_lightning.experiment.config.compose import conf_directory
from rlhf_lightning.experiment.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]

HEAVY = ("torch", "transformers", "pytorch_lightning", "wandb", "datasets", "peft", "matplotlib")

EACH_IN_A_CHILD = """
import contextlib, io, json, os, sys, time
from rlhf_lightning.cli.main import main
for commands in json.loads(sys.argv[1]):
    if os.fork() == 0:
        codes, said = [], io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for command in commands:
                try:
                    codes.append(main(command))
                except SystemExit as ended:
                    codes.append(ended.code)
        answer = {"codes": codes, "said": said.getvalue(), "modules": list(sys.modules), "seconds": time.process_time()}
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.wait()
"""
"""A new interpreter, from which each group of commands is forked: what one imports is not there for the next."""


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


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A sweep of one job that finished, and that job."""
    sweep = tmp_path_factory.mktemp("sweep")
    job = RunDirectory.create(sweep / "0", {"seed": 1, "pipeline": {"stages": ["ppo"]}}, ["seed=1"])
    job.write_metrics({"objective": 1.0})
    (job.path / "history.csv").write_text("stage,step,episodes,name,value\nppo,1,8,objective/kl,2.0\n")
    (job.path / "config.yaml").write_text(yaml.safe_dump(job.config))
    job.update_status(state="finished")
    (sweep / "sweep.json").write_text("{}")
    return {"SWEEP": str(sweep), "RUN": str(job.path)}


Case = tuple[list[list[str]], list[int], list[str], tuple[str, ...]]

LIGHT: dict[str, Case] = {
    "overview": ([["--help"]], [0], ["usage: rlhf COMMAND"], ("hydra", "numpy")),
    "train": (
        [["train", "--help"], ["train", "kl.coeff=1", "seed=x"]],
        [0, 2],
        ["groups (the default is marked *)", "2 problems"],
        ("numpy",),
    ),
    "sweep": ([["sweep", "status", "SWEEP"]], [0], ["1 jobs: 1 finished"], ("hydra",)),
    "score": ([["score", "--help"]], [0], ["--positive-label"], ("numpy",)),
    "doctor": ([["doctor", "RUN"]], [0], ["healthy (finished, 1 PPO iterations)"], ("numpy",)),
    "compare": ([["compare", "SWEEP"]], [0], ["1 run in 1 group"], ("hydra", "omegaconf", "numpy")),
    "export": ([["export", "--help"]], [0], ["--merge"], ("numpy",)),
    "rerun": ([["rerun", "--help"]], [0], ["exit code: 0 the same figures"], ("numpy",)),
    "constitution": (
        [["constitution", "list"], ["constitution", "show", "hhh"], ["constitution", "show", "hhhh"]],
        [0, 0, 2],
        ["Harmless, helpful and honest", "hhh, version 1", "did you mean hhh?"],
        ("numpy",),
    ),
}
"""Commands, their exit codes, what they say, and what they do without beside `HEAVY`."""


@pytest.fixture(scope="module")
def answers(places: dict[str, str]) -> dict[str, dict[str, Any]]:
    asked = [[[places.get(word, word) for word in command] for command in case[0]] for case in LIGHT.values()]
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_A_CHILD, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(LIGHT, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", LIGHT)
def test_light_commands_import_nothing_heavy_and_answer_fast(answers: dict[str, dict[str, Any]], name: str) -> None:
    _, codes, expected, also_absent = LIGHT[name]
    answer = answers[name]
    assert answer["codes"] == codes, answer["said"]
    for words in expected:
        assert words in answer["said"]
    assert not {*HEAVY, *also_absent} & set(answer["modules"])
    assert answer["seconds"] < 8.0  # of the processor; under one on an idle machine


def test_the_configs_are_found_beside_the_package_and_inside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "rlhf_lightning"
    monkeypatch.setattr("rlhf_lightning.experiment.config.compose.PACKAGE", package)
    assert conf_directory() == tmp_path / "conf"  # a source tree
    (package / "conf").mkdir(parents=True)
    assert conf_directory() == package / "conf"  # a wheel
