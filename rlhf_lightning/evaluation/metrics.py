"""Declaration of the metrics that stages log."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class LoggedMetrics:
    """The declared metrics of one stage.

    Attributes:
        metrics: in the order of their panels; a stage may log more.
        by_episodes: they stand over episodes, not over optimizer steps.
    """

    metrics: tuple[Metric, ...] = ()
    by_episodes: bool = False
