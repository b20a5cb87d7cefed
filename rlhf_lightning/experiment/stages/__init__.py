"""The stages, by name."""

from __future__ import annotations

from importlib import import_module

from rlhf_lightning.experiment.stage import StageContext, StageFunction, StageResult
from rlhf_lightning.settings.readers import TRAINING
from rlhf_lightning.settings.stages import STAGES


def _stage_function(module: str) -> StageFunction:
    """`run_MODULE` of a module of this package, imported with its libraries when it is first called."""

    def run(context: StageContext) -> StageResult:
        result: StageResult = getattr(import_module(f"{__name__}.{module}"), f"run_{module}")(context)
        return result

    return run


STAGE_FUNCTIONS = {name: _stage_function(stage.module) for name, stage in STAGES.items()}

TRAINING_STAGES = TRAINING
"""The stages that all processes of a run take part in; rank 0 alone runs the others."""

__all__ = ["STAGE_FUNCTIONS", "TRAINING_STAGES"]
