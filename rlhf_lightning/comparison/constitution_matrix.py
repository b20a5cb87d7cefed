"""Policies trained under some constitutions, each scored by others: whose principles does whose policy follow?

How far a policy satisfies a constitution is the mean over its principles, by weight, of how often responses follow
them.
In the courtesy world that is exact for every constitution: the rate of responses with the trait that a principle asks
for. Elsewhere it is what the run's own judge says of the run's own constitution.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.comparison.differing_settings import differing_keys
from rlhf_lightning.comparison.reading import find_runs, read_run, short_names
from rlhf_lightning.comparison.records import Estimate, Run, estimate, values_by_cell
from rlhf_lightning.errors import ComparisonError
from rlhf_lightning.evaluation.summary import short_name

NAME, PRINCIPLES = "constitution.name", "constitution.principles"
Cells = Mapping[tuple[str, str], Estimate]
COLUMNS = ("policy", "scored_by", "mean", "low", "high", "count")


@dataclass(frozen=True)
class ScoredPrinciple:
    """The scored properties of a principle.

    Attributes:
        trait: its tag in the courtesy world; None where it has none there.
    """

    id: str
    weight: float
    trait: str | None


@dataclass(frozen=True)
class Scorer:
    """A constitution, as what policies are scored by."""

    name: str
    principles: tuple[ScoredPrinciple, ...]

    @property
    def tagless(self) -> tuple[str, ...]:
        """The principles that have no trait in the courtesy world."""
        return tuple(principle.id for principle in self.principles if principle.trait is None)

    def by_traits(self, rates: Mapping[str, float], prefix: str) -> float | None:
        """Satisfaction by the rates of traits; None where no principle has a trait, or a rate is missing.

        Args:
            prefix: of the rates' names: policy and split.
        """
        rated = [(one.weight, f"{prefix}.trait_{one.trait}_rate") for one in self.principles if one.trait is not None]
        return _weighted([(weight, rates.get(name)) for weight, name in rated])

    def by_judge(self, rates: Mapping[str, float], prefix: str) -> float | None:
        """Satisfaction by a judge's figures of each principle; None where one is missing."""
        return _weighted([(one.weight, rates.get(f"{prefix}.satisfaction.{one.id}")) for one in self.principles])


@dataclass(frozen=True)
class Matrix:
    """Satisfaction of each constitution (a column) by the policies trained under each (a row).

    Attributes:
        cells: by row and column; where no run has the figures there is none.
        notes: how to read it, and what it leaves out, a sentence each.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Cells
    notes: tuple[str, ...]


def constitution_matrix(
    directory: Path, split: str, policy: str | None = None, further: Sequence[Scorer] = ()
) -> Matrix:
    """The matrix of a sweep over constitutions.

    Args:
        directory: of the sweep, or any that holds runs.
        split: the prompts that were replied to.
        policy: as the config names it; None: the last one evaluated of each run.
        further: constitutions to score by, beside those of the runs.

    Raises:
        ComparisonError: no finished run has a constitution, two that differ have one name, or there are no figures.
    """
    directories = find_runs([directory]).directories
    everything = [read_run(path, name) for path, name in zip(directories, short_names(directories), strict=True)]
    runs = [run for run in everything if run.finished and NAME in run.config]
    if not runs:
        fix = "rlhf train -m sweep=constitution makes a sweep; runs that failed or go on do not count"
        raise ComparisonError("No finished run has a constitution.", where=str(directory), fix=fix)
    own = _scorers(runs)
    scorers = {**own, **{one.name: one for one in further if one.name not in own}}
    scorers = {name: scorer for name, scorer in scorers.items() if scorer.principles}
    prefix = split if policy is None else f"{short_name(policy)}.{split}"
    cells = {
        (row, column): estimate(values)
        for row in own
        for column, scorer in scorers.items()
        if (values := values_by_cell(_figures([run for run in runs if run.config[NAME] == row], scorer, prefix)))
    }
    if not cells:
        raise _no_figures(runs, directory, split, policy)
    columns = tuple(name for name in scorers if any(column == name for _, column in cells))
    notes = (*_notes(runs, scorers, cells, prefix), *_not_counted(everything, runs))
    return Matrix(tuple(own), columns, cells, notes)


def scorer_of(name: str, principles: Iterable[Mapping[str, Any]]) -> Scorer:
    """A constitution as configs spell it."""
    scored = (
        ScoredPrinciple(
            id=str(one["id"]),
            weight=float(one["weight"]),
            trait=str(one["world"]["tag"]) if one["world"] is not None else None,
        )
        for one in principles
    )
    return Scorer(name, tuple(scored))


def write_csv(matrix: Matrix, path: Path) -> Path:
    """A line a cell: policy, scored_by, mean, low, high, count.

    Raises:
        ComparisonError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for (row, column), cell in matrix.cells.items():
                writer.writerow([row, column, cell.mean, cell.low, cell.high, cell.count])
    except OSError as error:
        what = f"The matrix cannot be written: {error.strerror or error}."
        raise ComparisonError(what, where=str(path), fix="choose another place: --csv FILE") from error
    return path


