"""Stage `critique_revision`: replies to red-team prompts, critiqued and revised by the constitution's principles."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.settings.marks import NO_EFFECT, FileRef, StageRef
from rlhf_lightning.settings.section import Count, Positive, PromptKinds, Section
from rlhf_lightning.settings.stages.stage import Relief, Stage


class CritiqueRevisionSettings(Section):
    """Replies to red-team prompts, critiqued and revised by the principles of the constitution."""

    policy_from: StageRef
    reviser_from: StageRef
    prompts: Count
    kinds: PromptKinds
    prompts_from: FileRef | None
    last_turn_only: bool
    helpful_kinds: PromptKinds
    helpful_prompts_from: FileRef | None
    fewshots: Literal["auto", "always", "never"]
    batch_size: Annotated[Count, NO_EFFECT]
    temperature: Positive
    max_new_tokens: Count
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


CRITIQUE_REVISION = Stage(
    name="critique_revision",
    settings=CritiqueRevisionSettings,
    module="critique_revision",
    reads=("seed", "constitution", "data.kind"),
    relief=Relief(("critique_revision.batch_size",), ("critique_revision.max_new_tokens", "data.max_prompt_length")),
)
