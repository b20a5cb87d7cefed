"""`rlhf train resume=...`: which run goes on, with which config, and when it does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs import pipeline
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.run_directory import CONFIG, RunDirectory, point_latest
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.stages.sft import SftSettings

Pipeline = Callable[[RunSettings, RunDirectory], None]
UsePipeline = Callable[[Pipeline], None]


@pytest.fixture
def ran(use_pipeline: UsePipeline) -> list[RunSettings]:
    """The settings that the pipeline was run with, one entry a run."""
    settings: list[RunSettings] = []
    use_pipeline(lambda told, _: settings.append(told))
    return settings


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed: its status says that it is running."""
    directory = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr("rlhf_lightning.runs.run._run_pipeline", lambda *_: None)
        assert main(["train", "paths.run_dir=mine", "kl.coef=0.25", "seed=3"]) == 0
    run = RunDirectory.open(directory / "mine")
    run.update_status(state="running", stage="ppo", pid=99999999, artifacts={"sft": "sft"})
    return run.path


@pytest.fixture
def cut_short(here: Path, killed: Path) -> RunDirectory:
    """That run, in `mine`."""
    shutil.copytree(killed, here / "mine")
    config = here / "mine" / CONFIG
    config.write_text(config.read_text().replace(str(killed), str(here / "mine")))
    point_latest(here / "outputs", here / "mine")
    return RunDirectory.open(here / "mine")


