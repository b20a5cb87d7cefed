"""The pictures of a run. Each function writes one PNG, or returns None where there is nothing to draw."""

from rlhf_lightning.evaluation.plots.bars import evaluation_bars, judge_reliability
from rlhf_lightning.evaluation.plots.curves import learning_curves, overoptimization

__all__ = ["evaluation_bars", "judge_reliability", "learning_curves", "overoptimization"]
