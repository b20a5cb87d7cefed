"""`rlhf train`: a single run from the command line to its directory, and the ways it can end."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.cli.main import main
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

UsePipeline = Callable[[Callable[[RunSettings, RunDirectory], None]], None]


def nothing(*_: object) -> None:
    """A pipeline that has no work."""


def latest(here: Path) -> RunDirectory:
    return RunDirectory.open((here / "outputs" / "latest").resolve())


def test_each_run_records_what_it_was_told_and_how_it_ended_in_its_own_directory(
    here: Path, use_pipeline: UsePipeline
) -> None:
    def pipeline(settings: RunSettings, run_dir: RunDirectory) -> None:
        assert run_dir.status.state == "running"
        assert settings.kl.kind == "fixed"
        run_dir.update_status(stage="sft")
        run_dir.write_metrics({"objective": settings.seed})

    use_pipeline(pipeline)
    assert main(["train", "seed=7", "kl.coef=0.25", "+optimizer.amsgrad=true"]) == 0
    run = latest(here)
    assert run.overrides == ["seed=7", "kl.coef=0.25", "optimizer.amsgrad=true"]
    assert (run.config["kl"]["kind"], run.config["kl"]["coef"]) == ("fixed", 0.25)
    assert run.config["optimizer"]["amsgrad"] is True
    assert run.config["paths"]["run_dir"] == str(run.path)
    assert run.metrics == {"objective": 7}
    assert run.status.state == "finished"
    assert run.status.stage is None
    assert json.loads((run.path / "provenance.json").read_text())["overrides"] == run.overrides
    assert not (run.path / ".hydra").exists()
    use_pipeline(nothing)
    assert main(["train", "seed=2"]) == 0
    assert len(list(here.glob("outputs/runs/*/*"))) == 2
    assert latest(here).config["seed"] == 2


def test_an_error_of_the_user_fails_the_run_with_its_message(
    here: Path, use_pipeline: UsePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    def pipeline(_: RunSettings, run_dir: RunDirectory) -> None:
        run_dir.update_status(stage="ppo")
        raise ArtifactError("This is a policy.", where="reward_model/", fix="name a reward model")

    use_pipeline(pipeline)
    assert main(["train"]) == 1
    status = latest(here).status
    assert (status.state, status.stage) == ("failed", "ppo")
    assert status.error is not None
    assert (status.error.what, status.error.fix) == ("This is a policy.", "name a reward model")
    printed = capsys.readouterr().err
    assert "This is a policy." in printed
    assert "defect" not in printed
    assert "Traceback" not in printed


def test_a_defect_is_owned_and_its_traceback_kept(
    here: Path, use_pipeline: UsePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    def pipeline(*_: object) -> None:
        raise ZeroDivisionError("of ours")

    use_pipeline(pipeline)
    assert main(["train"]) == 1
    run = latest(here)
    assert run.status.state == "failed"
    assert "ZeroDivisionError: of ours" in (run.path / "error.log").read_text()
    printed = capsys.readouterr().err
    assert "defect of rlhf_lightning" in printed
    assert str(run.path / "error.log") in printed


def keyboard_interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def exit_as_lightning_does(*_: object) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("pipeline", [keyboard_interrupt, terminate, exit_as_lightning_does])
def test_an_interruption_is_no_failure_and_says_how_to_go_on(
    here: Path,
    use_pipeline: UsePipeline,
    capsys: pytest.CaptureFixture[str],
    pipeline: Callable[[RunSettings, RunDirectory], None],
) -> None:
    def interrupted(settings: RunSettings, run_dir: RunDirectory) -> None:
        run_dir.update_status(stage="sft")
        pipeline(settings, run_dir)

    use_pipeline(interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", "paths.run_dir=mine"]) == 130
    status = latest(here).status
    assert (status.state, status.stage, status.error) == ("interrupted", "sft", None)
    assert "Interrupted. To go on: rlhf train resume=mine" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_exit_of_a_stage_without_interruption_is_a_failure(here: Path, use_pipeline: UsePipeline) -> None:
    use_pipeline(lambda *_: sys.exit(3))
    assert main(["train"]) == 1
    assert latest(here).status.state == "failed"


def test_a_directory_with_a_run_is_refused_before_anything_is_touched(
    here: Path, use_pipeline: UsePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    use_pipeline(nothing)
    assert main(["train", "paths.run_dir=mine", "seed=1"]) == 0
    assert main(["train", "paths.run_dir=mine", "seed=2"]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert RunDirectory.open(here / "mine").config["seed"] == 1
    assert main(["train", "hydra.run.dir=mine", "seed=2"]) == 1


def test_a_directory_that_cannot_be_made_is_refused(
    here: Path, use_pipeline: UsePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    use_pipeline(lambda *_: pytest.fail("the run must not start"))
    (here / "file").touch()
    assert main(["train", "paths.run_dir=file/run"]) == 1
    assert "a file is in the way" in capsys.readouterr().err
    assert main(["train", "paths.outputs=file"]) == 1
    assert main(["train", "hydra.run.dir=/proc/nothing/can/be/made/here"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_further_process_joins_the_run_and_leaves_its_records_alone(
    here: Path, use_pipeline: UsePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pipeline(nothing)
    assert main(["train", "seed=4", "paths.run_dir=mine"]) == 0
    run = RunDirectory.open(here / "mine")
    run.update_status(state="running")
    before = {name: (run.path / name).read_bytes() for name in ("status.json", "provenance.json", "run.log")}
    seeds: list[int] = []
    use_pipeline(lambda settings, _: seeds.append(settings.seed))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run-job", "mine"]) == 0
    assert seeds == [4]
    assert {name: (run.path / name).read_bytes() for name in before} == before


def test_the_run_log_has_our_lines_and_others_warnings(here: Path, use_pipeline: UsePipeline) -> None:
    def pipeline(*_: object) -> None:
        logging.getLogger("rlhf_lightning.stage").info("stage sft begins")
        warnings.warn("a library is worried", stacklevel=1)

    use_pipeline(pipeline)
    main(["train"])
    text = (latest(here).path / "run.log").read_text()
    assert "stage sft begins" in text
    assert "a library is worried" in text


def test_flags_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=5", "--cfg", "job", "kl=none", "-p", "kl"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"kind": "none"}


def test_cfg_shows_a_config_whose_values_are_still_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "data=hh_rlhf", "model=scratch"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["path"] == "???"


def test_cfg_never_advises_a_plus_sign(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "kl.coeff=1"]) == 2
    printed = capsys.readouterr().err
    assert "did you mean kl.coef?" in printed
    assert "+kl" not in printed


def test_resolve_works_out_interpolations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "--resolve", "paths.outputs=there", "-p", "paths"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_dir"].startswith("there/runs/2")


def test_a_folder_of_ones_own_options_goes_first(
    here: Path, use_pipeline: UsePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "short.yaml").write_text("# @package _global_\nsft:\n  epochs: 9\n")
    use_pipeline(nothing)
    assert main(["train", "--config-dir", "mine", "experiment=short"]) == 0
    assert latest(here).config["sft"]["epochs"] == 9
    assert main(["train", "-cd", "mine", "--help"]) == 0
    assert "short" in capsys.readouterr().out
    assert main(["train", "-cd", "nowhere"]) == 2
