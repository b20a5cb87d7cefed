"""The stages and plugins of a config, on which its schema depends, found before the rest of it is read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.errors import Problem
from rlhf_lightning.experiment.config.job_overrides import section_of
from rlhf_lightning.experiment.config.schema import Schema
from rlhf_lightning.experiment.config.validation import apply_value
from rlhf_lightning.stages.declaration import STAGES, Stage
from rlhf_lightning.stages.plugins import load_plugins, stages_of
from rlhf_lightning.stages.run_settings import schema_of

DECIDING = ("plugins", "allow_targets")
"""Keys that decide which stages there are."""


@dataclass(frozen=True)
class Structure:
    """Sections of stages in a config.

    Attributes:
        stages: name of the section -> stage.
        problems: of plugins that cannot be used.
    """

    schema: Schema
    stages: Mapping[str, Stage]
    problems: tuple[Problem, ...]


def structure_of(composed: DictConfig, values: Sequence[Override]) -> Structure:
    """The structure of a composed config with values set; its plugins are imported."""
    config = copy.deepcopy(OmegaConf.masked_copy(composed, [key for key in DECIDING if key in composed]))
    for override in values:
        if section_of(override).split(".")[0] in DECIDING:
            try:
                apply_value(config, override)
            except (OmegaConfBaseException, KeyError):
                continue  # reported where all values are set
    plain: Any = OmegaConf.to_container(config, resolve=False)
    problems = load_plugins(plain)
    composed_plain: Any = OmegaConf.to_container(composed, resolve=False)
    names = stages_of({key: section for key, section in composed_plain.items() if key != "hydra"})
    return Structure(Schema(schema_of(names)), {name: STAGES[stage] for name, stage in names.items()}, tuple(problems))
