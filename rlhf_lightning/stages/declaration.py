"""Declaration of a stage, from which all other facts about stages are derived, and the registry of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from rlhf_lightning.errors import Problem
from rlhf_lightning.evaluation.metrics import LoggedMetrics, Metric
from rlhf_lightning.sections import Name, Section

if TYPE_CHECKING:
    from rlhf_lightning.rollouts.sampler import SampledResponse
    from rlhf_lightning.stages.context import StageContext, StageResult
    from rlhf_lightning.stages.run_settings import RunSettings

S = TypeVar("S", bound="Stage")
F = TypeVar("F", bound="Callable[[Sequence[SampledResponse]], float]")

FROM_DATA = "data"
"""Stands for the records of the data group, in the place of a stage."""

BY_EVERY_STAGE = frozenset({"model.dtype", "peft.quantization", "peft.double_quantization"})
"""Keys that every stage reads, since each loads the base model or one made from it."""

LENGTHS = ("data.max_prompt_length", "data.on_long_record")

JUDGE = ("constitution", "judge")
"""Sections that a stage reads if it asks the judge."""

OF_CRITIQUES = frozenset(f"constitution.{key}" for key in ("revisions", "critique", "train_on", "mix_helpful"))
"""Keys of a constitution that no judge reads."""


class StageSection(Section):
    """Base class of the config sections of stages; `stage` is the stage that a section is for."""

    stage: Name


@dataclass(frozen=True)
class MemoryRelief:
    """Keys that lower a stage's memory, for the advice when it ran out. `.key` is one of the stage's own section.

    Attributes:
        same_result: they leave the result alone, so that an interrupted run may go on with them.
        other_result: they change it.
    """

    same_result: tuple[str, ...] = ()
    other_result: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainedModel:
    """The model that a stage leaves.

    Attributes:
        title: description in the model card.
        started_from: the key of the stage's section that names its initial model.
    """

    title: str
    started_from: str
    head: Literal["policy", "reward model"] = "policy"


class Stage:
    """Base class of stages. A subclass declares itself by these attributes and implements `run`.

    A pipeline names the config sections of its stages. A stage may run several times, each time with another section,
    whose key `stage` names it. Methods take the settings of the run and the name of the section.

    Attributes:
        name: of the stage, and of the section in the primary config.
        Settings: the schema of its config section.
        reads: further keys and sections of the config that it reads; reading another one is an AttributeError.
        not_read: of those, keys that it does not read.
        trained: the model that it trains; None where it trains none. All processes of a run take part in a training.
        rounds: the key of its section that says how many rounds it has; None where that is not known before.
        metrics: what it logs that is worth a panel, or more than its last value; in the order of the panels.
        by_episodes: it collects rollouts: its metrics stand over episodes, those of others over optimizer steps.
        relief: keys that lower its memory.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[StageSection]]
    reads: ClassVar[tuple[str, ...]] = ()
    not_read: ClassVar[frozenset[str]] = frozenset()
    trained: ClassVar[TrainedModel | None] = None
    rounds: ClassVar[str | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = ()
    by_episodes: ClassVar[bool] = False
    relief: ClassVar[MemoryRelief] = MemoryRelief()

    def run(self, context: StageContext) -> StageResult:
        """Run the stage; what it leaves for others is in `context.directory`."""
        raise NotImplementedError

    def unread(self, settings: RunSettings, name: str) -> frozenset[str]:
        """Keys of its own section and of `reads` that it does not read under these settings."""
        return frozenset()

    def reads_records(self, settings: RunSettings, name: str) -> bool:
        """True if it reads records of the data group, and not only what other stages left."""
        return True

    def copies_records(self, settings: RunSettings, name: str) -> bool:
        """True if all it does is to split records that are there."""
        return False

    def unnamed_inputs(self, settings: RunSettings, name: str) -> Iterable[tuple[str, str]]:
        """Files that it reads though no key names them: pairs of the key that stands for one, and its path."""
        return ()

    def problems(self, settings: RunSettings, name: str) -> Iterable[Problem]:
        """Settings that contradict each other."""
        return ()

    @property
    def logged(self) -> LoggedMetrics:
        """The metrics that plots and trackers show, those of plugins included."""
        plugged = tuple(ROLLOUT_METRICS) if self.by_episodes else ()
        return LoggedMetrics((*self.metrics, *plugged), self.by_episodes)


STAGES: dict[str, Stage] = {}
"""All registered stages by name."""

ROLLOUT_METRICS: dict[Metric, Callable[[Sequence[SampledResponse]], float]] = {}
"""Metrics of an iteration's rollouts that plugins have registered."""


def register(stage: type[S]) -> type[S]:
    """Class decorator that registers a stage under its name.

    Raises:
        ValueError: the name is taken by another class.
    """
    known = STAGES.get(stage.name)
    if known is not None and _place(type(known)) != _place(stage):
        raise ValueError(f"there is a stage {stage.name!r} already, in {type(known).__module__}")
    STAGES[stage.name] = stage()
    return stage


def rollout_metric(metric: Metric) -> Callable[[F], F]:
    """Decorator that registers a function of an iteration's responses as a metric of every stage with rollouts."""

    def registered(function: F) -> F:
        ROLLOUT_METRICS[metric] = function
        return function

    return registered


def _place(stage: type[Stage]) -> tuple[str, str]:
    return stage.__module__, stage.__qualname__
