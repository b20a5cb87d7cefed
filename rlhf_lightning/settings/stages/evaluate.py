"""Stage `evaluate`: the starting policy and the trained ones on the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rlhf_lightning.settings.marks import NO_EFFECT, Named, StageRef
from rlhf_lightning.settings.section import Count, Name, Positive, Section
from rlhf_lightning.settings.stages.stage import JUDGE, LENGTHS, OF_CRITIQUES, Relief, Stage

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings


class EvaluateSettings(Section):
    """The starting policy and the trained ones on the same fixed prompts."""

    policies: Annotated[list[Name], Field(min_length=1), Named("stage", shown=True)]
    reference_from: StageRef
    reward_from: StageRef | None
    splits: Annotated[list[Name], Field(min_length=1)] | None
    prompts: Annotated[int, Field(ge=2)]
    batch_size: Annotated[Count, NO_EFFECT]
    temperature: Positive
    bootstrap_samples: Annotated[int, Field(ge=100)]
    sample_table: Count
    seed: Annotated[int, Field(ge=0)]
    satisfaction: Count | None


def _unread(settings: RunSettings) -> frozenset[str]:
    return frozenset(JUDGE) if settings.evaluate.satisfaction is None else frozenset()


EVALUATE = Stage(
    name="evaluate",
    settings=EvaluateSettings,
    module="evaluate",
    # Not the run's seed: it has one of its own, the same in every run.
    reads=(*JUDGE, "rollout.max_new_tokens", *LENGTHS, "data.kind"),
    not_read=OF_CRITIQUES,
    unread=_unread,
    relief=Relief(("evaluate.batch_size",), ("rollout.max_new_tokens", "data.max_prompt_length")),
)
