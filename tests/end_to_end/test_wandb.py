"""Runs that are logged to Weights & Biases without a network, read back from the files that they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_runs import SMALL, finished_metrics, train
from tracking import offline_run

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import series

LOGGED = ["debug=tiny", "data.demonstrations=64", "logger.mode=offline"]
WHOLE = [override for override in SMALL if override != "logger=none"] + ["logger.mode=offline"]
PATIENCE = 300.0
"""Seconds until a run must have got where it is waited for; importing torch takes most of it on a busy machine."""
EVALUATED = ["pipeline.stages=[sft,evaluate]", "evaluate.policies=[sft]", "evaluate.reward_from=null"]


@pytest.fixture(autouse=True)
def no_wandb_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def recorded(job: RunDirectory, stage: str) -> offline_run.OfflineRun:
    """What a stage of a job logged."""
    run = offline_run.recorded(job.path, stage)
    assert run.directory.is_relative_to(job.path), "one job's records lie in its own directory"
    return run


def sweep_of(tmp_path: Path, *overrides: str) -> list[RunDirectory]:
    places = [f"paths.outputs={tmp_path}", f"paths.sweep_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *LOGGED, *places, *overrides]) == 0
    return [RunDirectory.open(tmp_path / "sweep" / number) for number in "01"]


@pytest.mark.slow
def test_the_stages_of_a_sweeps_jobs_are_runs_of_their_own_in_one_group(tmp_path: Path) -> None:
    jobs = sweep_of(tmp_path, "sft.learning_rate=1e-4,1e-3", *EVALUATED)
    losses = [finished_metrics(job)["stages"]["sft"]["validation_loss"] for job in jobs]
    assert losses[0] != losses[1]
    runs = {(job, stage): recorded(jobs[job], stage) for job in (0, 1) for stage in ("sft", "evaluate")}
    assert len({run.run.run_id for run in runs.values()}) == 4
    assert {run.run.run_group for run in runs.values()} == {"sweep"}
    for (job, stage), run in runs.items():
        config = jobs[job].config
        assert (run.run.job_type, run.exit_code) == (stage, 0)
        assert run.run.display_name == f"{stage} sft.learning_rate={config['sft']['learning_rate']}"
        assert {key: run.config[key] for key in config} == config, "plain containers, nothing lost"
        assert run.summary["seconds"] == finished_metrics(jobs[job])["stages"][stage]["seconds"]
    for job, loss in enumerate(losses):
        history = runs[job, "sft"].history
        assert [row["sft/validation_loss"] for row in history if "sft/validation_loss" in row] == pytest.approx([loss])
        metrics = finished_metrics(jobs[job])
        summary = runs[job, "evaluate"].summary
        assert summary["sft/iid/gold_reward"] == pytest.approx(metrics["evaluate"]["sft"]["iid"]["gold_reward"])
        assert summary["objective"] == pytest.approx(metrics["objective"])
        assert "objective" not in runs[job, "sft"].summary, "only the last stage knows it"


@pytest.mark.slow
def test_a_stage_from_the_cache_is_the_same_artifact_and_no_run_of_its_own(tmp_path: Path) -> None:
    jobs = sweep_of(tmp_path, "rollout.max_new_tokens=8,12", *EVALUATED)
    keys = [finished_metrics(job)["stages"]["sft"]["key"] for job in jobs]
    assert keys[0] == keys[1]
    assert "cache" in finished_metrics(jobs[1])["stages"]["sft"]
    assert not (jobs[1].path / "wandb" / "sft.json").exists()
    ((name, trained),) = recorded(jobs[0], "sft").left.items()
    assert name == f"sft-{keys[0][:12]}"
    assert [recorded(job, "evaluate").taken[name].digest for job in jobs] == [trained.digest] * 2
    left = [list(recorded(job, "evaluate").left) for job in jobs]
    assert left[0] != left[1]


@pytest.mark.slow
def test_a_ppo_run_takes_in_what_the_stages_before_it_left(tmp_path: Path) -> None:
    run = train(*WHOLE, f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'run'}", "callbacks.diary_every=1")
    sft, comparisons, rewards, ppo, evaluate = (
        recorded(run, stage) for stage in ("sft", "comparisons", "reward_model", "ppo", "evaluate")
    )
    assert list(sft.taken) == ["model-courtesy"]
    assert list(comparisons.taken) == list(sft.left)
    assert [*rewards.taken] == [*sft.left, *comparisons.left]
    assert [*ppo.taken] == [*sft.left, *rewards.left]
    assert {*evaluate.taken} == {*sft.left, *rewards.left, *ppo.left}
    metadata = json.loads(ppo.left[f"ppo-{finished_metrics(run)['stages']['ppo']['key'][:12]}"].metadata)
    assert (metadata["base"], metadata["peft"]) == ("courtesy", "none")
    assert metadata["figures"]["kl"] == pytest.approx(finished_metrics(run)["stages"]["ppo"]["kl"])

    scores = [point.value for point in series(run.path, "ppo", "objective/score")]
    assert ppo.summary["objective/score"] == {"max": max(scores), "last": scores[-1]}
    samples = run.config["callbacks"]["diary_samples"]
    assert ppo.summary["diary/nrows"] == samples * len(scores)
    assert evaluate.summary["samples/nrows"] == len((run.path / "samples.jsonl").read_text().splitlines())

    # Another run begins from what this one left: by a path, but under the same name.
    elsewhere = train(
        *LOGGED,
        *EVALUATED[1:],
        *(
            "pipeline.stages=[evaluate]",
            f"evaluate.policies=[{run.path / 'sft'}]",
            f"evaluate.reference_from={run.path / 'sft'}",
        ),
        *(f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'elsewhere'}"),
    )
    assert list(recorded(elsewhere, "evaluate").taken) == list(sft.left)


@pytest.mark.slow
def test_a_trial_whose_last_stage_is_cached_still_tells_its_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(*LOGGED, *EVALUATED, f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'first'}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    again = train(*LOGGED, *EVALUATED, f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'again'}")
    assert all("cache" in figures for figures in finished_metrics(again)["stages"].values())
    assert [path.name for path in (again.path / "wandb").glob("*.json")] == ["evaluate.json"]
    trial = recorded(again, "evaluate")
    assert (trial.run.run_id, trial.run.sweep_id, trial.exit_code) == ("trial1", "sweep1", 0)
    assert trial.summary["objective"] == recorded(first, "evaluate").summary["objective"]
    assert [*trial.left] == [*recorded(first, "evaluate").left]


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_history(tmp_path: Path) -> None:
    """After SIGKILL past a checkpoint, the parts together hold each iteration once, and nothing goes back."""
    run = tmp_path / "run"
    sizes = ["pipeline.stages=[sft,comparisons,reward_model,ppo]", "ppo.iterations=12", "callbacks.save_every=3"]
    places = [f"paths.outputs={tmp_path}", f"paths.run_dir={run}"]
    command = [sys.executable, "-m", "rlhf_lightning", "train", *WHOLE, *sizes, *places]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    try:
        while not (run / "history.csv").exists() or len(series(run, "ppo", "objective/score")) < 5:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "rlhf_lightning", "train", f"resume={run}"], check=True, capture_output=True)

    last = recorded(RunDirectory.open(run), "ppo")
    parts = [offline_run.OfflineRun(path) for path in sorted((run / "wandb").glob(f"*-{last.run.run_id}"))]
    assert len(parts) == 2
    assert [part.exit_code for part in parts] == [None, 0]
    steps = [step for part in parts for step in part.steps]
    assert steps == sorted(set(steps))
    rows = [row for part in parts for row in part.history if "objective/score" in row]
    expected = series(run, "ppo", "objective/score")
    assert [row["rollout/episodes"] for row in rows] == [point.episodes for point in expected]
    assert [row["objective/score"] for row in rows] == [point.value for point in expected]
    assert last.summary["objective/score"]["max"] == max(point.value for point in expected)


@pytest.mark.slow
def test_jobs_that_run_at_once_are_not_merged(tmp_path: Path) -> None:
    """Two processes over one cold cache: what one trains, the other takes; no run of one is a run of the other."""
    jobs = [tmp_path / "sweep" / number for number in "01"]
    commands = [
        [
            *(sys.executable, "-m", "rlhf_lightning", "train", *LOGGED, *EVALUATED),
            *(f"paths.outputs={tmp_path}", f"paths.run_dir={job}", f"rollout.max_new_tokens={length}"),
        ]
        for job, length in zip(jobs, (8, 12), strict=True)
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands
    ]
    assert [process.wait(timeout=PATIENCE) for process in processes] == [0, 0]
    identities = [path for job in jobs for path in sorted((job / "wandb").glob("*.json"))]
    assert sorted(path.stem for path in identities) == ["evaluate", "evaluate", "sft"]
    runs = [recorded(RunDirectory.open(path.parents[1]), path.stem) for path in identities]
    assert len({run.run.run_id for run in runs}) == 3
    assert {run.run.run_group for run in runs} == {"sweep"}
    assert {run.exit_code for run in runs} == {0}
    lengths = {run.directory.parents[1].name: run.config["rollout"]["max_new_tokens"] for run in runs}
    assert lengths == {"0": 8, "1": 12}
