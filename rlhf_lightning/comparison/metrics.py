"""Metrics that runs are compared by: their names, directions, and those shown by default."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.comparison.records import Metric, Run
from rlhf_lightning.evaluation.summary import ROWS, short_name

OBJECTIVE = "objective"
SECONDS = "seconds"
VALIDATION = "validation"
"""The split of the objective; no other split influences any decision."""

HIGHER = {
    **dict.fromkeys(("objective", "gold_reward", "proxy_reward", "score", "gold", "lift", "eos_rate"), True),
    **dict.fromkeys(("accuracy", "training_accuracy", "helpful_rate", "honest_rate", "polite_rate", "help"), True),
    **dict.fromkeys(("harmful_rate", "rude_rate", "untrue_rate", "over_refusal_rate", "malformed_rate"), False),
    **dict.fromkeys(("evasive_rate", "benign_refusal_rate", "bare_refusal_rate"), False),
    **dict.fromkeys(("honest_unknown_rate", "reasoned_refusal_rate"), True),
    **dict.fromkeys(("kl", "loss", "validation_loss", "validation_perplexity", "brier", "ece"), False),
    **dict.fromkeys(("repetition", "boilerplate_rate", "fillers", "seconds"), False),
}
"""True if a higher value is better, by the last part of a metric's name."""
STYLES = {
    **{row.key: (re.sub(r", (\w+)$", r" (\1)", row.name), row.style) for row in ROWS},
    "accuracy": ("accuracy", "percent"),
    SECONDS: (SECONDS, "whole"),
}
"""Display name and number format, by the last part of a metric's name: as in the summary of a run."""
ON_ONE_SPLIT = ("proxy_reward", "kl", "harmful_rate", "rude_rate", "over_refusal_rate", "malformed_rate")
"""Metrics shown by default for one split; the gold reward is shown for all but the validation split."""
WITHOUT_EVALUATION = ("ppo.score", "ppo.kl", "sft.validation_loss")


def figures_of(metrics: Mapping[str, Any], last_policy: str | None) -> dict[str, float]:
    """The numbers of a metrics.json by name; those that are null or not finite are left out.

    A figure of a stage is `reward_model.accuracy`; one of the evaluation `ppo.iid.gold_reward`, and of the policy
    evaluated last also `iid.gold_reward`, so that runs whose last policies have different names can be compared.
    """
    figures = dict(_numbers({OBJECTIVE: metrics.get(OBJECTIVE)}))
    stages, evaluation = metrics.get("stages"), metrics.get("evaluate")
    if isinstance(stages, Mapping):
        figures |= dict(_numbers(stages))
    if isinstance(evaluation, Mapping) and evaluation:
        last = last_policy if last_policy in evaluation else list(evaluation)[-1]
        figures |= dict(_numbers({short_name(policy): splits for policy, splits in evaluation.items()}))
        figures |= dict(_numbers(evaluation[last])) if isinstance(evaluation[last], Mapping) else {}
    return figures


def metric(name: str) -> Metric:
    """A metric by its name."""
    place, _, leaf = name.rpartition(".")
    label, style = STYLES.get(leaf, (leaf.replace("_", " "), "figure"))
    if name == OBJECTIVE:
        style = "signed"
    return Metric(name, f"{label}, {place.replace('.', ' ')}" if place else label, HIGHER.get(leaf), style)


def default_metrics(runs: Iterable[Run]) -> list[Metric]:
    """Metrics shown by default: those of the last policy on splits other than validation, and the reward model's."""
    runs = list(runs)
    present = names(runs)
    splits = list(
        dict.fromkeys(
            split
            for run in runs
            for by_split in run.evaluation.values()
            if isinstance(by_split, Mapping)
            for split in by_split
        )
    )
    untouched = [split for split in splits if split != VALIDATION] or splits
    wanted = [OBJECTIVE, *(f"{split}.gold_reward" for split in untouched)]
    wanted += [f"{split}.{figure}" for split in untouched[:1] for figure in ON_ONE_SPLIT]
    wanted += [] if splits else WITHOUT_EVALUATION
    wanted += ["reward_model.accuracy", SECONDS]
    return [metric(name) for name in wanted if name in present]


def names(runs: Iterable[Run]) -> list[str]:
    """The metrics that any of the runs has."""
    return list(dict.fromkeys(name for run in runs for name in run.figures))


def selected(pattern: str, present: Sequence[str]) -> list[str]:
    """The metrics that `--metrics` means by a word: a name, a pattern (`iid.*`), or a figure's name on all splits."""
    if pattern in present:
        return [pattern]
    matching = [name for name in present if fnmatch.fnmatchcase(name, pattern)]
    return matching or [name for name in present if name.count(".") == 1 and name.rpartition(".")[2] == pattern]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
