"""`rlhf sweep`: what did not finish is run again, in its place and by its config; and what a sweep looks like."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_lightning.cli import sweep as command
from rlhf_lightning.cli.main import main
from rlhf_lightning.runs.sweep_record import Sweep
from rlhf_lightning.stages.run_directory import CONFIG, STATUS, RunDirectory, RunState

UseJob = Callable[[Callable[[RunDirectory], int]], list[Path]]


def finish(job: RunDirectory) -> int:
    """A job that finishes at once, with its seed for an objective."""
    job.write_metrics({"objective": job.config["seed"]})
    job.update_status(state="finished", stage=None)
    return 0


@pytest.fixture(scope="module")
def left_half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six jobs: finished, failed, interrupted, pending, dead (its process was killed), running."""
    states: list[RunState] = ["finished", "failed", "interrupted", "pending", "running", "running"]
    directory = tmp_path_factory.mktemp("half_done")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr("rlhf_lightning.runs.sweep_jobs.run_process", lambda *_: 1)
        main(["train", "-m", "seed=1,2,3,4,5,6", "kl.coef=0.1", "sweep.on_failure=stop"])
    sweep = Sweep.open(directory / "outputs" / "latest")
    finish(sweep.jobs[0])
    for job, state in zip(sweep.jobs, states, strict=True):
        job.update_status(state=state, stage=None if state == "finished" else "ppo", error=None)
    return sweep.directory


@pytest.fixture
def half_done(left_half_done: Path, tmp_path: Path) -> Iterator[Sweep]:
    """That sweep, for a test to change: it is put back afterwards, where its records say that it lies."""
    before = tmp_path / "before"
    shutil.copytree(left_half_done, before)
    yield Sweep.open(left_half_done)
    shutil.rmtree(left_half_done)
    shutil.copytree(before, left_half_done)


def contents(job: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.path.iterdir()}


def test_only_what_did_not_finish_runs_again(half_done: Sweep, use_job: UseJob) -> None:
    calls = use_job(finish)
    untouched, running = half_done.jobs[0], half_done.jobs[5]
    before = contents(untouched), contents(running)
    configs = [(job.path / CONFIG).read_bytes() for job in half_done.jobs]
    with running.held():
        assert main(["sweep", "resume", str(half_done.directory)]) == 3
    assert [path.name for path in calls] == ["1", "2", "3", "4"]
    assert (contents(untouched), {**contents(running), ".lock": b""}) == (before[0], {**before[1], ".lock": b""})
    assert [job.status.state for job in half_done.jobs] == ["finished"] * 5 + ["running"]
    assert [(job.path / CONFIG).read_bytes() for job in half_done.jobs] == configs
    assert main(["sweep", "resume", str(half_done.directory)]) == 0
    assert [path.name for path in calls] == ["1", "2", "3", "4", "5"]
    assert [(job.metrics or {})["objective"] for job in half_done.jobs] == [1, 2, 3, 4, 5, 6]


def test_a_failure_stops_a_resumed_sweep_too_unless_told_otherwise(half_done: Sweep, use_job: UseJob) -> None:
    calls = use_job(lambda _: 1)
    assert main(["sweep", "resume", str(half_done.directory)]) == 130  # job 2 is interrupted still
    assert [path.name for path in calls] == ["1"]
    calls = use_job(lambda _: 1)
    assert main(["sweep", "resume", str(half_done.directory), "sweep.on_failure=continue"]) == 1
    assert [path.name for path in calls] == ["1", "2", "3", "4", "5"]


