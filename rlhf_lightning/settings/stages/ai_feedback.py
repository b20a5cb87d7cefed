"""Stage `ai_feedback`: comparisons by a judge under the constitution."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.settings.marks import NO_EFFECT, StageRef
from rlhf_lightning.settings.section import Count, PromptKinds, Section
from rlhf_lightning.settings.stages.stage import JUDGE, LENGTHS, OF_CRITIQUES, Relief, Stage


class AiFeedbackSettings(Section):
    """Comparisons by a judge under the constitution."""

    policy_from: StageRef
    calibration_from: StageRef | None
    on_failed_calibration: Literal["refuse", "warn"]
    prompts: Count
    replies: Annotated[int, Field(ge=2)]
    kinds: PromptKinds
    batch_size: Annotated[Count, NO_EFFECT]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


AI_FEEDBACK = Stage(
    name="ai_feedback",
    settings=AiFeedbackSettings,
    module="ai_feedback",
    reads=("seed", *JUDGE, "rollout", *LENGTHS, "data.kind"),
    not_read=OF_CRITIQUES | {"rollout.batch_size"},
    relief=Relief(
        ("ai_feedback.batch_size", "rollout.chunk_size", "judge.batch_size"),
        ("rollout.max_new_tokens", "data.max_prompt_length", "judge=openai"),
    ),
)
