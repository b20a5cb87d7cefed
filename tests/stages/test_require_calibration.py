"""Labels of a judge that is not worth it, or that was not the one measured, are refused before any is made."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_constitutions import constitution, principle

from rlhf_lightning.constitutions.identity import judge_hash
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.feedback.settings import JudgeSettings
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.stages.ai_feedback import require_calibration
from rlhf_lightning.stages.judging import CALIBRATION, judge_terms

CONSTITUTION = constitution(principle("kind"))
VERDICT = "At chance: right on 50.0%."


@pytest.fixture(scope="module")
def judge() -> JudgeSettings:
    settings = check_run(ConfigTree.load(), ["pipeline=constitutional"]).settings
    assert settings is not None
    return settings.judge


def context(calibrated_by: str | None, judge: JudgeSettings, on_failure: str = "refuse") -> Any:
    feedback = SimpleNamespace(calibration_from=calibrated_by, on_failed_calibration=on_failure)
    settings = SimpleNamespace(constitution=CONSTITUTION, judge=judge)
    inputs = SimpleNamespace(records_of=Path)
    return SimpleNamespace(name="ai_feedback", settings=settings, section=lambda _: feedback, inputs=inputs)


def calibrated(directory: Path, judge: JudgeSettings, **changes: Any) -> str:
    figures = {
        "constitution": "test",
        "constitution_hash": judge_hash(CONSTITUTION),
        "judge_terms": judge_terms(judge),
        "worth_training_on": True,
        "verdict": VERDICT,
    }
    (directory / CALIBRATION).write_text(json.dumps({**figures, **changes}))
    return str(directory)


def test_a_judge_that_is_worth_it_may_label(tmp_path: Path, judge: JudgeSettings) -> None:
    require_calibration(context(calibrated(tmp_path, judge), judge))
    require_calibration(context(calibrated(tmp_path, judge, worth_training_on=None), judge))  # no principles: no judge


def test_one_that_is_not_is_refused_or_warned_of(
    tmp_path: Path, judge: JudgeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    directory = calibrated(tmp_path, judge, worth_training_on=False)
    with pytest.raises(ArtifactError, match="no better than a trivial baseline's: At chance") as refused:
        require_calibration(context(directory, judge))
    assert "ai_feedback.on_failed_calibration=warn" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        require_calibration(context(directory, judge, on_failure="warn"))
    assert VERDICT in caplog.text


def test_another_constitution_or_another_way_of_asking_is_refused(tmp_path: Path, judge: JudgeSettings) -> None:
    with pytest.raises(ArtifactError, match="under another constitution"):
        require_calibration(context(calibrated(tmp_path, judge, constitution_hash="0" * 12), judge))
    pairwise = judge.model_copy(update={"mode": "pairwise"})
    with pytest.raises(ArtifactError, match="asked in another way"):
        require_calibration(context(calibrated(tmp_path, judge), pairwise))
    elsewhere = judge.model_copy(update={"model_from": "some/other/place", "batch_size": 3})
    require_calibration(context(calibrated(tmp_path, judge), elsewhere))


def test_without_a_calibration_it_says_so(
    tmp_path: Path, judge: JudgeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ArtifactError, match="no calibration there"):
        require_calibration(context(str(tmp_path), judge))
    with caplog.at_level(logging.WARNING):
        require_calibration(context(None, judge))
    assert "was not measured" in caplog.text
