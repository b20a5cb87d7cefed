"""Stages `sft` and `revision_sft`: demonstrations and a base model in, a policy that imitates them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.settings.marks import StageRef
from rlhf_lightning.settings.section import OpenFraction
from rlhf_lightning.settings.stages.stage import FROM_DATA, LENGTHS, MIN, Metric, Relief, Stage, TrainedModel
from rlhf_lightning.settings.stages.supervised import READ_BY_TRAINING, TRAINING_RELIEF, SupervisedLoop

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings


class SftSettings(SupervisedLoop):
    """Supervised fine-tuning on demonstrations."""

    policy_from: StageRef
    demonstrations_from: StageRef
    held_out_fraction: OpenFraction


def _sft(name: str, title: str, loss: str) -> Stage:
    def reads_records(settings: RunSettings) -> bool:
        return cast(SftSettings, getattr(settings, name)).demonstrations_from == FROM_DATA

    def unread(settings: RunSettings) -> frozenset[str]:
        made = isinstance(settings.data, CourtesyData) and reads_records(settings)
        return frozenset() if made else frozenset({"data.demonstrations", "data.demonstrator"})

    return Stage(
        name=name,
        settings=SftSettings,
        module="sft",
        reads=(
            *(*READ_BY_TRAINING, *LENGTHS, "data.kind", "data.max_reply_length"),
            *("data.demonstrations", "data.demonstrator"),
        ),
        not_read=frozenset({"peft.reuse_trunk"}),
        unread=unread,
        reads_records=reads_records,
        trained=TrainedModel(title, started_from="policy_from"),
        rounds="epochs",
        metrics=(
            Metric("sft/loss", MIN, loss, "nats a token", held_out="sft/validation_loss"),
            Metric("sft/validation_loss", MIN),
        ),
        relief=Relief((f"{name}.micro_batch_size",), TRAINING_RELIEF),
    )


SFT = _sft("sft", "A language model that was fine-tuned on demonstrations", "SFT loss")
REVISION_SFT = _sft(
    "revision_sft",
    "A language model that was fine-tuned on revisions by the principles of a constitution",
    "SFT loss on revisions",
)
