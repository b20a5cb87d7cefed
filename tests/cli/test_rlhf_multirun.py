"""`rlhf train -m`: every job in a process and a directory of its own, and a sweep that survives a failing job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep import job as sweep_job

ChildEnvironment = Callable[[str], dict[str, str]]


def sweep_directory(here: Path) -> Path:
    return (here / "outputs" / "latest").resolve()


def jobs(here: Path) -> list[RunDirectory]:
    return [RunDirectory.open(path) for path in sorted(sweep_directory(here).glob("[0-9]*"))]


def test_a_sweep_goes_on_after_a_failing_job(here: Path, child_environment: ChildEnvironment) -> None:
    environment = child_environment(
        """
        if settings.seed == 1:
            raise ZeroDivisionError("boom")
        run_dir.write_metrics({"objective": settings.kl.coef})
        """
    )
    command = [sys.executable, "-m", "rlhf_lightning", "train", "-m", "seed=1,2", "kl.coef=0.5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    failed, finished = jobs(here)
    assert sweep_directory(here).parent.parent == here / "outputs" / "multirun"
    assert (failed.status.state, finished.status.state) == ("failed", "finished")
    assert "boom" in (failed.path / "error.log").read_text()
    assert finished.overrides == ["seed=2", "kl.coef=0.5"]
    assert finished.metrics == {"objective": 0.5}
    assert failed.status.pid != finished.status.pid
    assert finished.config["paths"]["run_dir"] == str(finished.path)
    table = done.stdout
    assert "all jobs: kl.coef=0.5" in table
    assert "seed=2" in table
    assert "0.500" in table
    assert "failed" in table
    assert "Error executing job" not in done.stderr


def test_ctrl_c_reaches_the_job_and_stops_the_sweep(here: Path, child_environment: ChildEnvironment) -> None:
    environment = child_environment(
        """
        import time
        run_dir.write_text("ready", "")
        try:
            time.sleep(60)
        finally:
            run_dir.write_text("saved", "")
        """
    )
    command = [sys.executable, "-m", "rlhf_lightning", "train", "-m", "seed=1,2"]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(here.glob("outputs/multirun/*/*/0/ready")):
        assert time.monotonic() < deadline, process.stderr
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and job alike
    assert process.wait(timeout=30) == 130
    job, next_one = jobs(here)
    assert job.status.state == "interrupted"
    assert (job.path / "saved").exists()
    assert next_one.status.state == "pending"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Jobs in place of processes: each only notes its directory and finishes with its seed for an objective."""
    directories: list[Path] = []

    def call(command: list[str], *_: object) -> int:
        run_dir = RunDirectory.open(Path(command[-1]))
        assert command[1:4] == ["-m", "rlhf_lightning", "run-job"]
        directories.append(run_dir.path)
        run_dir.write_metrics({"objective": run_dir.config["seed"]})
        run_dir.update_status(state="finished")
        return 0

    monkeypatch.setattr(sweep_job, "call", call)
    return directories


def test_four_combinations_are_four_directories(here: Path, calls: list[Path]) -> None:
    assert main(["train", "-m", "kl.coef=0.02,0.2", "seed=1,2"]) == 0
    assert [path.name for path in calls] == ["0", "1", "2", "3"]
    told = [(run.config["kl"]["coef"], run.config["seed"]) for run in jobs(here)]
    assert told == [(0.02, 1), (0.02, 2), (0.2, 1), (0.2, 2)]


def test_one_wrong_job_stops_the_sweep_before_the_first_starts(
    here: Path, calls: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "kl=fixed,none", "kl.coef=0.1"]) == 2
    assert calls == []
    assert not (here / "outputs").exists()
    assert "job 1: kl=none kl.coef=0.1" in capsys.readouterr().err


def test_a_sweep_directory_is_used_once(here: Path, calls: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "seed=1", "paths.sweep_dir=sweep"]) == 0
    assert main(["train", "-m", "seed=2", "paths.sweep_dir=sweep"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert calls == [here / "sweep" / "0"]


@pytest.mark.parametrize(("code", "state"), [(-9, "failed"), (130, "interrupted")])
def test_a_job_that_dies_without_a_word_is_not_left_running(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int, state: str
) -> None:
    monkeypatch.setattr(sweep_job, "call", lambda *_: code)
    assert main(["train", "-m", "seed=1"]) != 0
    (job,) = jobs(here)
    assert job.status.state == state
    status = json.loads((job.path / "status.json").read_text())
    assert (status["error"] is not None) == (state == "failed")


def test_sweeps_named_in_a_file_are_run(here: Path, calls: list[Path]) -> None:
    (here / "mine" / "experiment").mkdir(parents=True)
    sweep = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: range(1,4)\n"
    (here / "mine" / "experiment" / "seeds.yaml").write_text(sweep)
    assert main(["train", "-m", "-cd", "mine", "experiment=seeds"]) == 0
    assert len(calls) == 3
    assert [run.config["seed"] for run in jobs(here)] == [1, 2, 3]
