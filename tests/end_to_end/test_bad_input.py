"""What a user can get wrong, met through the command line: one clear error, a readable status, and nothing lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny_runs import fingerprints, write_jsonl

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs import pipeline
from rlhf_lightning.stages.run_directory import RunDirectory

QUICK = ("debug=tiny", "logger=none")

ONE_STAGE = (*QUICK, "pipeline=sft", "data.demonstrations=64")


@dataclass(frozen=True)
class Told:
    """What the command line answered."""

    code: int
    error: str


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rlhf(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Types `rlhf train ...`."""

    def type_in(*overrides: str) -> Told:
        capsys.readouterr()
        code = main(["train", *overrides])
        return Told(code, capsys.readouterr().err)

    return type_in


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"w{3 + number % 40} w{3 + number // 40}", "chosen": "w10 w11", "rejected": "w20 w21"}


@pytest.fixture
def users_files(here: Path, tiny: RunDirectory, tiny_gpt2: Path) -> Path:
    """What a user has: records, good and bad, and models. All in `mine/`."""
    mine = here / "mine"
    mine.mkdir()
    good = [pair(number) for number in range(60)]
    write_jsonl(mine / "good.jsonl", good)
    write_jsonl(mine / "long.jsonl", [{**row, "prompt": "w7 " * 100 + row["prompt"]} for row in good])
    write_jsonl(mine / "no_response.jsonl", [*good[:3], {"prompt": "w3", "chosen": "w4"}, *good[3:]])
    (mine / "half.jsonl").write_text((mine / "good.jsonl").read_text()[:-20])
    for name, source in (("gpt2", tiny_gpt2), ("sft", tiny.path / "sft"), ("reward_model", tiny.path / "reward_model")):
        (mine / name).symlink_to(source)
    (mine / "all_train").mkdir()
    write_jsonl(mine / "all_train" / "train.jsonl", good)
    write_jsonl(mine / "all_train" / "held_out.jsonl", [])
    return mine


# What can be known before anything is loaded.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["kl.coeff=0.1", "ppo.iterations=many", "ppo.clip_range=-0.2", "data=hh_rlhf", "model=scratch"],
            [
                *("kl.coeff: there is no such key  [kl.coeff=0.1]", "did you mean kl.coef?"),
                "ppo.iterations: expects a whole number >= 1, got 'many'",
                "ppo.clip_range: expects a number > 0, got -0.2",
                *("data.path: needs a value", "add data.path=..."),
            ],
        ),
        (
            ["kll=none", "ppo.minibatches=5", "data=hh_rlhf", "model=scratch", "data.path=nowhere.jsonl"],
            [
                *("kll: ", "did you mean kl=none?"),
                *("ppo.minibatches: 5 minibatches do not divide", "choose a divisor"),
                *("data.path: nowhere.jsonl does not exist", "name an existing path"),
            ],
        ),
        (
            ["kl=nonne", "pipeline=ppo", "ppo.policy_from=./gone/sft"],
            [
                *("kl: has no option 'nonne'", "did you mean kl=none?"),
                "ppo.policy_from: ./gone/sft does not exist",
                "ppo.reward_from: stage 'reward_model' does not run before 'ppo'",
                "give a path to an artifact",
            ],
        ),
    ],
    ids=["values", "files", "options"],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_made(
    rlhf: Callable[..., Told], here: Path, overrides: list[str], expected: list[str]
) -> None:
    told = rlhf(*overrides)
    assert told.code == 2
    assert "nothing was loaded or started" in told.error
    for words in expected:
        assert words in told.error
    assert "Traceback" not in told.error
    assert list(here.iterdir()) == []


# What comes to light when the data or a model is opened.

