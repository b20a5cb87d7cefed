"""Records of a comparison (runs, groups that differ only in the seed, figures), and means over seeds with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Literal

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.evaluation.curves import HistoryRow, Point, points
from rlhf_lightning.evaluation.summary import SampleRow, read_samples
from rlhf_lightning.tracking.history_file import read_history

FINISHED = "finished"
Method = Literal["paired", "unpaired", "no interval"]


@dataclass(frozen=True)
class Metric:
    """A figure that runs are compared by.

    Attributes:
        name: as `--metrics` and `--sort` take it: `objective`, `iid.gold_reward`, `reward_model.accuracy`.
        label: as a column's heading.
        higher_is_better: None where neither is.
        style: how it is written: `signed` and `plain` with two decimals, `percent`, `whole`, or `figure` with three
            significant digits.
    """

    name: str
    label: str
    higher_is_better: bool | None
    style: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95% interval.

    Attributes:
        low, high: None where a single seed gives no interval.
        count: seeds.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Delta:
    """A group's figure less the baseline's.

    Attributes:
        low, high: the 95% interval; None where there is none.
        count: pairs of seeds if paired, else the seeds of the smaller side.
        method: `paired`: Student's t over differences seed by seed; `unpaired`: Welch's t; `no interval`: too few
            seeds.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    method: Method

    @property
    def is_clear(self) -> bool:
        """True if the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True)
class Run:
    """One run, as its directory tells it. Everything but the directory may be missing: runs fail, and are compared on.

    Attributes:
        name: its directory, as short as tells it from the others.
        overrides: as the user typed them.
        state: of status.json: pending, running, finished, failed or interrupted; `unknown` without a readable one.
        stage: the one that was running last.
        seed: None in a config without one.
        config: the resolved config, flat: `{"kl.coef": 0.1}`.
        settings: the keys that differ among the runs compared, and their values as one would type them.
        metrics: content of metrics.json; empty while there is none.
        figures: the numbers in it by metric name; those that are not finite are left out.
        error: why it failed, as text.
        provenance: content of provenance.json; empty where there is none.
        started: when, in ISO format.
        seconds: from its start to the last word of its status.
        read_problems: what of its directory could not be read.
    """

    name: str
    directory: Path
    overrides: tuple[str, ...]
    state: str
    stage: str | None
    seed: int | None
    config: Mapping[str, Any]
    settings: Mapping[str, str]
    metrics: Mapping[str, Any]
    figures: Mapping[str, float]
    error: str | None
    provenance: Mapping[str, Any]
    started: str | None
    seconds: float | None
    read_problems: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """True if its figures count. A run that stopped midway has those of an earlier stage under the same names."""
        return self.state == FINISHED and bool(self.figures)

    @property
    def objective(self) -> float | None:
        """The value that a sweeper maximizes; None without one."""
        return self.figures.get("objective")

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """Figures by stage, as in metrics.json."""
        found = self.metrics.get("stages")
        return found if isinstance(found, Mapping) else {}

    @property
    def evaluation(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """Figures by policy, then split, as in metrics.json."""
        found = self.metrics.get("evaluate")
        return found if isinstance(found, Mapping) else {}

    @property
    def reused(self) -> Mapping[str, Mapping[str, Any]]:
        """The stages that came from the stage cache, and where from."""
        return {
            stage: figures["cache"]
            for stage, figures in self.stages.items()
            if isinstance(figures, Mapping) and isinstance(figures.get("cache"), Mapping)
        }

    @property
    def history(self) -> Sequence[HistoryRow]:
        """Every figure logged; empty where history.csv is missing or malformed, of which `late_problems` tells."""
        return self._history[0]

    def curve(self, stage: str, name: str) -> list[Point]:
        """One logged metric of one stage, in order of steps."""
        return points(self.history, stage, name)

    @property
    def samples(self) -> Sequence[SampleRow]:
        """The same prompts, answered before and after; empty where there are none."""
        return self._samples[0]

    @property
    def late_problems(self) -> tuple[str, ...]:
        """Problems with reading history.csv and samples.jsonl. Reads both."""
        return tuple(problem for problem in (self._history[1], self._samples[1]) if problem is not None)

    @cached_property
    def _history(self) -> tuple[Sequence[HistoryRow], str | None]:
        try:
            return read_history(self.directory), None
        except RunDirectoryError as error:
            return (), error.what

    @cached_property
    def _samples(self) -> tuple[Sequence[SampleRow], str | None]:
        try:
            return read_samples(self.directory), None
        except RunDirectoryError as error:
            return (), error.what


@dataclass(frozen=True)
class Group:
    """Runs that are told the same, but for the seed.

    Attributes:
        settings: the values that distinguish the group, by key, as one would type them.
        runs: all of them, also those that did not finish.
        estimates: by metric name; a metric that none of its finished runs has is not in it.
        deltas: against the baseline, by metric name; empty for the baseline itself.
    """

    settings: Mapping[str, str]
    runs: tuple[Run, ...]
    estimates: Mapping[str, Estimate]
    deltas: Mapping[str, Delta]

    @property
    def label(self) -> str:
        """`kl.coef=0.1 peft=lora`; `all runs` where nothing differs."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "all runs"

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs whose figures count."""
        return tuple(run for run in self.runs if run.finished)


@dataclass(frozen=True)
class ExcludedRun:
    """A run, or a directory given, that the figures do not count, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        runs: all runs, in the order given; a sweep's jobs in their order.
        groups: best first by `sort`.
        keys: the columns of settings: keys that differ, or those of `--by`.
        metrics: the columns of figures.
        sort: the metric that groups are sorted by.
        baseline: the group that deltas are taken against; None with fewer than two groups that have figures.
        notes: how the figures were made, as sentences to stand under the table.
        left_out: what the figures do not count.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    keys: tuple[str, ...]
    metrics: tuple[Metric, ...]
    sort: Metric
    baseline: Group | None
    notes: tuple[str, ...]
    left_out: tuple[ExcludedRun, ...]


