"""`reproduce.sh` finds the code that a run executed; figures are compared to the last bit; what stands in the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import ConfigError, ReproductionError, RunDirectoryError
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.provenance import gather_provenance, git_state, write_script
from rlhf_lightning.runs.reproduction import ABSENT, Comparison, Difference, Rerun, compare_figures, prepare
from rlhf_lightning.runs.run import Outcome
from rlhf_lightning.stages.run_directory import PROVENANCE, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

Build = Callable[..., RunDirectory]


def test_figures_are_compared_by_name_and_to_the_last_bit() -> None:
    first = {"objective": 0.1 + 0.2, "stages": {"ppo": {"kl": None, "ci": [1.0, 2.0], "seconds": 3.0, "key": "a"}}}
    second = {"objective": 0.3, "stages": {"ppo": {"kl": None, "ci": [1.0, 2.5], "seconds": 4.0, "memory": {"a": 1}}}}
    same = compare_figures(first, json.loads(json.dumps(first)))
    assert same == Comparison(4, ())  # objective, kl, ci.0, ci.1
    assert compare_figures(first, second).differences == (
        Difference("objective", 0.30000000000000004, 0.3),
        Difference("stages.ppo.ci.1", 2.0, 2.5),
    )


def test_a_figure_that_only_one_run_has_differs() -> None:
    assert compare_figures({"a": 1}, {"b": 0}).differences == (
        Difference("a", 1, ABSENT),
        Difference("b", ABSENT, 0),
    )
    assert compare_figures({"a": 1}, {"a": 1.0}).differences == (Difference("a", 1, 1.0),)
    assert compare_figures({"a": 0}, {"a": None}).differences == (Difference("a", 0, None),)


# reproduce.sh, with a Python in its place that says what it was called with.


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An "interpreter" that writes down its arguments, its settings and the package that it would import."""
    path = tmp_path / "an interpreter's folder" / "python"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable} -I\n"
        "import json, os, pathlib, sys\n"
        "code = pathlib.Path(os.environ.get('PYTHONPATH', '').partition(':')[0])\n"
        "files = {path.name: path.read_text() for path in (code / 'package').glob('*.py')}\n"
        "said = {'arguments': sys.argv[1:], 'safe': os.environ['PYTHONSAFEPATH'], 'code': str(code), 'files': files}\n"
        "pathlib.Path('said.json').write_text(json.dumps(said))\n"
        "sys.exit(3)\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def scripted(tmp_path: Path, python: Path, composed: Callable[..., RunSettings]) -> Callable[..., Path]:
    """The directory of a run, moved after its script was written, given the state of its checkout."""

    def build(git: dict[str, Any] | None) -> Path:
        run = RunDirectory.create(tmp_path / "first", composed().model_dump(mode="json"), ["kl.coef=0.1"])
        write_script(run, {"interpreter": str(python), "git": git})
        return run.path.rename(tmp_path / "the run's $(place)")

    return build


