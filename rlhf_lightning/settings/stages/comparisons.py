"""Stage `comparisons`: training data of the reward model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.settings.marks import StageRef
from rlhf_lightning.settings.section import Count, Section
from rlhf_lightning.settings.stages.stage import BY_EVERY_STAGE, LENGTHS, Relief, Stage

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings


class ComparisonsSettings(Section):
    """Gathering the comparisons that the reward model learns from."""

    policy_from: StageRef
    prompts: Count
    replies: Annotated[int, Field(ge=2)]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


def _are_there(settings: RunSettings) -> bool:
    """True if the data holds comparisons, which only have to be split."""
    return not isinstance(settings.data, CourtesyData)


def _unread(settings: RunSettings) -> frozenset[str]:
    if not _are_there(settings):
        return frozenset()
    return frozenset({"comparisons", "seed", "rollout", *LENGTHS, *BY_EVERY_STAGE})


COMPARISONS = Stage(
    name="comparisons",
    settings=ComparisonsSettings,
    module="comparisons",
    reads=("seed", "reward_model.pairing", "rollout", *LENGTHS, "data.kind", "data.annotator"),
    not_read=frozenset({"rollout.batch_size"}),
    unread=_unread,
    copies_records=_are_there,
    relief=Relief(("rollout.chunk_size",), ("rollout.max_new_tokens", "data.max_prompt_length")),
)