GPT2 = ("data=files", "model=hub", "model.name_or_path=mine/gpt2", "data.held_out_fraction=0.25")
BACKBONE = ("pipeline=reward_model", "pipeline.stages=[reward_model]", "reward_model.backbone_from=mine/sft")
EVALUATION = ("pipeline=evaluate", "evaluate.policies=[mine/sft]", "evaluate.reference_from=mine/sft")
PPO = ("pipeline=ppo", "ppo.policy_from=mine/sft", "ppo.reward_from=mine/reward_model")


@pytest.mark.parametrize(
    ("overrides", "stage", "what", "where", "fix"),
    [
        (
            [*GPT2, "data.preferences=mine/no_response.jsonl"],
            "sft",
            "'rejected' must be given",
            "mine/no_response.jsonl:4, field 'rejected'",
            "data.on_bad_record=skip",
        ),
        ([*GPT2, "data.preferences=mine/half.jsonl"], "sft", "not JSON", "mine/half.jsonl:60", "one complete JSON"),
        (
            [*GPT2, "data.preferences=mine/long.jsonl"],
            "sft",
            "and the model reads 64",
            "data.max_prompt_length",
            "at most 64",
        ),
        (
            [*PPO, "ppo.reward_from=mine/sft"],
            "ppo",
            "not a reward model: its architecture is LlamaForCausalLM",
            "mine/sft",
            "name a sequence classifier",
        ),
        (
            [*PPO, "ppo.reward_from=mine"],
            "ppo",
            "config.json cannot be read",
            "mine/config.json",
            "save_pretrained",
        ),
        (
            [*EVALUATION, "evaluate.reward_from=null", "evaluate.splits=[test]"],
            "evaluate",
            "no split 'test'",
            "evaluate.splits",
            "iid, ood",
        ),
        (
            [*EVALUATION, "evaluate.reward_from=null", "data.max_prompt_length=3", "data.on_long_record=drop"],
            "evaluate",
            "over-long and were dropped",
            "data.on_long_record=drop",
            "raise data.max_prompt_length",
        ),
        (
            [*BACKBONE, "reward_model.comparisons_from=mine/all_train"],
            "reward_model",
            "none is held out",
            "reward_model.comparisons_from=mine/all_train",
            "hold more out",
        ),
        (
            ["pipeline=sft", "data.demonstrations=64", "sft.learning_rate=1e30"],
            "sft",
            "Training diverged: at optimizer step 1",
            "sft.learning_rate",
            "lower sft.learning_rate",
        ),
    ],
)
def test_what_cannot_be_used_ends_the_run_with_one_clear_error(
    rlhf: Callable[..., Told],
    here: Path,
    users_files: Path,
    overrides: list[str],
    stage: str,
    what: str,
    where: str,
    fix: str,
) -> None:
    before = fingerprints(users_files)
    told = rlhf(*QUICK, *overrides)
    assert told.code == 1
    for words in (what, where, fix):
        assert words in told.error
    assert "Traceback" not in told.error
    assert "defect" not in told.error

    run = RunDirectory.open((here / "outputs" / "latest").resolve())
    status = run.status
    assert (status.state, status.stage, status.artifacts) == ("failed", stage, {})
    assert status.error is not None
    assert what in status.error.what
    assert where in (status.error.where or "")
    assert fix in (status.error.fix or "")
    assert status.error.traceback_file == str(run.path / "error.log")
    assert "Traceback" in (run.path / "error.log").read_text()
    assert fingerprints(users_files) == before


def test_stages_that_finished_before_the_error_keep_what_they_made(
    rlhf: Callable[..., Told], here: Path, tiny: RunDirectory
) -> None:
    stages = ["pipeline.stages=[sft,evaluate]", "evaluate.policies=[sft]", f"evaluate.reward_from={tiny.path}/sft"]
    assert rlhf(*QUICK, "data.demonstrations=64", *stages).code == 1
    run = RunDirectory.open((here / "outputs" / "latest").resolve())
    assert (run.status.state, run.status.stage, run.status.artifacts) == ("failed", "evaluate", {"sft": "sft"})
    assert (run.path / "sft" / "model.safetensors").exists()
    assert run.metrics is not None
    assert list(run.metrics["stages"]) == ["sft"]


