"""The stages, each declared in a file of its own: its settings, the keys it reads, its inputs and its model."""

from __future__ import annotations

from rlhf_lightning.settings.stages.ai_feedback import AI_FEEDBACK
from rlhf_lightning.settings.stages.comparisons import COMPARISONS
from rlhf_lightning.settings.stages.critique_revision import CRITIQUE_REVISION
from rlhf_lightning.settings.stages.evaluate import EVALUATE
from rlhf_lightning.settings.stages.judge_calibration import JUDGE_CALIBRATION
from rlhf_lightning.settings.stages.ppo import PPO
from rlhf_lightning.settings.stages.reward_model import REWARD_MODEL
from rlhf_lightning.settings.stages.sft import REVISION_SFT, SFT
from rlhf_lightning.settings.stages.stage import Stage

_IN_ORDER = (
    *(SFT, CRITIQUE_REVISION, REVISION_SFT, COMPARISONS, JUDGE_CALIBRATION, AI_FEEDBACK, REWARD_MODEL, PPO, EVALUATE),
)

STAGES: dict[str, Stage] = {stage.name: stage for stage in _IN_ORDER}
"""All stages by name, in the order in which a pipeline can have them."""

TRAINED = {name: stage.trained for name, stage in STAGES.items() if stage.trained is not None}
"""The models that stages train, by stage."""
