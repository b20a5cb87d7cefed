"""The stages, by name."""

from rlhf_lightning.experiment.stage import StageFunction
from rlhf_lightning.experiment.stages.comparisons import run_comparisons
from rlhf_lightning.experiment.stages.evaluate import run_evaluate
from rlhf_lightning.experiment.stages.ppo import run_ppo
from rlhf_lightning.experiment.stages.reward_model import run_reward_model
from rlhf_lightning.experiment.stages.sft import run_sft
from rlhf_lightning.settings.run import StageName

STAGE_FUNCTIONS: dict[StageName, StageFunction] = {
    "sft": run_sft,
    "comparisons": run_comparisons,
    "reward_model": run_reward_model,
    "ppo": run_ppo,
    "evaluate": run_evaluate,
}

TRAINING_STAGES: frozenset[StageName] = frozenset({"sft", "reward_model", "ppo"})
"""The stages that all processes of a run take part in; the others are the first one's."""

__all__ = ["STAGE_FUNCTIONS", "TRAINING_STAGES"]
