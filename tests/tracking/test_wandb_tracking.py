"""W&B runs, read back from their offline files, and what happens when W&B fails."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import wandb
from made_up_constitutions import constitution, principle
from offline_run import recorded

from rlhf_lightning.errors import ConfigError, RunDirectoryError
from rlhf_lightning.evaluation.summary import SampleRow
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.stages.evaluate import EvaluateSettings
from rlhf_lightning.stages.run_settings import PipelineSettings, RunSettings, schema_of
from rlhf_lightning.tracking import wandb_run
from rlhf_lightning.tracking.history_file import series
from rlhf_lightning.tracking.loggers import flatten, open_tracker, run_card
from rlhf_lightning.tracking.settings import FilesOnly, TensorBoardLogging, WandbLogging, logger_problems
from rlhf_lightning.tracking.wandb_client import has_credentials
from rlhf_lightning.tracking.wandb_run import RunCard, WandbRun


def _settings(**changes: Any) -> RunSettings:
    """The sections that tracking reads, and one more to stand for the config."""
    values = {
        "seed": 7,
        "pipeline": PipelineSettings(name="test", stages=["sft", "ppo"]),
        "name": None,
        "notes": "a note",
        "tags": ["first"],
        "optimizer": {"lr": 0.1, "api_key": "sk-1"},
        "constitution": constitution(),
        "logger": WandbLogging(kind="wandb", project="test", entity=None, mode="auto", artifacts="reference"),
    }
    values |= {name: stage.Settings.model_construct(stage=name) for name, stage in STAGES.items()}
    values["evaluate"] = EvaluateSettings.model_construct(stage="evaluate", satisfaction=None)
    return schema_of({name: name for name in STAGES}).model_construct(**(values | changes))


def test_stages_of_one_process_are_runs_of_one_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "2026-03-01" / "10-00-00"
    run_dir.mkdir(parents=True)
    environment = dict(os.environ)
    overrides = ["kl.coef=0.2", "seed=7"]
    caplog.set_level(logging.INFO, "rlhf_lightning")
    with open_tracker(_settings(), run_dir, "sft", overrides) as tracker:
        assert json.loads((run_dir / "wandb" / "sft.json").read_text())["mode"] == "offline", "written at the start"
        for logger in tracker.loggers:
            logger.log_metrics({"sft/loss": 0.5}, step=3)
    with suppress(KeyboardInterrupt), open_tracker(_settings(), run_dir, "ppo", overrides) as tracker:
        for logger in tracker.loggers:
            logger.log_metrics({"objective/kl": 2.0, "rollout/episodes": 64}, step=4)
        tracker.log_summary({"evaluate": {"ppo": {"iid": {"gold_reward": 0.5, "gold_reward_ci": [0.4, 0.6]}}}})
        tracker.log_samples([SampleRow("iid", "how?", "no", "yes", gold_after=1.3)])
        raise KeyboardInterrupt
    sft, ppo = recorded(run_dir, "sft"), recorded(run_dir, "ppo")

    assert sft.run.run_id != ppo.run.run_id
    assert sft.run.run_group == ppo.run.run_group == "2026-03-01_10-00-00"
    assert (sft.run.job_type, ppo.run.job_type) == ("sft", "ppo")
    assert (sft.run.display_name, ppo.run.display_name) == ("sft kl.coef=0.2,seed=7", "ppo kl.coef=0.2,seed=7")
    assert (list(ppo.run.tags), ppo.run.notes) == (["first"], "a note")
    assert ppo.config["seed"] == 7
    assert ppo.config["optimizer"] == {"lr": 0.1, "api_key": "<redacted>"}
    assert (sft.exit_code, ppo.exit_code) == (0, 1)

    assert sft.history == [{"sft/loss": 0.5, "trainer/global_step": 3}]
    assert sft.axes["*"] == "trainer/global_step"
    assert ppo.history[0] == {"objective/kl": 2.0, "rollout/episodes": 64, "trainer/global_step": 4}
    assert ppo.axes["*"] == "rollout/episodes"
    assert ppo.summary["evaluate/ppo/iid/gold_reward"] == 0.5
    assert ppo.summary["evaluate/ppo/iid/gold_reward_ci/high"] == 0.6
    table = json.loads((ppo.directory / "files" / ppo.history[1]["samples.path"]).read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True))["gold_after"] == 1.3

    assert [point.value for point in series(run_dir, "ppo", "objective/kl")] == [2.0], "files hold it as well"
    assert dict(os.environ) == environment, "a job started from here must not inherit W&B's session"
    assert wandb.run is None
    captured = capfd.readouterr()
    assert "wandb" not in captured.out + captured.err, "the terminal is ours"
    said = [record.message.partition(":")[0] for record in caplog.records if record.name.startswith("rlhf_lightning")]
    assert said == ["No W&B API key"], "once, not once a stage"


def _name(tmp_path: Path, *stages: str, name: str | None = "mine", principles: tuple[str, ...] = ("kind",)) -> str:
    settings = _settings(
        name=name,
        constitution=constitution(*map(principle, principles)),
        pipeline=PipelineSettings(name="test", stages=list(stages)),
    )
    assert isinstance(settings.logger, WandbLogging)
    return run_card(settings, settings.logger, tmp_path, stages[0], ["kl.coef=0.2"]).name


def test_a_run_that_goes_by_a_constitution_says_so_with_its_hash(tmp_path: Path) -> None:
    named = _name(tmp_path, "sft", "critique_revision")
    assert re.fullmatch("sft mine test@[0-9a-f]{12}", named)
    assert _name(tmp_path, "ai_feedback") == named.replace("sft", "ai_feedback"), "the same in every stage"
    assert _name(tmp_path, "sft", "critique_revision", principles=("brief",)) != named, "other principles, another hash"
    assert _name(tmp_path, "sft", "critique_revision", name=None) == named.replace("mine", "kl.coef=0.2")


@pytest.mark.parametrize(
    ("stages", "principles"),
    [(("sft", "ppo", "evaluate"), ("kind",)), (("sft", "critique_revision"), ())],
)
def test_a_run_that_goes_by_none_does_not(tmp_path: Path, stages: tuple[str, ...], principles: tuple[str, ...]) -> None:
    assert _name(tmp_path, *stages, principles=principles) == f"{stages[0]} mine"


CARD = RunCard("test", None, "group", "sft", "sft x", ["t"], None, {"seed": 1}, STAGES["sft"].logged)


def test_no_secret_leaves_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the config, nor in a name, nor in the command that the client notes by itself."""
    monkeypatch.setattr(
        sys, "argv", ["rlhf", "train", "optimizer.api_key=sk-1", "data=https://me:sk-1@host/x", "seed=7"]
    )
    with open_tracker(_settings(), tmp_path, "sft", ["optimizer.api_key=sk-1"]):
        assert sys.argv[2] == "optimizer.api_key=sk-1", "the run itself is told it"
    run = recorded(tmp_path, "sft")
    assert list(run.arguments) == ["train", "optimizer.api_key=<redacted>", "data=https://<redacted>@host/x", "seed=7"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if b"sk-1" in path.read_bytes()]


