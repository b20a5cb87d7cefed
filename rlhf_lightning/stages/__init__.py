"""The stages of a pipeline, one file each; importing this package registers ours."""

from importlib import import_module

STAGE_FILES = (
    *("sft", "critique_revision", "comparisons", "judge_calibration", "ai_feedback", "reward_model", "ppo"),
    "evaluate",
)
"""Modules of this package that hold a stage each, in the order in which a pipeline can have them."""

for name in STAGE_FILES:
    import_module(f"{__name__}.{name}")