# Where a run is written.


def test_a_directory_that_holds_a_run_is_not_used_again(
    rlhf: Callable[..., Told], tiny: RunDirectory, world: Path
) -> None:
    before = fingerprints(world)
    told = rlhf(*ONE_STAGE, f"paths.run_dir={tiny.path}")
    assert told.code == 1
    for words in ("holds a run already", str(tiny.path), "paths.run_dir="):
        assert words in told.error
    assert fingerprints(world) == before


def test_other_files_in_a_run_directory_are_left_alone(rlhf: Callable[..., Told], here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("my notes")
    told = rlhf(*ONE_STAGE, "paths.run_dir=mine")
    assert told.code == 0, told.error
    assert (here / "mine" / "notes.txt").read_text() == "my notes"
    assert RunDirectory.open(here / "mine").status.state == "finished"


def test_a_file_in_the_way_is_left_alone(rlhf: Callable[..., Told], here: Path) -> None:
    (here / "outputs").write_text("not a directory")
    told = rlhf(*ONE_STAGE)
    assert told.code == 1
    for words in ("a file is in the way", str(here / "outputs"), "paths.outputs="):
        assert words in told.error
    assert (here / "outputs").read_text() == "not a directory"


def test_a_place_without_permission_is_refused(
    rlhf: Callable[..., Told], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and allowed(path, mode))  # not even root
    told = rlhf(*ONE_STAGE)
    assert told.code == 1
    for words in ("cannot be written", str(here), "you may write to"):
        assert words in told.error
    assert list(here.iterdir()) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond so many bytes: the system's own refusal, as of a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_weights_is_no_defect(rlhf: Callable[..., Told], here: Path) -> None:
    with largest_file(500_000):
        told = rlhf(*ONE_STAGE)
    assert told.code == 1
    for words in ("The run directory cannot be written: File too large", "free space"):
        assert words in told.error
    assert "defect" not in told.error
    status = RunDirectory.open((here / "outputs" / "latest").resolve()).status
    assert (status.state, status.stage, status.artifacts) == ("failed", "sft", {})
    assert status.error is not None
    assert "cannot be written" in status.error.what


@pytest.mark.parametrize("size", [0, 300], ids=["not even a status", "a status and no config"])
def test_a_directory_that_could_not_be_claimed_is_free_again(rlhf: Callable[..., Told], here: Path, size: int) -> None:
    with largest_file(size):
        told = rlhf(*ONE_STAGE, "paths.run_dir=mine")
    assert told.code == 1
    assert told.error.count("cannot be written") == 1
    assert "Error executing job" not in told.error, "the error is told once, in our words"
    assert list((here / "mine").iterdir()) == []


def test_of_two_runs_in_one_directory_the_second_is_refused_and_the_first_goes_on(
    rlhf: Callable[..., Told], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage = pipeline._run_stage
    second: list[subprocess.CompletedProcess[str]] = []

    def run_stage_while_another_starts(*arguments: Any) -> Any:
        second.append(forked.run(["train", *ONE_STAGE, "seed=2", "paths.run_dir=mine"]))
        return run_stage(*arguments)

    monkeypatch.setattr(pipeline, "_run_stage", run_stage_while_another_starts)
    assert rlhf(*ONE_STAGE, "seed=1", "paths.run_dir=mine").code == 0
    assert second[0].returncode == 1
    assert "holds a run already" in second[0].stderr
    assert "Traceback" not in second[0].stderr
    run = RunDirectory.open(here / "mine")
    assert (run.status.state, run.status.pid) == ("finished", os.getpid())
    assert run.config["seed"] == 1
    assert json.loads((run.path / "provenance.json").read_text())["overrides"] == run.overrides
