"""Runs that are logged to Weights & Biases without a network, read back from the files that they leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from tiny_runs import ONE_ITERATION, finished_metrics, logged, placed, train
from tracking import offline_run

from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import series

LOGGED = (
    *("debug=tiny", "logger.mode=offline", "data.demonstrations=64"),
    *(
        "pipeline.stages=[sft,evaluate]",
        "evaluate.policies=[sft]",
        "evaluate.reward_from=null",
        "evaluate.splits=[iid]",
    ),
)

pytestmark = pytest.mark.slow


def recorded(job: RunDirectory, stage: str) -> offline_run.OfflineRun:
    """What a stage of a job logged."""
    run = offline_run.recorded(job.path, stage)
    assert run.directory.is_relative_to(job.path), "one job's records lie in its own directory"
    return run


@pytest.mark.usefixtures("jobs_in_this_process")
def test_the_stages_of_a_sweeps_jobs_are_runs_of_their_own_in_one_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"paths.outputs={tmp_path}", f"paths.sweep_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *LOGGED, "rollout.max_new_tokens=8,12", *places]) == 0
    shown = tmp_path / "sweep" / "wandb"
    assert f"wandb leet {shown}" in capsys.readouterr().out
    jobs = [RunDirectory.open(tmp_path / "sweep" / number) for number in "01"]
    # Both jobs have one and the same SFT, which is a run of the job that did it.
    assert [path.stem for job in jobs for path in sorted((job.path / "wandb").glob("*.json"))] == [
        *("evaluate", "sft"),
        "evaluate",
    ]
    runs = {(job, stage): recorded(jobs[job], stage) for job, stage in ((0, "sft"), (0, "evaluate"), (1, "evaluate"))}
    assert len({run.run.run_id for run in runs.values()}) == 3
    assert {run.run.run_group for run in runs.values()} == {"sweep"}
    assert {link.resolve() for link in shown.iterdir()} == {run.directory for run in runs.values()}
    for (job, stage), run in runs.items():
        config, metrics = jobs[job].config, finished_metrics(jobs[job])
        assert (run.run.job_type, run.exit_code) == (stage, 0)
        assert run.run.display_name == f"{stage} rollout.max_new_tokens={config['rollout']['max_new_tokens']}"
        assert {key: run.config[key] for key in config} == config, "plain containers, nothing lost"
        assert run.summary["seconds"] == metrics["stages"][stage]["seconds"]
        if stage == "sft":
            losses = [row["sft/validation_loss"] for row in run.history if "sft/validation_loss" in row]
            assert losses == pytest.approx([metrics["stages"]["sft"]["validation_loss"]])
            assert "objective" not in run.summary, "only the last stage knows it"
        else:
            figures = metrics["evaluate"]["sft"]["iid"]
            assert run.summary["sft/iid/gold_reward"] == pytest.approx(figures["gold_reward"])
            assert run.summary["objective"] == pytest.approx(metrics["objective"])

    key = finished_metrics(jobs[0])["stages"]["sft"]["key"]
    ((name, trained),) = runs[0, "sft"].left.items()
    assert name == f"sft-{key[:12]}"
    assert [runs[job, "evaluate"].taken[name].digest for job in (0, 1)] == [trained.digest] * 2
    left = [list(runs[job, "evaluate"].left) for job in (0, 1)]
    assert left[0] != left[1]

    # A trial whose last stage is cached still tells its objective.
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    again = train(*LOGGED, "rollout.max_new_tokens=8", f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'run'}")
    assert all("cache" in figures for figures in finished_metrics(again)["stages"].values())
    assert [path.name for path in (again.path / "wandb").glob("*.json")] == ["evaluate.json"]
    trial = recorded(again, "evaluate")
    assert (trial.run.run_id, trial.run.sweep_id, trial.exit_code) == ("trial1", "sweep1", 0)
    assert trial.summary["objective"] == runs[0, "evaluate"].summary["objective"]
    assert [*trial.left] == left[0]


def test_a_ppo_run_takes_in_what_the_stages_before_it_left(
    adapted: Callable[[str], RunDirectory], tmp_path: Path
) -> None:
    run = adapted("lora")
    sft, comparisons, rewards, ppo, evaluate = (
        recorded(run, stage) for stage in ("sft", "comparisons", "reward_model", "ppo", "evaluate")
    )
    assert list(sft.taken) == ["model-courtesy"]
    assert list(comparisons.taken) == list(sft.left)
    assert [*rewards.taken] == [*sft.left, *comparisons.left]
    assert [*ppo.taken] == [*sft.left, *rewards.left]
    assert {*evaluate.taken} == {*sft.left, *rewards.left, *ppo.left}
    metadata = json.loads(ppo.left[f"ppo-{finished_metrics(run)['stages']['ppo']['key'][:12]}"].metadata)
    assert (metadata["base"], metadata["peft"]) == ("courtesy", "lora")
    assert metadata["figures"]["kl"] == pytest.approx(finished_metrics(run)["stages"]["ppo"]["kl"])

    scores = [point.value for point in series(run.path, "ppo", "objective/score")]
    assert ppo.summary["objective/score"] == {"max": max(scores), "last": scores[-1]}
    samples = run.config["callbacks"]["sample_log_size"]
    assert ppo.summary["sample_log.nrows"] == samples * len(scores)
    assert evaluate.summary["samples.nrows"] == len((run.path / "samples.jsonl").read_text().splitlines())

    # Another run begins from what this one left: by a path, but under the same name.
    start = (f"evaluate.policies=[{run.path / 'sft'}]", f"evaluate.reference_from={run.path / 'sft'}")
    sizes = [override for override in LOGGED if not override.startswith(("pipeline", "evaluate.policies"))]
    elsewhere = train(*sizes, "pipeline.stages=[evaluate]", *start, *placed(tmp_path))
    assert list(recorded(elsewhere, "evaluate").taken) == list(sft.left)


def test_a_killed_run_goes_on_in_the_same_history(tiny: RunDirectory, tmp_path: Path) -> None:
    """After SIGKILL past a checkpoint, the parts together hold each iteration once, and nothing goes back."""
    run = tmp_path / "run"
    start = (f"ppo.policy_from={tiny.path / 'sft'}", f"ppo.reward_from={tiny.path / 'reward_model'}")
    sizes = ("ppo.iterations=6", "callbacks.save_every=2")
    process = forked.start(["train", "pipeline=ppo", *logged(*ONE_ITERATION), *start, *sizes, *placed(tmp_path)])
    process.wait_for(lambda: len(series(run, "ppo", "objective/score")) >= 3)
    process.kill_group()
    assert process.wait() == -signal.SIGKILL
    assert main(["train", f"resume={run}"]) == 0

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
