"""Options of a comparison, checked against the runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rlhf_lightning.comparison.differing_settings import Flat, comma_separated, key_named, means_the_same, named
from rlhf_lightning.comparison.metrics import OBJECTIVE, default_metrics, metric, names, selected
from rlhf_lightning.comparison.records import Metric, Run
from rlhf_lightning.errors import ComparisonError

BEST, FIRST = "best", "first"


@dataclass(frozen=True)
class Request:
    """Options of a comparison, as given on the command line.

    Attributes:
        by: keys that make the groups; None: all that differ.
        metrics: names or patterns; None: the usual ones.
        sort: the metric that decides what is best; None: the objective.
        baseline: `best`, `first` (the group of the first run), or settings that one group alone has:
            `kl.coef=0.1,peft=none`.
    """

    by: tuple[str, ...] | None
    metrics: tuple[str, ...] | None
    sort: str | None
    baseline: str


class HasSettings(Protocol):
    """Anything with settings."""

    @property
    def settings(self) -> Mapping[str, str]: ...


T = TypeVar("T", bound=HasSettings)


def keys_of(request: Request, configs: Sequence[Flat]) -> list[str] | None:
    """The config keys that `--by` names; None where it names none.

    Raises:
        ComparisonError: no run has such a key.
    """
    if request.by is None:
        return None
    keys = []
    for name in request.by:
        key = key_named(name, configs)
        if key is None:
            known = [named(key) for key in dict.fromkeys(key for config in configs for key in config)]
            raise ComparisonError(f"No run's config has a key {name!r}.", where=f"--by {name}", fix=_like(name, known))
        keys.append(key)
    return list(dict.fromkeys(keys))


def metrics_of(request: Request, runs: Sequence[Run]) -> list[Metric]:
    """The metrics to show.

    Raises:
        ComparisonError: no finished run has such a metric.
    """
    finished = [run for run in runs if run.finished]
    if request.metrics is None:
        return default_metrics(finished)
    present = names(finished)
    found: list[str] = []
    for word in request.metrics:
        matching = selected(word, present)
        if not matching:
            raise _no_metric(word, "--metrics", present)
        found += matching
    return [metric(name) for name in dict.fromkeys(found)]


def sort_of(request: Request, runs: Sequence[Run]) -> Metric:
    """The metric that decides what is best: the objective, unless another is asked for or nothing else is there.

    Raises:
        ComparisonError: no finished run has the one asked for.
    """
    present = names([run for run in runs if run.finished])
    if request.sort is None:
        return metric(OBJECTIVE if OBJECTIVE in present or not present else present[0])
    if request.sort not in present:
        raise _no_metric(request.sort, "--sort", present)
    return metric(request.sort)


def baseline_of(request: Request, groups: Sequence[T], first: T | None) -> T | None:
    """The group that differences are taken against; None where there is none to take.

    Args:
        groups: those that have figures, best first.
        first: the first run's group.

    Raises:
        ComparisonError: not exactly one group has the settings asked for, or it has no figures.
    """
    if request.baseline == BEST:
        return groups[0] if groups else None
    if request.baseline == FIRST:
        matching = [group for group in groups if group is first]
    else:
        wanted = settings_in(request.baseline)
        matching = [group for group in groups if _has(group.settings, wanted)]
    if len(matching) == 1:
        return matching[0]
    what = "Several groups have these settings." if matching else "No group with figures has these settings."
    raise ComparisonError(what, where=f"--baseline {request.baseline}", fix=f"name one: {_each(groups)}")


def settings_in(text: str) -> dict[str, str]:
    """`kl.coef=0.1,peft=none` as a mapping.

    Raises:
        ComparisonError: a part has no equals sign.
    """
    parts = comma_separated(text)
    if not all("=" in part for part in parts):
        fix = f"write {BEST}, {FIRST}, or settings: kl.coef=0.1,peft=none"
        raise ComparisonError("A baseline is named by its settings.", where=f"--baseline {text}", fix=fix)
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}


def _has(settings: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    for name in wanted:
        if name not in settings:
            where, known = f"--baseline {name}=...", list(settings)
            raise ComparisonError(f"The groups are not told apart by {name!r}.", where=where, fix=_like(name, known))
    return all(means_the_same(value, settings[name]) for name, value in wanted.items())


def _no_metric(name: str, option: str, present: Sequence[str]) -> ComparisonError:
    return ComparisonError(
        f"No finished run has a metric {name!r}.", where=f"{option} {name}", fix=_like(name, present)
    )


def _like(name: str, known: Sequence[str]) -> str:
    """`did you mean ...?`, by spelling, by the last part of a name, by a part of it; else what there is."""
    leaf = name.rpartition(".")[2]
    namesakes = [other for other in known if other.rpartition(".")[2] == leaf]
    leaves = {other.rpartition(".")[2]: other for other in reversed(known)}
    alike = [leaves[other] for other in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.72)]
    longer = [other for other in known if name in other]
    spelled_alike = difflib.get_close_matches(name, known, n=3, cutoff=0.72)
    close = list(dict.fromkeys([*spelled_alike, *namesakes, *alike, *longer]))[:4]
    if close:
        return f"did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:12])
    return f"there are: {shown}{', ...' if len(known) > 12 else ''}" if known else "there are none"


def _each(groups: Iterable[HasSettings]) -> str:
    labels = [",".join(f"{key}={value}" for key, value in group.settings.items()) for group in groups]
    return " | ".join(label for label in labels if label) or "there is only one group"
