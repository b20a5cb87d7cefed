"""Plots that a stage adds to the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.tracking.history_file import read_history

PLOTS_FOLDER = "plots"


def draw_plots(settings: RunSettings, stage: str, metrics: Mapping[str, Any], run_dir: Path) -> list[Path]:
    """Draw, or draw again, what the stage has changed, as PNG files under `plots/`.

    Returns:
        The files drawn.
    """
    folder = run_dir / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    evaluates = bool(metrics["evaluate"]) and not settings.trains(stage)
    if not evaluates and not settings.trains(stage):
        return []
    from rlhf_lightning.evaluation.plots import evaluation_bars, learning_curves, overoptimization

    if evaluates:
        drawn = [evaluation_bars(metrics["evaluate"], folder / "evaluation.png")]
    else:
        history = read_history(run_dir)
        declared = {name: settings.stage(name).logged for name in settings.pipeline.stages}
        drawn = [learning_curves(history, folder / "learning_curves.png", declared)]
        if declared[stage].by_episodes:
            drawn.append(overoptimization(history, folder / "overoptimization.png"))
    return [path for path in drawn if path is not None]