def call(run: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs a script from its run's parent; what the interpreter said, if it came to that."""
    done = subprocess.run(
        ["bash", str(run / "reproduce.sh"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=run.parent,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
    )
    said = run.parent / "said.json"
    return done, json.loads(said.read_text()) if said.exists() else {}


def test_the_script_takes_commit_changes_and_new_files(
    checkout: Path, scripted: Callable[..., Path], git: Callable[..., str]
) -> None:
    (checkout / "code.py").write_text("x = 2\r\ny = 'é'\n")
    (checkout / "new one.py").write_text("z = 3\n")
    run = scripted(git_state(checkout))
    git(checkout.parent, "commit", "-a", "-m", "two")
    (checkout / "code.py").write_text("x = 4\n")
    done, said = call(run, "--to", "some where", "logger=wandb")
    assert done.returncode == 3, done.stderr  # the interpreter's
    assert said["arguments"] == ["-m", "rlhf_lightning", "rerun", str(run), "--to", "some where", "logger=wandb"]
    assert said["safe"] == "1"
    assert said["files"] == {"code.py": "x = 2\ny = 'é'\n", "new one.py": "z = 3\n"}  # read with universal newlines
    assert not Path(said["code"]).exists()
    assert len(git(checkout.parent, "worktree", "list").splitlines()) == 1, "nothing is left in the repository"
    assert (checkout / "code.py").read_text() == "x = 4\n"


def test_a_clean_checkout_needs_no_patch(checkout: Path, scripted: Callable[..., Path]) -> None:
    run = scripted(git_state(checkout))
    assert not (run / "changes.patch").exists()
    _, said = call(run)
    assert said["files"] == {"code.py": "x = 1\n"}


def test_a_commit_that_is_gone_is_named_with_the_way_out(
    checkout: Path, scripted: Callable[..., Path], tmp_path: Path
) -> None:
    state = git_state(checkout)
    assert state is not None
    run = scripted(state)
    moved = checkout.parent.rename(tmp_path / "moved")
    done, said = call(run)
    assert (done.returncode, said) == (2, {})
    assert f"Commit {state['commit']} is not in" in done.stderr
    assert "RLHF_REPOSITORY" in done.stderr
    _, said = call(run, RLHF_REPOSITORY=str(moved))
    assert said["files"] == {"code.py": "x = 1\n"}


def test_without_a_checkout_the_installed_package_is_called(scripted: Callable[..., Path]) -> None:
    run = scripted(None)
    done, said = call(run)
    assert done.returncode == 3
    assert said["arguments"] == ["-m", "rlhf_lightning", "rerun", str(run)]
    assert said["code"] == "."


def test_an_interpreter_that_is_gone_is_named(scripted: Callable[..., Path], python: Path) -> None:
    run = scripted(None)
    moved = python.rename(python.with_name("another"))
    done, _ = call(run)
    assert done.returncode == 2
    assert f"There is no {python}: set RLHF_PYTHON" in done.stderr
    assert call(run, RLHF_PYTHON=str(moved))[0].returncode == 3


def test_changes_with_a_secret_are_not_kept_and_so_not_replayed(checkout: Path, scripted: Callable[..., Path]) -> None:
    (checkout / "code.py").write_text("API_KEY=abc123\n")
    run = scripted(git_state(checkout))
    assert not (run / "changes.patch").exists()
    assert "abc123" not in (run / "reproduce.sh").read_text()
    done, said = call(run)
    assert done.returncode == 3
    assert said["code"] == "."  # and rlhf rerun sees whether that is the same code


# What is prepared, and what is refused.


@pytest.fixture
def run_of(finished_run: Build, composed: Callable[..., RunSettings]) -> Build:
    """Builds finished runs that note where they came from: overrides, then changes of that note."""

    def build(*overrides: str, **origin: Any) -> RunDirectory:
        run = finished_run(*overrides)
        whole = gather_provenance(composed(*overrides), overrides)
        run.write_json(PROVENANCE, {**whole, "arithmetic": {"threads": 7}, **origin})
        return run

    return build


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def test_a_rerun_has_the_runs_config_but_tells_nobody_and_reuses_nothing(tree: ConfigTree, run_of: Build) -> None:
    run = run_of("kl.coef=0.25", "seed=3", "trainer.threads=null")
    first = prepare(tree, run.path, None, [])
    assert first.target == run.path.with_name("run-rerun")
    plain = first.settings.model_dump(mode="json")
    assert plain == {
        **run.config,
        "logger": {"kind": "none"},
        "cache": {**plain["cache"], "mode": "off"},
        "paths": {**run.config["paths"], "run_dir": str(first.target)},
        "trainer": {**run.config["trainer"], "threads": 7},
    }
    assert first.overrides == ("kl.coef=0.25", "seed=3", "trainer.threads=null")
    assert first.obstacles() == []
    first.target.mkdir()
    assert prepare(tree, run.path, None, []).target == run.path.with_name("run-rerun-2")


def test_a_model_of_the_hub_is_taken_at_the_commit_that_it_had(tree: ConfigTree, run_of: Build) -> None:
    run = run_of("pipeline=sft", "model=hub", "model.name_or_path=someone/small", hub={"someone/small": "a1b2"})
    assert prepare(tree, run.path, None, []).settings.model_dump()["model"]["revision"] == "a1b2"


def test_what_does_not_touch_the_result_may_be_given_anew(tree: ConfigTree, run_of: Build, tmp_path: Path) -> None:
    run = run_of("callbacks.sample_log_every=3", "trainer.threads=2")
    given = ["logger=wandb", "logger.mode=offline", "callbacks.progress_bar=false", "name=again"]
    rerun = prepare(tree, run.path, tmp_path / "there", given)
    settings = rerun.settings
    assert (settings.logger.kind, settings.name, settings.trainer.threads) == ("wandb", "again", 2)
    assert (settings.callbacks.progress_bar, settings.callbacks.sample_log_every) == (False, 3)
    assert rerun.target == tmp_path / "there"


def test_an_override_that_decides_the_result_is_refused(tree: ConfigTree, run_of: Build) -> None:
    run = run_of()
    with pytest.raises(ConfigError) as caught:
        prepare(tree, run.path, None, ["kl.coef=0.3", "callbacks.extra=[]", "name=x"])
    assert [problem.key for problem in caught.value.problems] == ["kl.coef", "callbacks.extra"]


def test_the_environment_is_the_runs_where_it_decides_bits(
    tree: ConfigTree, run_of: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(environment={"OMP_NUM_THREADS": "3"})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    monkeypatch.setenv("WANDB_MODE", "offline")
    environment = prepare(tree, run.path, None, []).environment()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "PYTHONHASHSEED" not in environment
    assert environment["WANDB_MODE"] == "offline"


def test_what_decides_the_figures_and_has_changed_is_named(tree: ConfigTree, run_of: Build, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n")
    run = run_of("data=hh_rlhf", f"data.path={pairs}", "model=scratch", "evaluate.reward_from=null")
    origin = run.provenance
    assert origin is not None
    packages = {**origin["packages"], "torch": "1.0"}
    sft = {**origin["stages"]["sft"], "code": {"rlhf_lightning": "0"}}
    machine = {**origin["machine"], "cpu": "Z80"}
    changed = {"packages": packages, "machine": machine, "stages": {**origin["stages"], "sft": sft}}
    run.write_json(PROVENANCE, {**origin, **changed})
    pairs.write_text('{"changed": 1}\n')
    rerun = prepare(tree, run.path, None, [])
    torch = origin["packages"]["torch"]
    assert rerun.obstacles() == [
        f"torch 1.0 -> {torch}",
        "the base model",
        "the code of rlhf_lightning",
        "the content of data.path",
    ]
    assert rerun.doubts() == [f"cpu Z80 -> {origin['machine']['cpu']}"]


def test_changed_data_is_refused_before_anything_starts(
    run_of: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n")
    run = run_of("data=hh_rlhf", f"data.path={pairs}", "model=scratch", "evaluate.reward_from=null")
    pairs.write_text('{"changed": 1}\n')
    assert main(["rerun", str(run.path), "logger=none"]) == 2
    said = capsys.readouterr().err
    assert "the content of data.path" in said
    assert f"bash {run.path}/reproduce.sh" in said
    assert not run.path.with_name("run-rerun").exists()


def test_figures_that_differ_are_shown_and_kept(
    run_of: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of()

    def carried_out(self: Rerun) -> tuple[RunDirectory, Outcome]:
        again = RunDirectory.create(self.target, self.settings.model_dump(mode="json"), self.overrides)
        assert run.metrics is not None
        stages = {**run.metrics["stages"], "ppo": {"prompts": 1794, "score": 0.25}}
        again.write_metrics({**run.metrics, "stages": stages})
        return again, Outcome("finished", 0)

    monkeypatch.setattr(Rerun, "run", carried_out)
    assert main(["rerun", str(run.path)]) == 3
    # 2 of SFT, 8 of the reward model with its two intervals, 2 of PPO, 4 of each of 2 policies on 2 splits.
    assert "Not the same: 1 of 28 figures differ." in capsys.readouterr().out
    kept = json.loads((run.path.with_name("run-rerun") / "reproduction.json").read_text())
    assert kept["differences"] == [{"name": "stages.ppo.score", "first": 0.2, "second": 0.25}]


def test_a_run_that_went_on_under_other_conditions_says_so(tree: ConfigTree, run_of: Build) -> None:
    run = run_of()
    origin = run.provenance
    assert origin is not None
    later = {**origin, "packages": {**origin["packages"], "torch": "9.9"}}
    run.write_json(PROVENANCE, {**origin, "resumed": [later, later]})
    doubts = prepare(tree, run.path, None, []).doubts()
    assert doubts == [f"when the run was resumed: torch {origin['packages']['torch']} -> 9.9"]


def test_relative_paths_are_meant_from_where_the_run_was_started(
    tree: ConfigTree, run_of: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "pairs.jsonl").write_text("{}\n")
    with monkeypatch.context() as patch:
        patch.chdir(place)
        run = run_of("data=hh_rlhf", "data.path=pairs.jsonl", "model=scratch", "evaluate.reward_from=null")
    assert prepare(tree, run.path, None, []).obstacles() == []
    (place / "pairs.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"pairs\.jsonl does not exist"):
        prepare(tree, run.path, None, [])


def test_a_run_without_figures_cannot_be_compared_with(tree: ConfigTree, run_of: Build) -> None:
    run = run_of()
    run.update_status(state="interrupted")
    with pytest.raises(ReproductionError, match="finished"):
        prepare(tree, run.path, None, [])


def test_a_directory_that_is_taken_is_refused(tree: ConfigTree, run_of: Build) -> None:
    run = run_of()
    with pytest.raises(RunDirectoryError):
        prepare(tree, run.path, run.path, [])


def test_a_config_of_another_version_is_sent_to_the_script(tree: ConfigTree, run_of: Build) -> None:
    run = run_of()
    run.write_settings({**run.config, "gone": 1}, [])
    with pytest.raises(ReproductionError, match="gone") as caught:
        prepare(tree, run.path, None, [])
    assert "reproduce.sh" in (caught.value.fix or "")
