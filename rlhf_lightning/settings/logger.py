"""Settings of the logger of a run, beside the files that every run writes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.settings.section import Name, Section


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
