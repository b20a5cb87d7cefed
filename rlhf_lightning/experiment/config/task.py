"""What a Hydra job knows of itself: its settings, its directory, what the user typed for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.experiment.config.validation import settings_from
from rlhf_lightning.settings.run import RunSettings


def job_directory() -> Path:
    """Where the current Hydra job writes."""
    return Path(HydraConfig.get().runtime.output_dir)


def job_settings(config: DictConfig) -> RunSettings:
    """The checked settings of the current Hydra job; `paths.run_dir` says where it really writes.

    Raises:
        ConfigError: if a sweeper made up a job that the schema does not allow.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain["paths"]["run_dir"] = str(job_directory())
    return settings_from(plain)


def typed_overrides() -> list[str]:
    """The current Hydra job's overrides as a user types them."""
    return [override.lstrip("+") for override in HydraConfig.get().overrides.task]
