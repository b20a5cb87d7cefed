"""Compare runs: group them by settings, average over seeds, subtract a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lightning.comparison.differing import differing_keys, named, values_as_typed
from rlhf_lightning.comparison.notes import left_out, notes
from rlhf_lightning.comparison.over_seeds import Values, difference, estimate, gathered
from rlhf_lightning.comparison.reading import find_runs, read_run, short_names
from rlhf_lightning.comparison.records import Comparison, Group, Metric, Run
from rlhf_lightning.comparison.request import Request, baseline_of, keys_of, metrics_of, sort_of


@dataclass(frozen=True, eq=False)
class Gathered:
    """A group under construction: its settings, its runs, and their figures by metric."""

    settings: Mapping[str, str]
    runs: tuple[Run, ...]
    figures: Mapping[str, Values]

    def finish(self, baseline: Gathered | None) -> Group:
        """The group with its estimates, and its deltas unless it is the baseline itself."""
        against = baseline.figures if baseline is not None and baseline is not self else {}
        deltas = {name: difference(self.figures[name], values) for name, values in against.items()}
        return Group(
            settings=self.settings,
            runs=self.runs,
            estimates={name: estimate(values) for name, values in self.figures.items() if values},
            deltas={name: delta for name, delta in deltas.items() if delta is not None},
        )


def compare(given: Sequence[Path], request: Request) -> Comparison:
    """Reads the runs under some directories and compares them.

    Raises:
        ComparisonError: there is no run, or the request names a key, metric or group that is not there.
    """
    found = find_runs(given)
    places = zip(found.directories, short_names(found.directories), strict=True)
    runs, columns, averaged = tell_apart([read_run(directory, name) for directory, name in places], request)
    known = [run for run in runs if run.config]
    metrics, sort = metrics_of(request, known), sort_of(request, known)
    in_order = gather(known, columns, averaged, [*metrics, sort])
    with_figures = [group for group in best_first(in_order, sort) if group.figures[sort.name]]
    baseline = baseline_of(request, with_figures, first=next(iter(in_order), None))
    groups = [*with_figures, *(group for group in in_order if group not in with_figures)]
    final = [group.finish(baseline) for group in groups]
    comparison = Comparison(
        runs=tuple(runs),
        groups=tuple(final),
        keys=columns,
        metrics=tuple(metrics),
        sort=sort,
        baseline=final[groups.index(baseline)] if baseline is not None else None,
        notes=(),
        left_out=left_out(runs, found),
    )
    return replace(comparison, notes=notes(comparison, averaged))


def tell_apart(runs: Sequence[Run], request: Request) -> tuple[list[Run], tuple[str, ...], tuple[str, ...]]:
    """The runs with their settings, the names of the keys that make groups, and of those to average over.

    A run whose config could not be read has no settings.

    Raises:
        ComparisonError: the request groups by a key that no run has.
    """
    known = [run for run in runs if run.config]
    configs = [run.config for run in known]
    differing = differing_keys(configs)
    asked = keys_of(request, configs)
    keys = differing if asked is None else asked
    others = [key for key in differing if key not in keys]
    values = values_as_typed([*keys, *others], configs, [run.overrides for run in known])
    settings = {run.directory: told for run, told in zip(known, values, strict=True)}
    told_apart = [replace(run, settings=settings.get(run.directory, {})) for run in runs]
    return told_apart, tuple(map(named, keys)), tuple(map(named, others))


def gather(
    runs: Sequence[Run], keys: Sequence[str], averaged: Sequence[str], metrics: Sequence[Metric]
) -> list[Gathered]:
    """The groups, in the order of their first runs."""
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(run.settings[key] for key in keys), []).append(run)
    return [
        Gathered(
            settings=dict(zip(keys, values, strict=True)),
            runs=tuple(group),
            figures={metric.name: _figures(group, averaged, metric.name) for metric in metrics},
        )
        for values, group in members.items()
    ]


def best_first(groups: Sequence[Gathered], sort: Metric) -> list[Gathered]:
    """The groups by their mean, those without one last in the order given."""

    def place(group: Gathered) -> tuple[bool, float]:
        values = group.figures[sort.name]
        if not values:
            return True, 0.0
        mean = estimate(values).mean
        return False, -mean if sort.higher_is_better else mean

    return sorted(groups, key=place)


def _figures(runs: Sequence[Run], averaged: Sequence[str], name: str) -> Values:
    return gathered(
        (tuple(run.settings[key] for key in averaged), run.seed, run.figures[name])
        for run in runs
        if run.finished and name in run.figures
    )
