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
from typing import Any

import forked
import pytest
import stand_in_pipelines as pipelines
from joblib.externals.loky import get_reusable_executor

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.sweep.record import Sweep, state_of

UsePipelineInJobs = Callable[[str], None]

SAVES = (pipelines.use, (pipelines.save_when_interrupted,))

SAVES_THEN_MEETS = """
import os, time
sweep = run_dir.path.parent
if not (sweep / "resumed").exists():
    run_dir.write_text("ready", "")
    try:
        time.sleep(60)
    finally:
        run_dir.write_text("saved", "")
(sweep / f"begun{run_dir.path.name}").touch()
while len(list(sweep.glob("begun*"))) < 2:
    time.sleep(0.02)
at_work = len(list(sweep.glob("begun*"))) - len(list(sweep.glob("ended*")))
run_dir.write_metrics({"objective": settings.seed, "at_work": at_work, "environment": dict(os.environ)})
(sweep / f"ended{run_dir.path.name}").touch()
"""
"""A pipeline that is interrupted; in a sweep that was taken up again, it waits for another job to have begun."""


def sweep_at(here: Path) -> Sweep:
    return Sweep.open(here / "outputs" / "latest")


def ready(here: Path) -> int:
    return len(list(here.glob("outputs/multirun/*/*/*/ready")))


def metrics(sweep: Sweep) -> list[dict[str, Any]]:
    return [job.metrics or {} for job in sweep.jobs]


def wait_for(what: Callable[[], bool]) -> None:
    """Waits for what several processes bring about, or one that outlives the one that started it."""
    deadline = time.monotonic() + forked.LIMIT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_at_once_save_at_ctrl_c_and_go_on(
    here: Path, use_pipeline_in_jobs: UsePipelineInJobs, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    use_pipeline_in_jobs(SAVES_THEN_MEETS)
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
    assert all((job.path / "saved").exists() for job in sweep.in_state("interrupted"))

    (sweep.directory / "resumed").touch()
    assert main(["sweep", "resume", "outputs/latest"]) == 0
    told = metrics(sweep)
    assert [found["objective"] for found in told] == [1, 2, 3]
    assert max(found["at_work"] for found in told) == 2
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {found["environment"]["OMP_NUM_THREADS"] for found in told} == {threads}
    assert {found["environment"]["CUDA_VISIBLE_DEVICES"] for found in told} == {"4", "7"}
    assert all((job.path / "console.log").exists() for job in sweep.jobs)
    if launcher == "joblib":
        get_reusable_executor().shutdown()  # it keeps workers for the next time
    else:
        check_that_slurm_may_start_its_jobs_again(sweep)


def check_that_slurm_may_start_its_jobs_again(sweep: Sweep) -> None:
    """What had finished is left alone; what its machine took with it runs again, in its directory."""
    first, *others = sweep.jobs
    before = [job.metrics for job in others]
    first.update_status(state="running")
    for job in sorted((sweep.directory / ".submitit").glob("*/*_submitted.pkl"))[-3:]:
        folder, number = job.parent, job.parent.name
        local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": number, "SUBMITIT_LOCAL_NTASKS": "1"}
        ranks = {"SUBMITIT_LOCAL_GLOBALRANK": "0", "SUBMITIT_LOCAL_LOCALID": "0", "SUBMITIT_LOCAL_NNODES": "1"}
        ranks["SUBMITIT_LOCAL_NODEID"] = "0"
        again = [sys.executable, "-m", "submitit.core._submit", str(folder)]
        subprocess.run(again, env={**os.environ, **local, **ranks}, check=True, timeout=240, capture_output=True)
    assert [job.status.state for job in sweep.jobs] == ["finished"] * 3
    assert [job.metrics for job in others] == before


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
    assert [found["objective"] for found in metrics(sweep)] == [1, 2]
