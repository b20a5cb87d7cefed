"""The declaration of a stage, from which all other facts about stages are derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf_lightning.settings.section import Section

if TYPE_CHECKING:
    from rlhf_lightning.settings.run import RunSettings

FROM_DATA = "data"
"""Stands for the records of the data group, in the place of a stage."""

BY_EVERY_STAGE = frozenset({"model.dtype", "peft.quantization", "peft.double_quantization"})
"""Keys that every stage reads, since each loads the base model or one made from it."""

LENGTHS = ("data.max_prompt_length", "data.on_long_record")

JUDGE = ("constitution", "judge")
"""Sections that a stage reads if it asks the judge."""

OF_CRITIQUES = frozenset(f"constitution.{key}" for key in ("revisions", "critique", "train_on", "mix_helpful"))
"""Keys of a constitution that no judge reads."""


@dataclass(frozen=True)
class Relief:
    """Keys that lower a stage's memory, for the advice when it ran out.

    Attributes:
        same_result: they leave the result alone, so that an interrupted run may go on with them.
        other_result: they change it.
    """

    same_result: tuple[str, ...]
    other_result: tuple[str, ...]


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


MIN, MAX, BOTH = ("min", "last"), ("max", "last"), ("min", "max", "last")


@dataclass(frozen=True)
class Metric:
    """A metric that a stage logs along the way.

    Attributes:
        name: as it stands in history.csv.
        keeps: the values that a summary of the run keeps: the last, and its extremes where these are worth a look.
        title: of its panel among the learning curves; None: it has none.
        note: its unit or meaning, beside the title.
        level: a value worth a line of its own (no correlation, a coin's accuracy, an unchanged policy).
        held_out: the same metric on held-out data, drawn beside it.
    """

    name: str
    keeps: tuple[str, ...] = ("last",)
    title: str | None = None
    note: str = ""
    level: float | None = None
    held_out: str | None = None


def _nothing(_: RunSettings) -> frozenset[str]:
    return frozenset()


def _always(_: RunSettings) -> bool:
    return True


def never(_: RunSettings) -> bool:
    """Predicate that is always False."""
    return False


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: also that of its config section.
        settings: the schema of that section.
        module: of this package, whose `run_MODULE` runs it; imported, with its libraries, when it runs.
        relief: from a lack of memory.
        reads: keys and sections that it reads beside its own.
        not_read: of those, keys that it does not read.
        unread: of its own section and `reads`, what it does not read under certain settings.
        reads_records: whether it reads records of the data group, and not only what other stages left.
        copies_records: whether all it does is to split records that are there.
        trained: the model that it trains; None where it trains none. All processes of a run take part in a training.
        rounds: the key of its section that says how many rounds it has; None where that is not known before.
        metrics: what it logs that is worth a panel, or more than its last value; in the order of the panels.
        by_episodes: it collects rollouts: its metrics stand over episodes, those of others over optimizer steps.
    """

    name: str
    settings: type[Section]
    module: str
    relief: Relief
    reads: tuple[str, ...] = ()
    not_read: frozenset[str] = frozenset()
    unread: Callable[[RunSettings], frozenset[str]] = _nothing
    reads_records: Callable[[RunSettings], bool] = _always
    copies_records: Callable[[RunSettings], bool] = never
    trained: TrainedModel | None = None
    rounds: str | None = None
    metrics: tuple[Metric, ...] = ()
    by_episodes: bool = False
