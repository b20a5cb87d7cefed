"""Settings and overrides of the current Hydra job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.experiment.config.constitution import GROUP, with_whole_constitution
from rlhf_lightning.experiment.config.sweep_jobs import OF_THE_SWEEP
from rlhf_lightning.experiment.config.validation import settings_from
from rlhf_lightning.stages.run_settings import RunSettings


def job_settings(config: DictConfig, directory: Path) -> RunSettings:
    """The checked settings of a Hydra job, with `paths.run_dir` set to the directory that it writes to.

    Raises:
        ConfigError: if a sweeper drew a job that the schema does not allow.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    completed = with_whole_constitution(plain, folders, runtime.choices.get(GROUP))
    if completed.problems:
        raise ConfigError(completed.problems)
    plain = completed.plain
    plain["paths"]["run_dir"] = str(directory)
    return settings_from(plain)


def typed_overrides() -> list[str]:
    """The current Hydra job's overrides as a user types them."""
    return told_to_job(HydraConfig.get().overrides.task)


def told_to_job(overrides: Sequence[str]) -> list[str]:
    """A job's overrides as a user types them, without those that concern its sweep and not the job."""
    texts = [override.lstrip("+") for override in overrides]
    return [text for text in texts if re.split(r"[./=]", text)[0] not in (*OF_THE_SWEEP, "hydra")]
