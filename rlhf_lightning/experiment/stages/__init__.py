"""The stages, by name."""

from rlhf_lightning.experiment.stage import StageFunction
from rlhf_lightning.experiment.stages.ai_feedback import run_ai_feedback
from rlhf_lightning.experiment.stages.comparisons import run_comparisons
from rlhf_lightning.experiment.stages.critique_revision import run_critique_revision
from rlhf_lightning.experiment.stages.evaluate import run_evaluate
from rlhf_lightning.experiment.stages.judge_calibration import run_judge_calibration
from rlhf_lightning.experiment.stages.ppo import run_ppo
from rlhf_lightning.experiment.stages.reward_model import run_reward_model
from rlhf_lightning.experiment.stages.sft import run_sft
from rlhf_lightning.settings.readers import TRAINING
from rlhf_lightning.settings.run import StageName

STAGE_FUNCTIONS: dict[StageName, StageFunction] = {
    "sft": run_sft,
    "critique_revision": run_critique_revision,
    "revision_sft": run_sft,
    "comparisons": run_comparisons,
    "judge_calibration": run_judge_calibration,
    "ai_feedback": run_ai_feedback,
    "reward_model": run_reward_model,
    "ppo": run_ppo,
    "evaluate": run_evaluate,
}

TRAINING_STAGES = TRAINING
"""The stages that all processes of a run take part in; the others are the first one's."""

__all__ = ["STAGE_FUNCTIONS", "TRAINING_STAGES"]