Seed = int | None
Cell = tuple[str, ...]
"""The values of the settings that a group averages over; empty without such."""
Values = Mapping[tuple[Cell, Seed], float]
"""One metric of one group: a figure for each cell and seed."""


def estimate(values: Values) -> Estimate:
    """The mean over seeds, each the mean of its cells.

    Raises:
        ValueError: there are no values.
    """
    by_seed = list(_by_seed(values).values())
    mean = fmean(by_seed)
    half = _half_width(by_seed)
    return Estimate(mean, None, None, 1) if half is None else Estimate(mean, mean - half, mean + half, len(by_seed))


def difference(group: Values, baseline: Values) -> Delta | None:
    """A group less the baseline; None where one of them has no values.

    Paired over the seeds that both have (within a seed, over the cells that both have), if there are two; else, where
    both have two seeds, Welch's interval for independent means.
    """
    if not group or not baseline:
        return None
    shared = {place: value - baseline[place] for place, value in group.items() if place in baseline}
    pairs = list(_by_seed(shared).values())
    half = _half_width(pairs)
    if half is not None:
        mean = fmean(pairs)
        return Delta(mean, mean - half, mean + half, len(pairs), "paired")
    sides = [list(_by_seed(side).values()) for side in (group, baseline)]
    fewest = min(len(side) for side in sides)
    if fewest < 2:
        mean = fmean(pairs) if pairs else fmean(sides[0]) - fmean(sides[1])
        return Delta(mean, None, None, len(pairs) or fewest, "no interval")
    mean, half = fmean(sides[0]) - fmean(sides[1]), _welch_half_width(*sides)
    return Delta(mean, mean - half, mean + half, fewest, "unpaired")


def values_by_cell(figures: Iterable[tuple[Cell, Seed, float]]) -> dict[tuple[Cell, Seed], float]:
    """The figures by cell and seed; runs of the same cell and seed are averaged."""
    found: dict[tuple[Cell, Seed], list[float]] = {}
    for cell, seed, figure in figures:
        found.setdefault((cell, seed), []).append(figure)
    return {place: fmean(same) for place, same in found.items()}


def _by_seed(values: Values) -> dict[Seed, float]:
    found: dict[Seed, list[float]] = {}
    for (_, seed), value in values.items():
        found.setdefault(seed, []).append(value)
    return {seed: fmean(cells) for seed, cells in found.items()}


def _half_width(values: Sequence[float]) -> float | None:
    """t s / sqrt(n), half of the interval of a mean; None with fewer than two values."""
    if len(values) < 2:
        return None
    return _t_quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))


def _welch_half_width(first: Sequence[float], second: Sequence[float]) -> float:
    """Half of the interval of a difference of independent means (Welch 1947, with Satterthwaite's degrees)."""
    errors = [variance(side) / len(side) for side in (first, second)]
    if sum(errors) == 0.0:
        return 0.0
    parts = zip(errors, (first, second), strict=True)
    degrees = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in parts)
    return _t_quantile(degrees) * math.sqrt(sum(errors))


def _t_quantile(degrees: float) -> float:
    """The value that Student's t with `degrees` of freedom stays below with probability 0.975."""
    # `scipy.stats`, which calls this function, takes two seconds to import; the function's own module takes 0.4.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, 0.975))
