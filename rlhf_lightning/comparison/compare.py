"""Compare runs: group by settings, average over seeds, subtract a baseline; notes on how figures were computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lightning.comparison.differing_settings import MISSING, SEED, differing_keys, named, values_as_typed
from rlhf_lightning.comparison.metrics import OBJECTIVE, SECONDS, VALIDATION
from rlhf_lightning.comparison.reading import FoundRuns, find_runs, read_run, short_names
from rlhf_lightning.comparison.records import (
    FINISHED,
    Comparison,
    ExcludedRun,
    Group,
    Metric,
    Run,
    Values,
    difference,
    estimate,
    values_by_cell,
)
from rlhf_lightning.comparison.request import Request, baseline_of, keys_of, metrics_of, sort_of


def notes(comparison: Comparison, averaged: Sequence[str]) -> tuple[str, ...]:
    """Notes on how the figures were computed, one or two sentences each.

    Args:
        averaged: the keys that differ within groups.
    """
    if not any(group.estimates for group in comparison.groups):
        return ("No run has finished with figures yet.",)
    parts = (_on_means(comparison), _on_averages(comparison, averaged), _on_deltas(comparison), _caveats(comparison))
    return tuple(sentence for part in parts for sentence in part)


def excluded_runs(runs: Sequence[Run], found: FoundRuns) -> tuple[ExcludedRun, ...]:
    """The runs that the figures do not count, what could not be read of the others, and directories without a run."""
    entries = [ExcludedRun(run.name, why) for run in runs for why in (*_why(run), *run.late_problems)]
    entries += [ExcludedRun(str(path), "holds no run") for path in found.without]
    entries += [
        ExcludedRun(str(path), "was given more than once, and counts once") for path in dict.fromkeys(found.repeated)
    ]
    return tuple(entries)


def _why(run: Run) -> Iterator[str]:
    yield from run.read_problems
    if not run.config and not run.read_problems:
        yield "has no config.yaml"
    elif run.state != FINISHED:
        stage = f" in stage {run.stage}" if run.stage else ""
        error = f": {run.error.splitlines()[0]}" if run.error else ""
        yield f"{run.state}{stage}{error}"
    elif not run.figures and not run.read_problems:
        yield "finished, but left no figures"


def _on_means(comparison: Comparison) -> Iterator[str]:
    counts = {estimate.count for group in comparison.groups for estimate in group.estimates.values()}
    if counts == {1}:
        yield "One seed each (n = 1): no interval can be given, and a difference may be chance."
    else:
        one = " A group with one seed has no interval." if 1 in counts else ""
        yield f"Mean ± half of its 95% interval over n seeds (Student's t with n - 1 degrees of freedom).{one}"
    best = {True: "highest first", False: "lowest first", None: "lowest first"}[comparison.sort.higher_is_better]
    yield f"Sorted by {comparison.sort.name}, {best}."
    if any(_repeats(group) for group in comparison.groups):
        yield "Runs of the same settings and seed are averaged and count as one seed."


def _on_averages(comparison: Comparison, averaged: Sequence[str]) -> Iterator[str]:
    if not averaged:
        return
    yield f"Averaged within each seed over {', '.join(averaged)}."
    combinations = [
        {(run.seed, *(run.settings[key] for key in averaged)) for run in group.finished} for group in comparison.groups
    ]
    if any(found != combinations[0] for found in combinations):
        yield (
            "The groups do not hold the same combinations of these and the seed, so their means are not of the same "
            "mixture; paired differences are, over the combinations that both have."
        )


def _on_deltas(comparison: Comparison) -> Iterator[str]:
    if comparison.baseline is None or len(comparison.groups) < 2:
        return
    methods = {delta.method for group in comparison.groups for delta in group.deltas.values()}
    if "paired" in methods:
        yield "Differences are paired: Student's t interval of the differences seed by seed, n pairs."
    if "unpaired" in methods:
        yield "Marked u: fewer than two seeds in common, so the interval is Welch's, of independent means."
    if "no interval" in methods:
        yield "A difference without ± has too few seeds for an interval."


def _caveats(comparison: Comparison) -> Iterator[str]:
    finished = [run for run in comparison.runs if run.finished and run.config]
    shown = {metric.name for metric in comparison.metrics}
    ends = {str(run.config.get("pipeline.stages", ["?"])) for run in finished}
    if OBJECTIVE in shown and len({_last(run) for run in finished}) > 1:
        yield "The runs end in different stages, so their objectives are different figures."
    elif len(ends) > 1:
        yield "The runs have different pipelines."
    splits = {name.partition(".")[0] for name in shown if name.endswith(".gold_reward")} - {VALIDATION}
    if comparison.sort.name == OBJECTIVE and splits and len(comparison.groups) > 1:
        yield (
            "The objective chose the order, which flatters the best of many; the prompts of "
            f"{' and '.join(sorted(splits))} decided nothing."
        )
    if any(name.endswith("proxy_reward") for name in shown) and len(finished) > 1:
        yield "A proxy reward is in the scale of its own run's reward model."
    if SECONDS in shown and any(run.reused for run in finished):
        yield "Seconds of a run that took stages from the cache do not hold what those took when they were made."
    if any(value == MISSING for run in comparison.runs for value in run.settings.values()):
        yield f"{MISSING}: the config of a run of another version has no such key."
    if SEED in comparison.keys:
        yield "Grouped by the seed: what varies within a group is not chance alone."


def _last(run: Run) -> str:
    stages = run.config.get("pipeline.stages")
    return str(stages[-1]) if isinstance(stages, list) and stages else "?"


def _repeats(group: Group) -> bool:
    places = [(run.seed, *run.settings.values()) for run in group.finished]
    return len(set(places)) < len(places)


@dataclass(frozen=True, eq=False)
class GroupBuilder:
    """A group under construction: its settings, its runs, and their figures by metric."""

    settings: Mapping[str, str]
    runs: tuple[Run, ...]
    figures: Mapping[str, Values]

    def finish(self, baseline: GroupBuilder | None) -> Group:
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
    runs, columns, averaged = distinguishing_keys([read_run(directory, name) for directory, name in places], request)
    known = [run for run in runs if run.config]
    metrics, sort = metrics_of(request, known), sort_of(request, known)
    in_order = group_runs(known, columns, averaged, [*metrics, sort])
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
        left_out=excluded_runs(runs, found),
    )
    return replace(comparison, notes=notes(comparison, averaged))


def distinguishing_keys(runs: Sequence[Run], request: Request) -> tuple[list[Run], tuple[str, ...], tuple[str, ...]]:
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


def group_runs(
    runs: Sequence[Run], keys: Sequence[str], averaged: Sequence[str], metrics: Sequence[Metric]
) -> list[GroupBuilder]:
    """The groups, in the order of their first runs."""
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(run.settings[key] for key in keys), []).append(run)
    return [
        GroupBuilder(
            settings=dict(zip(keys, values, strict=True)),
            runs=tuple(group),
            figures={metric.name: _figures(group, averaged, metric.name) for metric in metrics},
        )
        for values, group in members.items()
    ]


def best_first(groups: Sequence[GroupBuilder], sort: Metric) -> list[GroupBuilder]:
    """The groups by their mean, those without one last in the order given."""

    def place(group: GroupBuilder) -> tuple[bool, float]:
        values = group.figures[sort.name]
        if not values:
            return True, 0.0
        mean = estimate(values).mean
        return False, -mean if sort.higher_is_better else mean

    return sorted(groups, key=place)


def _figures(runs: Sequence[Run], averaged: Sequence[str], name: str) -> Values:
    return values_by_cell(
        (tuple(run.settings[key] for key in averaged), run.seed, run.figures[name])
        for run in runs
        if run.finished and name in run.figures
    )