def test_the_launcher_may_change(half_done: Sweep) -> None:
    from rlhf_lightning.runs.sweep_start import update_plan

    update_plan(half_done, ["launcher=joblib", "launcher.jobs=3", "hydra.launcher.verbose=5"])
    plan = half_done.plan
    assert plan.launcher == {"kind": "joblib", "jobs": 3}
    assert plan.hydra_launcher["n_jobs"] == "${launcher.jobs}"
    assert plan.hydra_launcher["verbose"] == 5
    assert plan.on_failure == "stop"
    update_plan(half_done, ["launcher=basic"])
    assert half_done.plan.launcher == {"kind": "basic"}
    assert half_done.plan.slots == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [("kl.coef=0.2", "is another than that of the sweep"), ("launcher=jobib", "did you mean launcher=joblib?")],
)
def test_nothing_else_may_change(
    half_done: Sweep, use_job: UseJob, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    calls = use_job(finish)
    assert main(["sweep", "resume", str(half_done.directory), override]) == 2
    assert said in capsys.readouterr().err
    assert calls == []


def test_a_sweep_is_run_by_one_process(half_done: Sweep, use_job: UseJob, capsys: pytest.CaptureFixture[str]) -> None:
    calls = use_job(finish)
    with half_done.held(new=False):
        assert main(["sweep", "resume", str(half_done.directory)]) == 1
        assert main(["sweep", "status", str(half_done.directory)]) == 3
    assert "The sweep is going on" in capsys.readouterr().err
    assert calls == []


def test_what_a_job_needs_is_looked_for_before_any_starts(
    here: Path, use_job: UseJob, capsys: pytest.CaptureFixture[str]
) -> None:
    use_job(lambda _: 1)
    (here / "prompts.jsonl").touch()
    overrides = [
        "model=gpt2",
        "data=files",
        "data.prompts=prompts.jsonl",
        "pipeline=evaluate",
        "evaluate.policies=[base]",
    ]
    overrides += ["evaluate.reference_from=base", "evaluate.reward_from=null", "logger=none"]
    assert main(["train", "-m", "seed=1,2", *overrides]) == 1
    (here / "prompts.jsonl").unlink()
    calls = use_job(finish)
    assert main(["sweep", "resume", "outputs/latest"]) == 2
    assert "prompts.jsonl does not exist" in capsys.readouterr().err
    assert calls == []


def test_there_must_be_a_sweep(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", "nowhere"]) == 1
    assert "There is no sweep here" in capsys.readouterr().err
    (here / "cut" / "0").mkdir(parents=True)
    assert main(["sweep", "resume", "cut"]) == 1
    assert "cut off before its first job started" in capsys.readouterr().err


def test_the_table_says_how_each_job_stands(half_done: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    running = half_done.jobs[5]
    rows = ["stage,step,episodes,name,value", "sft,3,,epoch,2.0", "ppo,1,32,epoch,0.0", "ppo,9,64,epoch,1.0"]
    (running.path / "history.csv").write_text("\n".join(rows) + "\n")
    with running.held():
        assert main(["sweep", "status", str(half_done.directory)]) == 3
    first, header, *lines, totals, _ = capsys.readouterr().out.splitlines()
    assert first == "all jobs: kl.coef=0.1"
    assert header.split() == ["job", "overrides", "state", "stage", "progress", "objective", "seconds"]
    words = [line.split() for line in lines]
    assert words[0][:4] == ["0", "seed=1", "finished", "1.000"]
    assert [line[2] for line in words[1:]] == ["failed", "interrupted", "pending", "dead", "running"]
    assert words[5][:5] == ["5", "seed=6", "running", "ppo", "2/75"]
    assert totals == "6 jobs: 1 finished, 1 running, 1 pending, 1 failed, 1 dead, 1 interrupted"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["finished", "finished"], 0),
        (["finished", "failed"], 1),
        (["pending", "finished"], 1),
        (["failed", "interrupted"], 130),
    ],
)
def test_the_exit_code_says_how_a_sweep_stands(half_done: Sweep, states: list[RunState], code: int) -> None:
    for job, state in zip(half_done.jobs, [*states, *["finished"] * 4], strict=True):
        job.update_status(state=state)
    assert main(["sweep", "status", str(half_done.directory)]) == code


def test_watching_ends_with_the_sweep(half_done: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WATCH_SECONDS", 0.05)
    for job in half_done.jobs:
        job.update_status(state="finished")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with half_done.held(new=False):
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    threading.Timer(0.3, done.set).start()
    begun = time.monotonic()
    assert main(["sweep", "status", "--watch", str(half_done.directory)]) == 0
    assert time.monotonic() - begun > 0.2
    holder.join()


def test_a_status_that_is_being_written_is_read_whole(half_done: Sweep) -> None:
    job = half_done.jobs[3]
    (job.path / f".{STATUS}.leftover").write_text("{")
    assert half_done.in_state("pending")[0].path == job.path


@pytest.mark.parametrize("storage", [True, False])
def test_a_sweep_that_draws_its_jobs_draws_the_missing_ones(
    here: Path, use_job: UseJob, capsys: pytest.CaptureFixture[str], storage: bool
) -> None:
    interrupted: list[Path] = []

    def interrupt_once(run: RunDirectory) -> int:
        if run.path.name == "1" and run.path not in interrupted:
            interrupted.append(run.path)
            run.update_status(state="interrupted")
            return 130
        run.write_metrics({"objective": -abs(run.config["kl"]["coef"] - 0.2)})
        run.update_status(state="finished")
        return 0

    calls = use_job(interrupt_once)
    extra = [] if storage else ["hydra.sweeper.storage=null"]
    overrides = ["sweep=optuna", "hydra.sweeper.n_trials=3", "ppo.learning_rate=1e-4", "logger=none", *extra]
    assert main(["train", "-m", *overrides]) == 130
    assert [path.name for path in calls] == ["0", "1"]
    assert main(["sweep", "resume", "outputs/latest"]) == 0
    names = ["0", "1", "1", "2"] if storage else ["0", "1", "1"]
    assert [path.name for path in calls] == names
    assert ("no new jobs are drawn" in capsys.readouterr().err) == (not storage)
    sweep = Sweep.open(here / "outputs" / "latest")
    assert len({run.config["kl"]["coef"] for run in sweep.jobs}) == len(sweep.jobs)