def test_a_run_goes_on_with_its_own_config(
    cut_short: RunDirectory, ran: list[RunSettings], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, started = cut_short.config, cut_short.status.started
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(["train", "resume=../mine"]) == 0
    (settings,) = ran
    assert (settings.seed, settings.kl.kind, settings.paths.run_dir) == (3, "fixed", str(cut_short.path))
    assert cut_short.config == config
    assert cut_short.overrides == ["paths.run_dir=mine", "kl.coef=0.25", "seed=3"]
    status = cut_short.status
    assert (status.state, status.started, status.artifacts) == ("finished", started, {"sft": "sft"})


def test_the_latest_run_by_its_link(cut_short: RunDirectory, ran: list[RunSettings], here: Path) -> None:
    assert main(["train", "resume=outputs/latest"]) == 0
    assert [settings.paths.run_dir for settings in ran] == [str(cut_short.path)]
    assert (here / "outputs" / "latest").resolve() == cut_short.path


def test_what_does_not_decide_the_result_may_be_changed(cut_short: RunDirectory, ran: list[RunSettings]) -> None:
    told = ["rollout.chunk_size=4", "ppo.micro_batch_size=8", "logger=none", "name=again", "callbacks.save_every=2"]
    assert main(["train", "resume=mine", *told]) == 0
    (settings,) = ran
    assert (settings.rollout.chunk_size, settings.ppo.micro_batch_size, settings.logger.kind) == (4, 8, "none")
    assert (settings.seed, settings.name) == (3, "again")
    # The run remembers it: next time it needs not be told again.
    assert cut_short.config["rollout"]["chunk_size"] == 4
    assert cut_short.overrides == ["paths.run_dir=mine", "kl.coef=0.25", "seed=3", *told]


def test_another_config_is_refused_with_every_key_that_differs(
    cut_short: RunDirectory, ran: list[RunSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (cut_short.path / "config.yaml").read_bytes()
    told = ["kl.coef=0.1", "ppo.clip_range=0.3", "rollout.chunk_size=4", "tags=[x]", "trainer.threads=1"]
    assert main(["train", "resume=mine", *told]) == 2
    printed = capsys.readouterr().err
    assert "kl.coef: 0.25 -> 0.1" in printed
    assert "ppo.clip_range: 0.2 -> 0.3" in printed
    assert "trainer.threads: null -> 1" in printed
    assert "chunk_size" not in printed
    assert "tags" not in printed
    assert main(["train", "resume=mine", "kl=none"]) == 2
    assert "kl.kind: 'fixed' -> 'none'" in capsys.readouterr().err
    assert main(["train", "resume=mine", "paths.run_dir=other"]) == 2
    assert "paths.run_dir: is another" in capsys.readouterr().err
    assert main(["train", "resume=mine", "kl.coeff=0.25"]) == 2
    assert "did you mean kl.coef" in capsys.readouterr().err
    assert ran == []
    assert (cut_short.path / "config.yaml").read_bytes() == before
    assert cut_short.status.state == "running"


@pytest.mark.usefixtures("cut_short")
def test_saying_the_same_again_is_no_difference(ran: list[RunSettings]) -> None:
    assert main(["train", "resume=mine", "kl.coef=0.25", "kl=fixed"]) == 0
    assert len(ran) == 1


def test_a_finished_run_is_left_alone(
    cut_short: RunDirectory, ran: list[RunSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short.update_status(state="finished", stage=None)
    before = (cut_short.path / "status.json").read_bytes()
    assert main(["train", "resume=mine"]) == 0
    assert "has finished: there is nothing to resume" in capsys.readouterr().out
    assert ran == []
    assert (cut_short.path / "status.json").read_bytes() == before


def test_what_is_no_run_is_refused(
    here: Path, ran: list[RunSettings], cut_short: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "resume=nowhere"]) == 1
    assert "There is no run to resume here" in capsys.readouterr().err
    (here / "sweep").mkdir()
    (here / "sweep" / "multirun.yaml").touch()
    assert main(["train", "resume=sweep"]) == 1
    assert "rlhf sweep resume DIR" in capsys.readouterr().err
    assert main(["train", "resume=3"]) == 2
    assert main(["train", "-m", "resume=mine", "seed=1,2"]) == 2
    assert "rlhf sweep resume DIR" in capsys.readouterr().err
    config = (cut_short.path / "config.yaml").read_text()
    (cut_short.path / "config.yaml").write_text(config.replace("seed: 3", "sed: 3"))
    assert main(["train", "resume=mine"]) == 1
    assert "does not fit this version of the program: seed, sed" in capsys.readouterr().err
    assert ran == []


def test_auto_starts_a_run_and_then_goes_on_with_it(
    here: Path, ran: list[RunSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "resume=auto", "paths.run_dir=mine", "seed=3"]
    assert main(command) == 0
    run = RunDirectory.open(here / "mine")
    assert run.overrides == ["paths.run_dir=mine", "seed=3"]
    started = run.status.started
    run.update_status(state="running")
    assert main(command) == 0
    assert len(ran) == 2
    assert run.status.started == started
    assert main(command) == 0
    assert "nothing to resume" in capsys.readouterr().out
    run.update_status(state="failed")
    assert main([*command, "kl.coef=0.5"]) == 2
    assert "kl.coef: 0.08 -> 0.5" in capsys.readouterr().err
    assert len(ran) == 2


@pytest.mark.usefixtures("cut_short")
def test_a_job_that_slurm_starts_again_goes_on_by_itself(
    ran: list[RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "paths.run_dir=mine", "kl.coef=0.25", "seed=3"]
    assert main(command) == 1, "the directory is taken"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(command) == 0
    assert len(ran) == 1


def test_slurms_signal_interrupts_the_run_and_puts_the_job_back(
    here: Path, use_pipeline: UsePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = here / "tools"
    tools.mkdir()
    # What SLURM is asked for, and what the run says of itself at that moment: the job ends there.
    (tools / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" > {here}/asked\ncp {here}/mine/status.json {here}/then.json\n'
    )
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    use_pipeline(lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(["train", "paths.run_dir=mine"]) == 130
    assert (here / "asked").read_text() == "requeue 4711\n"
    assert json.loads((here / "then.json").read_text())["state"] == "interrupted"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "47")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    assert main(["train", "resume=mine"]) == 130
    assert (here / "asked").read_text() == "requeue 47_11\n"
    (here / "asked").unlink()
    use_pipeline(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train", "resume=mine"]) == 130
    assert not (here / "asked").exists(), "whoever sends SIGTERM does not want the job back"


def test_without_slurm_its_signal_only_interrupts(here: Path, use_pipeline: UsePipeline) -> None:
    use_pipeline(lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    assert main(["train", "paths.run_dir=mine"]) == 130
    assert RunDirectory.open(here / "mine").status.state == "interrupted"


def test_what_has_changed_since_the_start_is_said(
    cut_short: RunDirectory, ran: list[RunSettings], caplog: pytest.LogCaptureFixture
) -> None:
    path = cut_short.path / "provenance.json"
    origin = json.loads(path.read_text())
    origin["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(origin))
    assert main(["train", "resume=mine"]) == 0
    assert f"torch 1.0 -> {torch.__version__}" in caplog.text
    again = json.loads(path.read_text())
    assert again["packages"]["torch"] == "1.0"
    assert [entry["packages"]["torch"] for entry in again["resumed"]] == [torch.__version__]
    assert len(ran) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        None,
    ],
    ids=["gpu", "python", "cpu"],
)
def test_out_of_memory_names_the_keys_that_need_less(
    here: Path, error: BaseException | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(_: object) -> None:
        if error is None:
            torch.empty(1 << 50)  # a petabyte; torch's own words
        else:
            raise error

    monkeypatch.setattr(STAGES["sft"], "run", greedy)
    assert main(["train", "pipeline=sft", "logger=none", "paths.run_dir=mine"]) == 1
    printed = capsys.readouterr().err
    assert "Stage sft ran out of memory" in printed
    assert "sft.micro_batch_size" in printed
    assert "Traceback" not in printed
    assert "defect" not in printed
    status = RunDirectory.open(here / "mine").status
    assert (status.state, status.stage) == ("failed", "sft")

    sizes: list[int] = []

    def content(context: pipeline.StageContext) -> pipeline.StageResult:
        sizes.append(context.section(SftSettings).micro_batch_size)
        return pipeline.StageResult({"loss": 1.0}, objective=-1.0)

    monkeypatch.setattr(STAGES["sft"], "run", content)
    assert main(["train", "resume=mine", "sft.micro_batch_size=2"]) == 0
    assert sizes == [2]


def test_any_other_error_of_torch_is_itself(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(STAGES["sft"], "run", broken)
    assert main(["train", "pipeline=sft", "logger=none", "paths.run_dir=mine"]) == 1
    error = RunDirectory.open(here / "mine").status.error
    assert error is not None
    assert error.what == "RuntimeError: sizes do not match"
