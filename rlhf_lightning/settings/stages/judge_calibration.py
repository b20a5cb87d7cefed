"""Stage `judge_calibration`: agreement of the judge with human labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.settings.marks import FileRef
from rlhf_lightning.settings.section import Section
from rlhf_lightning.settings.stages.stage import JUDGE, OF_CRITIQUES, Relief, Stage

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings


class JudgeCalibrationSettings(Section):
    """Agreement of the judge with human labels."""

    pairs: Annotated[int, Field(ge=20)]
    data: FileRef | None
    bootstrap_samples: Annotated[int, Field(ge=100)]


def _unread(settings: RunSettings) -> frozenset[str]:
    """`reward_model.pairing`, unless pairs are built from the data's rankings; else nothing."""
    of_the_data = not isinstance(settings.data, CourtesyData) and settings.judge_calibration.data is None
    return frozenset() if of_the_data else frozenset({"reward_model.pairing"})


JUDGE_CALIBRATION = Stage(
    name="judge_calibration",
    settings=JudgeCalibrationSettings,
    module="judge_calibration",
    reads=("seed", *JUDGE, "data.kind", "reward_model.pairing", "callbacks.plots"),
    not_read=OF_CRITIQUES,
    unread=_unread,
    relief=Relief(("judge.batch_size",), ("judge=openai",)),
)