def _scorers(runs: Sequence[Run]) -> dict[str, Scorer]:
    """The runs' constitutions, in the order of the runs."""
    found: dict[str, tuple[Scorer, Run]] = {}
    for run in runs:
        scorer = scorer_of(str(run.config[NAME]), run.config[PRINCIPLES])
        known, first = found.setdefault(scorer.name, (scorer, run))
        if known != scorer:
            raise ComparisonError(
                f"Two constitutions with other principles are both called {scorer.name}.",
                where=f"{first.directory}, {run.directory}",
                fix="give each a name of its own (constitution.name=...), or name a folder with one of them",
            )
    return {name: scorer for name, (scorer, _) in found.items()}


def _figures(runs: Sequence[Run], scorer: Scorer, prefix: str) -> Iterator[tuple[tuple[str, ...], int | None, float]]:
    for run in runs:
        satisfaction = scorer.by_traits(run.figures, prefix)
        if satisfaction is None and run.config[NAME] == scorer.name:
            satisfaction = scorer.by_judge(run.figures, prefix)
        if satisfaction is not None:
            yield (), run.seed, satisfaction


def _weighted(figures: Sequence[tuple[float, float | None]]) -> float | None:
    known = [(weight, figure) for weight, figure in figures if figure is not None]
    if not known or len(known) < len(figures):
        return None
    return sum(weight * figure for weight, figure in known) / sum(weight for weight, _ in known)


def _no_figures(runs: Sequence[Run], directory: Path, split: str, policy: str | None) -> ComparisonError:
    splits = dict.fromkeys(split for run in runs for by_split in run.evaluation.values() for split in by_split)
    policies = dict.fromkeys(short_name(policy) for run in runs for policy in run.evaluation)
    whose = "the policy evaluated last" if policy is None else f"policy {policy}"
    there = f"there are splits {', '.join(splits) or '(none)'} of policies {', '.join(policies) or '(none)'}"
    return ComparisonError(
        f"No run says on split {split} how far {whose} follows a principle.",
        where=str(directory),
        fix=f"{there}; outside the courtesy world a judge has to rate responses: evaluate.satisfaction=128",
    )


def _notes(runs: Sequence[Run], scorers: Mapping[str, Scorer], cells: Cells, prefix: str) -> Iterator[str]:
    yield "Rows: the constitution that a policy was trained under. Columns: the one that it is scored by."
    several = any(cell.count > 1 for cell in cells.values())
    interval = ", ± half of its 95% interval over seeds (Student's t)" if several else "; one seed, so no interval"
    yield f"A cell: the share of responses that follow a principle, its mean over the principles by weight{interval}."
    exact = [run for run in runs if _has(run, f"{prefix}.trait_")]
    judged = [run for run in runs if run not in exact and _has(run, f"{prefix}.satisfaction.")]
    if exact:
        yield "By exact traits of the responses to all prompts, few of which tempt to harm; a malformed one has none."
        for name, scorer in scorers.items():
            if 0 < len(scorer.tagless) < len(scorer.principles):
                yield f"Left out of {name}, since no trait stands for it: {', '.join(scorer.tagless)}."
    if judged:
        names = dict.fromkeys(str(run.config[NAME]) for run in judged)
        yield f"By the run's own judge, which knows its own constitution alone: {', '.join(names)}."
    columns = {column for _, column in cells}
    without = [
        name for name in dict.fromkeys([*(str(run.config[NAME]) for run in runs), *scorers]) if name not in columns
    ]
    if without:
        yield f"Nothing to score by, so no column: {', '.join(without)}."
    others = [key for key in differing_keys([run.config for run in runs]) if not key.startswith("constitution.")]
    if others:
        yield f"Averaged within each seed over {', '.join(others)}."


def _has(run: Run, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in run.figures)


def _not_counted(everything: Sequence[Run], counted: Sequence[Run]) -> Iterator[str]:
    left_out = [f"{run.name} ({run.state})" for run in everything if run not in counted]
    if left_out:
        yield f"Not counted: {', '.join(left_out)}."
