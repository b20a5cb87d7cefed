"""The processes of a sweep: several at once, each with its own config, stopped together, taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import pytest
import stand_in_pipelines as pipelines

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs.sweep_record import Sweep, state_of
from rlhf_lightning.stages.run_directory import RunDirectory

UsePipelineInJobs = Callable[[str], None]

SAVES = (pipelines.use, (pipelines.save_when_interrupted,))

SAVES_ONCE = """
import json, os, time
if not (run_dir.path / "ready").exists():
    run_dir.write_text("environment.json", json.dumps(dict(os.environ)))
    run_dir.write_text("ready", "")
    try:
        time.sleep(60)
    finally:
        run_dir.write_text("saved", "")
run_dir.write_metrics({"objective": settings.seed})
"""
"""A pipeline that waits to be interrupted, and finishes when it goes on."""


def sweep_at(here: Path) -> Sweep:
    return Sweep.open(here / "outputs" / "latest")


def ready(here: Path) -> int:
    return len(list(here.glob("outputs/multirun/*/*/*/ready")))


def wait_for(what: Callable[[], bool]) -> None:
    """Waits for what several processes bring about, or one that outlives the one that started it."""
    deadline = time.monotonic() + forked.LIMIT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def stop_two_at_once(
    here: Path, use_pipeline_in_jobs: UsePipelineInJobs, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Sweep]:
    """Starts a sweep of three jobs, two at once; Ctrl-C when both are at work."""

    def stop(launcher: str) -> Sweep:
        use_pipeline_in_jobs(SAVES_ONCE)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        overrides = [f"launcher={launcher}", "launcher.jobs=2", "seed=1,2,3", "trainer.accelerator=auto", "logger=none"]
        command = [sys.executable, "-m", "rlhf_lightning", "train", "-m", *overrides]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
        wait_for(lambda: ready(here) == 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: sweep, workers and jobs alike
        _, errors = process.communicate(timeout=forked.LIMIT)
        assert process.returncode == 130, errors
        sweep = sweep_at(here)
        assert sorted(job.status.state for job in sweep.jobs) == ["interrupted", "interrupted", "pending"]
        return sweep

    return stop


def check_what_each_had(jobs: Sequence[RunDirectory]) -> None:
    """Jobs that ran at once have saved, and had GPUs, a share of the cores and a log of their own."""
    environments = [json.loads((job.path / "environment.json").read_text()) for job in jobs]
    assert sorted(found["CUDA_VISIBLE_DEVICES"] for found in environments) == ["4", "7"]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [found["OMP_NUM_THREADS"] for found in environments] == [threads, threads]
    for job in jobs:
        assert (job.path / "saved").exists()
        assert "Interrupted. To go on" in (job.path / "console.log").read_text()


def test_jobs_of_joblib_run_at_once_save_at_ctrl_c_and_go_on(
    stop_two_at_once: Callable[[str], Sweep], use_job: Callable[[Callable[[RunDirectory], int]], list[Path]]
) -> None:
    sweep = stop_two_at_once("joblib")
    check_what_each_had(sweep.in_state("interrupted"))

    def finish(job: RunDirectory) -> int:
        job.update_status(state="finished")
        return 0

    calls = use_job(finish)
    assert main(["sweep", "resume", "outputs/latest", "launcher=basic"]) == 0
    assert calls == [job.path for job in sweep.jobs]


def test_jobs_of_submitit_run_at_once_save_at_ctrl_c_and_may_be_started_again_by_slurm(
    stop_two_at_once: Callable[[str], Sweep],
) -> None:
    """What had finished is left alone; what was interrupted goes on, in its directory."""
    sweep = stop_two_at_once("submitit_local")
    check_what_each_had(sweep.in_state("interrupted"))
    sweep.clear_stop()
    interrupted = sweep.in_state("interrupted")[0]
    (done,) = sweep.in_state("pending")
    done.update_status(state="finished")
    submitted = sorted((sweep.directory / ".submitit").glob("*/*_submitted.pkl"), key=lambda file: file.stat().st_mtime)
    for job in (interrupted, done):
        folder = submitted[int(job.path.name)].parent
        local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": folder.name, "SUBMITIT_LOCAL_NTASKS": "1"}
        ranks = {"SUBMITIT_LOCAL_GLOBALRANK": "0", "SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_NNODES": "1"}
        ranks["SUBMITIT_LOCAL_NODEID"] = "0"
        again = [sys.executable, "-m", "submitit.core._submit", str(folder)]
        subprocess.run(again, env={**os.environ, **local, **ranks}, check=True, timeout=240, capture_output=True)
    assert interrupted.status.state == done.status.state == "finished"
    assert interrupted.metrics == {"objective": int(interrupted.path.name) + 1}
    assert done.metrics is None


def test_every_process_of_a_job_has_that_jobs_overrides(here: Path) -> None:
    # Lightning's own launcher would replay the sweep's command line in the second process of each job.
    overrides = ["trainer=ddp", "trainer.accelerator=cpu", "seed=1,2", "kl.coef=0.3", "logger=none"]
    done = forked.run(["train", "-m", *overrides], body=(pipelines.use, (pipelines.tell_by_rank,)))
    assert done.returncode == 0, done.stderr
    told = [[(job.path / f"rank{rank}").read_text() for rank in (0, 1)] for job in sweep_at(here).jobs]
    assert told == [["1 0.3", "1 0.3"], ["2 0.3", "2 0.3"]]
    assert len(list((here / "outputs" / "multirun").glob("*/*"))) == 1


def test_ctrl_c_reaches_the_job_and_stops_the_sweep(here: Path) -> None:
    process = forked.start(["train", "-m", "seed=1,2"], body=SAVES)
    process.wait_for(lambda: ready(here) == 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and job alike
    assert process.wait() == 130
    job, next_one = sweep_at(here).jobs
    assert job.status.state == "interrupted"
    assert (job.path / "saved").exists()
    assert next_one.status.state == "pending"


def test_jobs_end_with_the_sweep_that_was_killed(here: Path) -> None:
    process = forked.start(["train", "-m", "seed=1,2"], body=SAVES)
    process.wait_for(lambda: ready(here) == 1)
    process.kill()
    sweep = sweep_at(here)
    wait_for(lambda: sweep.jobs[0].status.state == "interrupted")
    assert (sweep.jobs[0].path / "saved").exists()
    assert sweep.jobs[1].status.state == "pending"


def test_what_was_killed_is_dead_and_runs_again(here: Path) -> None:
    process = forked.start(["train", "-m", "seed=1,2"], body=SAVES)
    process.wait_for(lambda: ready(here) == 1)
    process.kill_group()
    process.wait()
    sweep = sweep_at(here)
    wait_for(lambda: [state_of(job) for job in sweep.jobs] == ["dead", "pending"])
    assert json.loads((sweep.jobs[0].path / "status.json").read_text())["state"] == "running"
    done = forked.run(["sweep", "resume", "outputs/latest"], body=(pipelines.use, (pipelines.finish,)))
    assert done.returncode == 0, done.stderr
    assert [job.status.state for job in sweep.jobs] == ["finished", "finished"]
    assert [job.metrics for job in sweep.jobs] == [{"objective": 1}, {"objective": 2}]
