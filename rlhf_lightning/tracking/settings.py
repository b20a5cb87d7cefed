"""Settings of the loggers, and their requirements, checked before a run starts. Imports no torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.errors import Problem
from rlhf_lightning.sections import Name, Section


class WandbLogging(Section):
    """Weights & Biases, beside the files that every run writes."""

    kind: Literal["wandb"]
    project: Name
    entity: Name | None
    mode: Literal["auto", "online", "offline"]
    artifacts: Literal["reference", "upload", "none"]


class FilesOnly(Section):
    """Only the run directory's own files."""

    kind: Literal["none"]


class TensorBoardLogging(Section):
    """TensorBoard event files in the run directory."""

    kind: Literal["tensorboard"]


LoggerSettings = Annotated[WandbLogging | FilesOnly | TensorBoardLogging, Field(discriminator="kind")]


def logger_problems(logger: LoggerSettings) -> list[Problem]:
    """Problems that keep the chosen logger from working on this machine."""
    if isinstance(logger, TensorBoardLogging) and find_spec("tensorboard") is None:
        return [
            Problem(
                "logger",
                "TensorBoard is not installed",
                fix="pip install tensorboard, or add logger=none (history.csv holds the same figures)",
            )
        ]
    if isinstance(logger, WandbLogging) and logger.mode == "online":
        # Imported only here: the client takes half a second, and no other choice needs it.
        from rlhf_lightning.tracking.wandb_client import has_credentials

        if not has_credentials():
            return [
                Problem(
                    "logger.mode",
                    "online, but there is no W&B API key",
                    fix="run `wandb login` or set WANDB_API_KEY, or add logger.mode=offline",
                )
            ]
    return []
