"""The processes of a sweep: several at once, each with its own config, stopped together, taken up again."""

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

from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.experiment.sweep.record import Sweep, state_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Environment = Callable[[str], dict[str, str]]

RLHF = [sys.executable, "-m", "rlhf_lightning"]
SECONDS = 500

FINISHES = """
import os
run_dir.write_metrics({"objective": settings.seed, "environment": dict(os.environ)})
"""
"""A pipeline that only finishes."""

MEETS = """
import os, time
sweep = run_dir.path.parent
(sweep / f"begun{run_dir.path.name}").touch()
while len(list(sweep.glob("begun*"))) < 2:
    time.sleep(0.05)
at_work = len(list(sweep.glob("begun*"))) - len(list(sweep.glob("ended*")))
run_dir.write_metrics({"objective": settings.seed, "at_work": at_work, "environment": dict(os.environ)})
(sweep / f"ended{run_dir.path.name}").touch()
"""
"""A pipeline that waits for another job of its sweep to have begun."""

SAVES = """
import time
run_dir.write_text("ready", "")
try:
    time.sleep(60)
finally:
    run_dir.write_text("saved", "")
"""
"""A pipeline that is interrupted."""


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*RLHF, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS)


def sweep_at(here: Path) -> Sweep:
    return Sweep.open(here / "outputs" / "latest")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started(environment: dict[str, str], here: Path, ready: int, *arguments: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own, once so many of its jobs are at work."""
    command = [*RLHF, "train", "-m", *arguments]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(here.glob("outputs/multirun/*/*/*/ready"))) == ready)
    return process


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_two_jobs_run_at_once(here: Path, child_environment: Environment, launcher: str) -> None:
    environment = child_environment(MEETS)
    environment.pop("OMP_NUM_THREADS", None)
    done = run(environment, "train", "-m", f"launcher={launcher}", "launcher.jobs=2", "seed=1,2,3", "logger=none")
    assert done.returncode == 0, done.stderr
    metrics = [job.metrics or {} for job in sweep_at(here).jobs]
    assert [found["objective"] for found in metrics] == [1, 2, 3]
    assert max(found["at_work"] for found in metrics) == 2
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {found["environment"]["OMP_NUM_THREADS"] for found in metrics} == {threads}
    assert all((job.path / "console.log").exists() for job in sweep_at(here).jobs)


def test_jobs_at_once_have_gpus_of_their_own(here: Path, child_environment: Environment) -> None:
    environment = {**child_environment(MEETS), "CUDA_VISIBLE_DEVICES": "4,7"}
    overrides = ["trainer.accelerator=auto", "launcher=joblib", "launcher.jobs=2", "seed=1,2", "logger=none"]
    assert run(environment, "train", "-m", *overrides).returncode == 0
    given = [(job.metrics or {})["environment"]["CUDA_VISIBLE_DEVICES"] for job in sweep_at(here).jobs]
    assert sorted(given) == ["4", "7"]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_every_process_of_a_job_has_that_jobs_overrides(
    here: Path, child_environment: Environment, launcher: str
) -> None:
    # Lightning's own launcher would replay the sweep's command line in the second process of each job.
    environment = child_environment(
        """
        import os
        run_dir.write_text(f"rank{os.environ['RANK']}", f"{settings.seed} {settings.kl.coef}")
        """
    )
    overrides = ["trainer=ddp", "trainer.accelerator=cpu", f"launcher={launcher}", "logger=none"]
    done = run(environment, "train", "-m", *overrides, "seed=1,2", "kl.coef=0.3")
    assert done.returncode == 0, done.stderr
    told = [[(job.path / f"rank{rank}").read_text() for rank in (0, 1)] for job in sweep_at(here).jobs]
    assert told == [["1 0.3", "1 0.3"], ["2 0.3", "2 0.3"]]
    assert len(list((here / "outputs" / "multirun").glob("*/*"))) == 1


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_ctrl_c_lets_all_jobs_save(here: Path, child_environment: Environment, launcher: str) -> None:
    overrides = [f"launcher={launcher}", "launcher.jobs=2", "seed=1,2,3", "logger=none"]
    process = started(child_environment(SAVES), here, 2, *overrides)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=SECONDS) == 130
    sweep = sweep_at(here)
    assert sorted(job.status.state for job in sweep.jobs) == ["interrupted", "interrupted", "pending"]
    assert all((job.path / "saved").exists() for job in sweep.in_state("interrupted"))
    environment = child_environment(FINISHES)
    assert run(environment, "sweep", "resume", "outputs/latest", "launcher=basic").returncode == 0
    assert [(job.metrics or {})["objective"] for job in sweep.jobs] == [1, 2, 3]


def test_jobs_end_with_the_sweep_that_was_killed(here: Path, child_environment: Environment) -> None:
    process = started(child_environment(SAVES), here, 1, "seed=1,2", "logger=none")
    process.kill()
    sweep = sweep_at(here)
    wait_for(lambda: sweep.jobs[0].status.state == "interrupted")
    assert (sweep.jobs[0].path / "saved").exists()
    assert sweep.jobs[1].status.state == "pending"


def test_what_was_killed_is_dead_and_runs_again(here: Path, child_environment: Environment) -> None:
    process = started(child_environment(SAVES), here, 1, "seed=1,2", "logger=none")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    sweep = sweep_at(here)
    wait_for(lambda: [state_of(job) for job in sweep.jobs] == ["dead", "pending"])
    assert json.loads((sweep.jobs[0].path / "status.json").read_text())["state"] == "running"
    assert run(child_environment(FINISHES), "sweep", "resume", "outputs/latest").returncode == 0
    assert [job.status.state for job in sweep.jobs] == ["finished", "finished"]


def test_a_job_that_slurm_starts_again_finds_its_directory(here: Path, child_environment: Environment) -> None:
    environment = child_environment(FINISHES)
    overrides = ["launcher=submitit_local", "launcher.jobs=2", "seed=1,2", "logger=none"]
    assert run(environment, "train", "-m", *overrides).returncode == 0
    sweep = sweep_at(here)
    second: RunDirectory = sweep.jobs[1]
    before = second.metrics
    sweep.jobs[0].update_status(state="running")  # as if its machine had gone
    for job in sorted((sweep.directory / ".submitit").glob("*/*_submitted.pkl")):
        folder, number = job.parent, job.parent.name
        again = [sys.executable, "-m", "submitit.core._submit", str(folder)]
        local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": number, "SUBMITIT_LOCAL_NTASKS": "1"}
        ranks = {"SUBMITIT_LOCAL_GLOBALRANK": "0", "SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_NNODES": "1"}
        ranks["SUBMITIT_LOCAL_NODEID"] = "0"
        subprocess.run(again, env={**environment, **local, **ranks}, check=True, timeout=SECONDS, capture_output=True)
    assert [job.status.state for job in sweep.jobs] == ["finished", "finished"]
    assert second.metrics == before, "what had finished is left alone"