def test_a_resumed_stage_continues_its_run(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with WandbRun(CARD, tmp_path, "offline") as tracked:
            assert tracked.run is not None
            ids.append(tracked.run.id)
    assert ids[0] == ids[1]


def test_an_unreachable_server_means_offline_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes = []
    real_init = wandb.init

    def init(**options: Any) -> wandb.Run:
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("Timed out\nConsider increasing the init_timeout setting")
        return real_init(**options)

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "_unreachable_servers", set())
    for _ in range(2):
        with WandbRun(CARD, tmp_path, "auto") as tracked:
            assert tracked.run is not None
            assert tracked.run.offline
    assert modes == ["online", "offline", "offline"]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot be used (Timed out); logging offline" in warnings[0]


def test_a_client_that_fails_costs_one_warning_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        id, name, entity, offline, url = "1", "n", "", True, None
        dir = str(tmp_path / "files")

        def define_metric(self, *_: Any, **__: Any) -> None: ...

        def log(self, _: dict[str, float], **__: Any) -> None:
            raise ConnectionResetError("Connection lost")

        def finish(self, exit_code: int) -> None:
            finished.append(exit_code)
            raise ConnectionResetError("Connection lost")

    finished: list[int] = []
    monkeypatch.setattr(wandb, "init", lambda **_: Failing())
    with WandbRun(CARD, tmp_path, "offline") as tracked:
        tracked.log({"a": 1.0})
        tracked.log({"a": 2.0})
        tracked.summarize({"a": 2.0})
        assert tracked.run is None
    assert [record.message for record in caplog.records] == [
        "W&B failed (Connection lost); from here on this stage is logged to files only."
    ]
    assert finished == [1], "tried once, and said no word"


