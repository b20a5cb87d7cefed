"""`rlhf train -m`: every job in a process and a directory of its own, and a sweep that survives a failing job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.config_store import ConfigStore

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.overrides import split_jobs
from rlhf_lightning.runs.preflight import check_job, check_sweep
from rlhf_lightning.runs.sweep_record import Sweep
from rlhf_lightning.stages.run_directory import RunDirectory

UseJob = Callable[[Callable[[RunDirectory], int]], list[Path]]


def sweep_directory(here: Path) -> Path:
    return (here / "outputs" / "latest").resolve()


def jobs(here: Path) -> list[RunDirectory]:
    return [RunDirectory.open(path) for path in sorted(sweep_directory(here).glob("[0-9]*"))]


def test_a_sweep_goes_on_after_a_failing_job(
    here: Path, use_pipeline_in_jobs: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """In processes as a user starts them."""
    use_pipeline_in_jobs(
        """
        if settings.seed == 1:
            raise ZeroDivisionError("boom")
        run_dir.write_metrics({"objective": settings.kl.coef})
        """
    )
    assert main(["train", "-m", "seed=1,2", "kl.coef=0.5"]) == 1
    failed, finished = jobs(here)
    assert sweep_directory(here).parent.parent == here / "outputs" / "multirun"
    assert (failed.status.state, finished.status.state) == ("failed", "finished")
    assert "boom" in (failed.path / "error.log").read_text()
    assert finished.overrides == ["seed=2", "kl.coef=0.5"]
    assert finished.metrics == {"objective": 0.5}
    assert len({os.getpid(), failed.status.pid, finished.status.pid}) == 3
    assert finished.config["paths"]["run_dir"] == str(finished.path)
    printed = capfd.readouterr()
    assert "all jobs: kl.coef=0.5" in printed.out
    assert "seed=2" in printed.out
    assert "0.500" in printed.out
    assert "failed" in printed.out
    assert "Error executing job" not in printed.err


def finish(job: RunDirectory) -> int:
    """A job that finishes at once, with its seed for an objective."""
    job.write_metrics({"objective": job.config["seed"]})
    job.update_status(state="finished")
    return 0


@pytest.fixture
def calls(use_job: UseJob) -> list[Path]:
    """The directories of the jobs that ran, each of which only finishes."""
    return use_job(finish)


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
def test_a_job_that_dies_without_a_word_is_not_left_running(here: Path, use_job: UseJob, code: int, state: str) -> None:
    use_job(lambda _: code)
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


def test_every_job_is_there_before_the_first_starts(here: Path, use_job: UseJob) -> None:
    seen: list[list[str]] = []

    def look(job: RunDirectory) -> int:
        seen.append([other.status.state for other in jobs(here)])
        return finish(job)

    use_job(look)
    assert main(["train", "-m", "seed=1,2,3", "name=job-${hydra:job.num}", "hydra.sweeper.max_batch_size=2"]) == 0
    assert seen == [["pending"] * 3, ["finished", "pending", "pending"], ["finished", "finished", "pending"]]
    assert [job.config["name"] for job in jobs(here)] == ["job-0", "job-1", "job-2"]
    places = [(job.config["paths"]["run_dir"], job.config["paths"]["sweep_dir"]) for job in jobs(here)]
    assert places == [(str(job.path), str(sweep_directory(here))) for job in jobs(here)]
    plan = Sweep.open(sweep_directory(here)).plan
    assert plan.overrides[0] == "seed=1,2,3"
    assert plan.jobs.keys() == {"0", "1", "2"}
    assert plan.jobs["2"] == jobs(here)[2].overrides
    assert (plan.on_failure, plan.launcher, plan.draws) == ("continue", {"kind": "basic"}, False)


def test_a_sweep_may_stop_at_a_failure(here: Path, use_job: UseJob) -> None:
    calls = use_job(lambda job: 1 if job.config["seed"] == 2 else finish(job))
    assert main(["train", "-m", "seed=1,2,3", "sweep.on_failure=stop"]) == 1
    assert [job.status.state for job in jobs(here)] == ["finished", "failed", "pending"]
    assert [path.name for path in calls] == ["0", "1"]
    assert jobs(here)[2].overrides == ["seed=3"]


def test_the_command_line_holds_where_a_preset_names_the_key_too(here: Path, calls: list[Path]) -> None:
    assert main(["train", "-m", "sweep=kl_coef", "seed=7"]) == 0
    assert len(calls) == 5
    told = [(job.config["kl"]["coef"], job.config["seed"], job.overrides[-1]) for job in jobs(here)]
    assert told == [(coef, 7, "seed=7") for coef in (0.02, 0.05, 0.1, 0.2, 0.5)]
    assert jobs(here)[0].overrides == ["kl.coef=0.02", "seed=7"]


@pytest.mark.parametrize(("preset", "count"), [("kl_coef", 15), ("peft", 15), ("seeds", 5), ("kl_x_peft", 18)])
def test_a_preset_is_so_many_jobs(here: Path, preset: str, count: int) -> None:
    tree = ConfigTree.load()
    jobs = split_jobs(tree, [f"sweep={preset}", f"paths.outputs={here}"])
    assert len({tuple(job) for job in jobs}) == len(jobs) == count
    first, last = (check_job(tree, tree.parse(job), number=0) for job in (jobs[0], jobs[-1]))
    assert first.settings is not None
    assert first.settings != last.settings
    assert first.problems == last.problems == ()


def test_a_sweep_for_slurm_may_ask_for_gpus_that_are_not_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    overrides = ["seed=1", "trainer=gpu", f"paths.outputs={here}"]
    (checked,) = check_sweep(ConfigTree.load(), ["launcher=submitit_slurm", *overrides])
    assert checked.settings is not None
    with pytest.raises(ConfigError, match="1 GPUs are asked for, and there are 0"):
        check_sweep(ConfigTree.load(), overrides)


@pytest.mark.parametrize("override", ["sweep=kl_coef", "launcher=joblib", "sweep.on_failure=stop"])
def test_what_is_for_sweeps_is_refused_in_a_single_run(
    here: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert main(["train", override]) == 2
    assert "add -m, or drop it" in capsys.readouterr().err
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("override", ["launcher=basic,joblib", "sweep.on_failure=stop,continue", "hydra.verbose=1,2"])
@pytest.mark.usefixtures("here")
def test_what_concerns_the_whole_sweep_is_not_swept(
    calls: list[Path], capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert main(["train", "-m", "seed=1,2", override]) == 2
    assert "cannot be swept" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("override", "node"), [("launcher=joblib", "launcher/joblib"), ("sweep=optuna", "sweeper/optuna")]
)
def test_a_plugin_that_is_missing_is_named_with_its_extra(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    node: str,
) -> None:
    kind, name = node.split("/")
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"][kind], f"{name}.yaml")
    assert main(["train", "-m", "-cd", ".", override]) == 2  # with a folder of its own, the configs are read anew
    said = capsys.readouterr().err
    assert f"Hydra's {kind} {name} is not installed" in said
    assert "pip install 'rlhf-lightning[sweeps]'" in said
    assert not (here / "outputs").exists()


def test_a_sweep_that_goes_on_keeps_its_directory(
    here: Path, calls: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with Sweep(here / "sweep").held(new=True):
        assert main(["train", "-m", "seed=1", "paths.sweep_dir=sweep"]) == 1
    assert "The sweep is going on" in capsys.readouterr().err
    assert calls == []


def test_a_directory_may_have_any_name(here: Path, calls: list[Path]) -> None:
    name = "it's a=sweep, [1]"
    quoted = name.replace("'", "\\'")
    assert main(["train", "-m", "seed=1", f"paths.sweep_dir='{quoted}'"]) == 0
    assert calls == [here / name / "0"]


def test_what_hydra_chooses_later_has_the_sweeps_objective(here: Path, use_job: UseJob) -> None:
    # The best coefficient is 0.2; one of the four jobs fails, and one says nothing of its objective.
    def job(run: RunDirectory) -> int:
        if run.path.name == "1":
            return 1
        coef = run.config["kl"]["coef"]
        run.write_metrics({"objective": float("nan") if run.path.name == "2" else -abs(coef - 0.2)})
        run.update_status(state="finished")
        return 0

    use_job(job)
    command = ["train", "-m", "sweep=optuna", "hydra.sweeper.n_trials=4", "ppo.learning_rate=1e-4", "logger=none"]
    assert main(command) == 1
    states = [run.status.state for run in jobs(here)]
    assert states == ["finished", "failed", "finished", "finished"]
    assert all(run.config["ppo"]["learning_rate"] == 1e-4 for run in jobs(here))
    drawn = [run.config["kl"]["coef"] for run in jobs(here)]
    assert len(set(drawn)) == 4
    best = min((coef for number, coef in enumerate(drawn) if number not in (1, 2)), key=lambda coef: abs(coef - 0.2))
    found = yaml.safe_load((sweep_directory(here) / "optimization_results.yaml").read_text())
    assert found["best_params"] == {"kl.coef": best}
    assert found["best_value"] == pytest.approx(-abs(best - 0.2))


def test_a_study_without_a_result_is_an_error(here: Path, use_job: UseJob, capsys: pytest.CaptureFixture[str]) -> None:
    use_job(lambda _: 1)
    assert main(["train", "-m", "sweep=optuna", "hydra.sweeper.n_trials=1", "logger=none"]) == 1
    assert "No job has an objective" in capsys.readouterr().err
    assert [run.status.state for run in jobs(here)] == ["failed"]


def test_a_study_may_stop_at_a_failure(here: Path, use_job: UseJob) -> None:
    use_job(lambda _: 1)
    command = ["train", "-m", "sweep=optuna", "hydra.sweeper.n_trials=5", "sweep.on_failure=stop", "logger=none"]
    assert main(command) == 1
    assert [run.status.state for run in jobs(here)] == ["failed"]
