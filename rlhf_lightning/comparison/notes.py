"""Notes under a comparison: how its figures were computed, and which runs they exclude."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_lightning.comparison.differing import MISSING, SEED
from rlhf_lightning.comparison.metrics import OBJECTIVE, SECONDS, VALIDATION
from rlhf_lightning.comparison.reading import Found
from rlhf_lightning.comparison.records import FINISHED, Comparison, Group, LeftOut, Run


def notes(comparison: Comparison, averaged: Sequence[str]) -> tuple[str, ...]:
    """Notes on how the figures were computed, one or two sentences each.

    Args:
        averaged: the keys that differ within groups.
    """
    if not any(group.estimates for group in comparison.groups):
        return ("No run has finished with figures yet.",)
    parts = (_on_means(comparison), _on_averages(comparison, averaged), _on_deltas(comparison), _caveats(comparison))
    return tuple(sentence for part in parts for sentence in part)


def left_out(runs: Sequence[Run], found: Found) -> tuple[LeftOut, ...]:
    """The runs that the figures do not count, what could not be read of the others, and directories without a run."""
    entries = [LeftOut(run.name, why) for run in runs for why in (*_why(run), *run.late_problems)]
    entries += [LeftOut(str(path), "holds no run") for path in found.without]
    entries += [
        LeftOut(str(path), "was given more than once, and counts once") for path in dict.fromkeys(found.repeated)
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