def test_our_own_defects_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(wandb, "init", broken)
    with pytest.raises(KeyError, match="ours"), WandbRun(CARD, tmp_path, "offline"):
        pass


def test_a_run_whose_start_fails_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("not,what,it,should\nbe,1,2,3\n")
    with pytest.raises(RunDirectoryError, match="line 1"), WandbRun(CARD, tmp_path, "offline"):
        pass
    assert recorded(tmp_path, "sft").exit_code == 1


def test_files_only_opens_nothing_else(tmp_path: Path) -> None:
    with open_tracker(_settings(logger=FilesOnly(kind="none")), tmp_path, "sft", []) as tracker:
        (history,) = tracker.loggers
        history.log_metrics({"sft/loss": 1.0}, step=0)
        tracker.log_summary({"a": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_other_ranks_open_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with open_tracker(_settings(), tmp_path, "sft", []) as tracker:
        assert len(tracker.loggers) == 1
    assert not (tmp_path / "wandb").exists()


def test_what_a_logger_needs_is_known_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online = WandbLogging(kind="wandb", project="test", entity=None, mode="online", artifacts="none")
    (problem,) = logger_problems(online)
    assert problem.key == "logger.mode"
    with (
        pytest.raises(ConfigError, match="there is no W&B API key"),
        open_tracker(_settings(logger=online), tmp_path, "sft", []),
    ):
        pass
    monkeypatch.setattr("rlhf_lightning.tracking.settings.find_spec", lambda _: None)
    (problem,) = logger_problems(TensorBoardLogging(kind="tensorboard"))
    assert "not installed" in problem.what
    assert logger_problems(FilesOnly(kind="none")) == []


def test_credentials_are_found_where_the_client_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_credentials()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password " + "a" * 40 + "\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert has_credentials()
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert has_credentials()


def test_nested_figures_are_named_by_their_path() -> None:
    figures = {"ppo": {"kl": 2, "kl_ci": [1.0, 3.0], "none": None, "ok": True}, "best": "longer", "list": [1, 2, 3]}
    assert flatten(figures) == {
        "ppo/kl": 2,
        "ppo/kl_ci/low": 1.0,
        "ppo/kl_ci/high": 3.0,
        "ppo/ok": True,
        "best": "longer",
        "list": "[1, 2, 3]",
    }


@pytest.mark.slow
def test_a_server_that_does_not_answer_does_not_hold_up_the_run(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from rlhf_lightning.evaluation.metrics import LoggedMetrics
from rlhf_lightning.tracking import wandb_run
wandb_run.INIT_SECONDS = 2.0
card = wandb_run.RunCard("test", None, "group", "sft", "sft x", [], None, {{}}, LoggedMetrics())
with wandb_run.WandbRun(card, Path({str(tmp_path)!r}), "auto") as tracked:
    assert tracked.run.offline
    tracked.log({{"a": 1.0}})
"""
    environment = os.environ | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "logging offline instead" in done.stderr
    assert recorded(tmp_path, "sft").history[0]["a"] == 1.0
