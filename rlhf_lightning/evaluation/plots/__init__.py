"""The pictures of a run. Each function writes one PNG, or returns None where there is nothing to draw."""

from rlhf_lightning.evaluation.plots.evaluation_bars import evaluation_bars
from rlhf_lightning.evaluation.plots.judge_reliability import judge_reliability
from rlhf_lightning.evaluation.plots.learning_curves import learning_curves
from rlhf_lightning.evaluation.plots.overoptimization import overoptimization

__all__ = ["evaluation_bars", "judge_reliability", "learning_curves", "overoptimization"]
