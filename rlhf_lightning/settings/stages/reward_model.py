"""Stage `reward_model`: comparisons in, a model that scores replies out."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from rlhf_lightning.settings.marks import StageRef
from rlhf_lightning.settings.section import NonNegative
from rlhf_lightning.settings.stages.stage import LENGTHS, MAX, MIN, Metric, Relief, Stage, TrainedModel, never
from rlhf_lightning.settings.stages.supervised import READ_BY_TRAINING, TRAINING_RELIEF, SupervisedLoop


class RewardModelSettings(SupervisedLoop):
    """Bradley-Terry on pairs."""

    backbone_from: StageRef
    comparisons_from: StageRef
    mix_from: StageRef | None
    mix_ratio: NonNegative
    head: Literal["scalar", "classifier"]
    pairing: Literal["all", "adjacent", "best_versus_rest"]
    margin_coef: NonNegative
    centring_coef: NonNegative

    @model_validator(mode="after")
    def _mixes(self) -> RewardModelSettings:
        if (self.mix_from is None) != (self.mix_ratio == 0.0):
            raise ValueError("mix_from and mix_ratio go together: give both, or mix_from=null and mix_ratio=0")
        return self


REWARD_MODEL = Stage(
    name="reward_model",
    settings=RewardModelSettings,
    module="reward_model",
    reads=(
        *(*READ_BY_TRAINING, *LENGTHS, "data.max_reply_length"),
        *("evaluate.batch_size", "evaluate.bootstrap_samples", "evaluate.seed"),
    ),
    not_read=frozenset({"peft.reuse_trunk"}),
    reads_records=never,
    trained=TrainedModel("A reward model that was trained on comparisons of replies", "backbone_from", "reward model"),
    rounds="epochs",
    metrics=(
        Metric(
            "reward_model/loss",
            MIN,
            "Reward model loss",
            level=math.log(2),
            held_out="reward_model/validation_loss",
        ),
        Metric("reward_model/validation_loss", MIN),
        Metric(
            "reward_model/accuracy",
            MAX,
            "Reward model accuracy",
            level=0.5,
            held_out="reward_model/validation_accuracy",
        ),
        Metric("reward_model/validation_accuracy", MAX),
        Metric("reward_model/margin", title="Reward model margin", level=0.0),
    ),
    relief=Relief(("reward_model.micro_batch_size", "evaluate.batch_size"), TRAINING_RELIEF),
)
