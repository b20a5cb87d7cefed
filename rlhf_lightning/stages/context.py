"""Inputs and results of a stage."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_lightning.models.settings import TopLayers, learning_rate_factor
from rlhf_lightning.sections import Section
from rlhf_lightning.stages.readers import projected
from rlhf_lightning.stages.run_settings import RunSettings, TrainerSettings

if TYPE_CHECKING:
    import torch

    from rlhf_lightning.algorithms.optimization import OptimizerFactory
    from rlhf_lightning.data.encoding import Encoder
    from rlhf_lightning.data.sources import DataSource
    from rlhf_lightning.evaluation.summary import SampleRow
    from rlhf_lightning.models.hub import ModelSource
    from rlhf_lightning.stages.monitoring import StageMemory
    from rlhf_lightning.stages.run_directory import RunDirectory
    from rlhf_lightning.tracking.loggers import StageTracker

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Section)


class RunInputs:
    """Inputs that all stages of a run share.

    Args:
        settings: the whole checked config.
        run: the directory that everything is written to.
    """

    def __init__(self, settings: RunSettings, run: RunDirectory) -> None:
        self.settings = settings
        self.run = run

    @cached_property
    def data(self) -> DataSource:
        """The records, read on first use and once."""
        from rlhf_lightning.data.sources import open_source

        started = time.perf_counter()
        source = open_source(self.settings.data, self.settings.seed)
        report = source.report()
        logger.info(
            "Data %s: %d records read, %d skipped (%.1f s).",
            self.settings.data.kind,
            report.read,
            report.skipped,
            time.perf_counter() - started,
        )
        for reason in report.reasons:
            logger.warning("Skipped %s", reason)
        return source

    def model(self, name: str) -> ModelSource:
        """Source of the model of that name: `base`, a stage of this run, a directory, or a hub id."""
        from rlhf_lightning.stages.artifacts import resolve_model

        return resolve_model(name, self.settings, self.run, self.data)

    def records_of(self, name: str) -> Path:
        """Directory of records that a key names: what a stage of this run left, or a path.

        Raises:
            ArtifactError: the stage has left nothing.
        """
        from rlhf_lightning.stages.artifacts import finished

        return finished(self.run, name) if name in self.settings.sections_of_stages else Path(name)

    def encoder(self, source: ModelSource) -> Encoder:
        """The encoder for a model's tokenizer."""
        from rlhf_lightning.data.encoding import Encoder  # these import Transformers
        from rlhf_lightning.models.loading import load_tokenizer

        return Encoder(load_tokenizer(source), self.settings.data)

    @property
    def make_optimizer(self) -> OptimizerFactory:
        """Factory for the optimizer of the config, given parameters and a learning rate."""
        from rlhf_lightning.stages.targets import instantiate

        factory: OptimizerFactory = instantiate(
            {**self.settings.optimizer, "_partial_": True}, allow_targets=self.settings.allow_targets
        )
        return factory


def device_of(trainer: TrainerSettings) -> torch.device:
    """The kind of device that a run computes on."""
    import torch

    wanted = trainer.accelerator
    on_gpu = wanted == "gpu" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


@dataclass(frozen=True)
class StageContext:
    """Context of one stage.

    Attributes:
        name: of the instance.
        inputs: shared by all stages.
        directory: of its artifact.
        tracker: receives its figures.
        checkpoint: to resume from; None to start.
        memory: counts what its models hold.
        key: hash of everything that decides the stage's result, as hex digits.
    """

    name: str
    inputs: RunInputs
    directory: Path
    tracker: StageTracker
    checkpoint: Path | None
    memory: StageMemory
    key: str

    @cached_property
    def settings(self) -> RunSettings:
        """The part of the config that the stage declares to read; reading another key is an AttributeError."""
        return projected(self.inputs.settings, self.name)

    def section(self, schema: type[S]) -> S:
        """The stage's own section.

        Args:
            schema: the class that it has.
        """
        section = self.inputs.settings.section(self.name)
        assert isinstance(section, schema)
        return section

    @property
    def seed(self) -> int:
        """The stage's own seed: it does not depend on which stages ran before in the same process."""
        digest = hashlib.sha256(f"{self.inputs.settings.seed}:{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    @property
    def device(self) -> torch.device:
        """Device for models that Lightning does not move."""
        return device_of(self.inputs.settings.trainer)

    @property
    def trained_layers(self) -> int | None:
        """Number of top layers that are trained; None unless `peft=top_layers`."""
        peft = self.settings.peft
        return peft.layers if isinstance(peft, TopLayers) else None

    def learning_rate(self, of_stage: float) -> float:
        """A stage's learning rate, scaled for the weights that `peft` trains."""
        return of_stage * learning_rate_factor(self.settings.peft)

    def seed_everything(self) -> None:
        from pytorch_lightning import seed_everything

        seed_everything(self.seed, verbose=False)


@dataclass(frozen=True, slots=True)
class StageResult:
    """Results of a stage beside its artifact.

    Attributes:
        metrics: its entry in metrics.json.
        objective: the value for a sweeper to maximize if the pipeline ends here; None if the stage has none.
        evaluation: policy -> split -> figures, from stages that evaluate.
        samples: the same prompts answered by the first policy and by the last.
    """

    metrics: dict[str, Any]
    objective: float | None
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[SampleRow] = field(default_factory=list)
