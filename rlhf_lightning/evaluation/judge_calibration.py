"""Calibration of a judge: agreement with human labels, compared with rules that do not read the replies.

On HH-RLHF's harmless-base comparisons "the shorter reply" is right in 55% of the pairs, so a judge that is right in 56%
has learned nothing that a model should be trained on; the verdict says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from rlhf_lightning.evaluation.judge_baselines import BASELINES, baseline_scores
from rlhf_lightning.evaluation.judge_bias import length_bias, position_bias, self_preference
from rlhf_lightning.evaluation.judged_pairs import JudgedPair, JudgedReply
from rlhf_lightning.evaluation.preference_accuracy import (
    Floats,
    expected_calibration_error,
    reliability_bins,
    wins,
)
from rlhf_lightning.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_statistic, paired_difference

Figures = dict[str, Any]
Judged = TypeVar("Judged", JudgedPair, JudgedReply)

FEWEST_PROMPTS = 20
"""Over fewer a bootstrap over prompts has no meaning: two pairs, both right, would have the interval [1, 1]."""

RIGHT_ENOUGH = 0.9
"""A judge that is surely right on so many pairs is worth training on even where a rule is as right as it is: then that
rule is what was asked for (a constitution that wants every request refused) and no way around it."""


def calibration_figures(
    pairs: Sequence[JudgedPair],
    by_principle: Sequence[JudgedPair],
    replies: Sequence[JudgedReply],
    bootstrap_samples: int,
    seed: int,
) -> Figures:
    """All figures of a judge: of the labels that it gives, and principle by principle.

    Args:
        pairs: with the labels themselves, over all the principles that the judge goes by.
        by_principle: pairs with what it says under one principle alone.
        replies: the single verdicts of a pointwise judge, where people gave such verdicts too.

    Returns:
        What `pair_figures` says of the labels; `pointwise`: what `reply_figures` says of all verdicts; `principles`: by
        id, `pair_figures` of its pairs and, under `pointwise`, `reply_figures` of its verdicts. Parts without data are
        left out.
    """
    figures = pair_figures(pairs, bootstrap_samples, seed)
    if replies:
        figures["pointwise"] = reply_figures(replies, bootstrap_samples, seed)
    principles: dict[str, Figures] = {}
    for name, own_pairs in _grouped(by_principle).items():
        principles[name] = pair_figures(own_pairs, bootstrap_samples, seed)
    for name, own_replies in _grouped(replies).items():
        principles.setdefault(name, {})["pointwise"] = reply_figures(own_replies, bootstrap_samples, seed)
    return figures | {"principles": principles}


def _grouped(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """By principle, in order of appearance."""
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.principle or "", []).append(one)
    return groups


def pair_figures(pairs: Sequence[JudgedPair], bootstrap_samples: int, seed: int) -> Figures:
    """Figures of a judge's labels on pairs.

    All intervals resample prompts whole. The accuracy and what follows it is over the pairs that both, people and
    judge, have a label for; a tie of the judge counts half. What is not defined (the accuracy where nothing was
    answered) is left out.

    Returns:
        Counts: `pairs`, `labelled` (by people), `answered` (by the judge), `abstained` (it answered, but gave no
        label), `parse_failures` (pairs without a label for want of an answer), `compared`, `prompts` (of those
        compared). `parse_failure_rate` (of questions) and `mass` (of the options, mean).
        `accuracy` (agreement with people), `kappa` (Cohen 1960), `brier`, each with `_ci`, and `ece`; `reliability`:
        the bins of its plot.
        `baselines`: by name `accuracy` (undecided pairs count half) with `accuracy_ci`, `coverage`, and
        `decided_accuracy`. `best_baseline`, `lift` (accuracy above it, pair by pair) with `lift_ci`; `beats_baselines`:
        whether the lift is surely positive; `worth_training_on`: whether it is, or nearly all labels are right.
        What `position_bias`, `length_bias` and `self_preference` return, and the `verdict` in words.
    """
    compared = [pair for pair in pairs if pair.human_prefers_a is not None and pair.probability is not None]
    figures = _answer_figures(pairs, bootstrap_samples, seed)
    figures |= {"compared": len(compared), "prompts": len({pair.group for pair in compared})}
    if compared:
        figures |= _agreement_figures(compared, bootstrap_samples, seed)
    figures |= position_bias(pairs, bootstrap_samples, seed)
    figures |= length_bias(compared, bootstrap_samples, seed)
    figures |= self_preference(compared, bootstrap_samples, seed)
    figures["beats_baselines"] = figures["prompts"] >= FEWEST_PROMPTS and figures["lift_ci"][0] > 0.0
    figures["worth_training_on"] = figures["beats_baselines"] or (
        figures["prompts"] >= FEWEST_PROMPTS and figures["accuracy_ci"][0] >= RIGHT_ENOUGH
    )
    figures["verdict"] = verdict(figures)
    return figures


def reply_figures(replies: Sequence[JudgedReply], bootstrap_samples: int, seed: int) -> Figures:
    """Figures of a pointwise judge's single verdicts.

    Returns:
        `replies`, `answered`, `parse_failure_rate`; `mass`, `human_yes_rate`, `yes_rate`, `accuracy` and
        `balanced_accuracy` (the mean of its accuracies on what people said yes and no to), each with `_ci`. A
        probability of exactly one half is half right. What is not defined is left out.
    """
    answered = [reply for reply in replies if reply.probability is not None]
    yes = np.asarray(wins(np.asarray([reply.probability or 0.0 for reply in answered]) - 0.5))
    truth = np.asarray([float(reply.human_yes) for reply in answered])
    right = yes * truth + (1.0 - yes) * (1.0 - truth)
    groups = [reply.group for reply in answered]

    def balanced(weights: Floats) -> Floats:
        sides = [_weighted_mean(right, weights * side) for side in (truth, 1.0 - truth)]
        return (sides[0] + sides[1]) / 2.0

    mass = bootstrap_mean(
        [reply.mass for reply in replies], bootstrap_samples, seed, [reply.group for reply in replies]
    )
    return {
        "replies": len(replies),
        "answered": len(answered),
        "parse_failure_rate": 1.0 - len(answered) / len(replies),
        **_figure("mass", mass),
        **_figure("human_yes_rate", bootstrap_mean(truth.tolist(), bootstrap_samples, seed, groups)),
        **_figure("yes_rate", bootstrap_mean(yes.tolist(), bootstrap_samples, seed, groups)),
        **_figure("accuracy", bootstrap_mean(right.tolist(), bootstrap_samples, seed, groups)),
        **_figure("balanced_accuracy", bootstrap_statistic(balanced, groups, bootstrap_samples, seed)),
    }


def _answer_figures(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    missing = [pair for pair in pairs if pair.probability is None]
    questions, unanswered = (sum(getattr(pair, name) for pair in pairs) for name in ("questions", "unanswered"))
    failed = sum(pair.unanswered > 0 for pair in missing)
    mass = bootstrap_mean([pair.mass for pair in pairs], samples, seed, [pair.group for pair in pairs])
    return {
        "pairs": len(pairs),
        "labelled": sum(pair.human_prefers_a is not None for pair in pairs),
        "answered": len(pairs) - len(missing),
        "abstained": len(missing) - failed,
        "parse_failures": failed,
        **({"parse_failure_rate": unanswered / questions} if questions else {}),
        **_figure("mass", mass),
    }


def _agreement_figures(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    groups = [pair.group for pair in pairs]
    human = np.asarray([1.0 if pair.human_prefers_a else 0.0 for pair in pairs])
    said = np.asarray([pair.probability for pair in pairs], dtype=np.float64)
    sign = 2.0 * human - 1.0
    right = wins(sign * (said - 0.5))
    chosen = np.asarray(wins(said - 0.5))

    def kappa(weights: Floats) -> Floats:
        agreed, by_judge, by_people = (_weighted_mean(values, weights) for values in (np.asarray(right), chosen, human))
        by_chance = by_judge * by_people + (1.0 - by_judge) * (1.0 - by_people)
        return np.divide(agreed - by_chance, 1.0 - by_chance, out=np.full_like(agreed, np.nan), where=by_chance < 1.0)

    given = np.where(human == 1.0, said, 1.0 - said)
    baselines, won = {}, {}
    for name, scores in baseline_scores(pairs).items():
        won[name] = wins(sign * scores)
        decided = scores != 0.0
        baselines[name] = {
            **_figure("accuracy", bootstrap_mean(won[name], samples, seed, groups)),
            "coverage": float(decided.mean()),
            **({"decided_accuracy": float(np.asarray(won[name])[decided].mean())} if decided.any() else {}),
        }
    best = max(baselines, key=lambda name: baselines[name]["accuracy"])
    return {
        **_figure("accuracy", bootstrap_mean(right, samples, seed, groups)),
        **_figure("kappa", bootstrap_statistic(kappa, groups, samples, seed)),
        **_figure("brier", bootstrap_mean(((said - human) ** 2).tolist(), samples, seed, groups)),
        "ece": expected_calibration_error(given),
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "pairs": count}
            for confidence, accuracy, count in reliability_bins(given)
        ],
        "baselines": baselines,
        "best_baseline": best,
        **_figure("lift", paired_difference(right, won[best], samples, seed, groups)),
    }


def verdict(figures: Figures) -> str:
    """One-sentence summary of the figures of `pair_figures`."""
    if not figures["labelled"]:
        return f"Not measured: people have no preference in any of the {figures['pairs']} pairs."
    if not figures["compared"]:
        return (
            f"No labels: of {figures['pairs']} pairs the judge left {figures['parse_failures']} without an answer and "
            f"{figures['abstained']} undecided."
        )
    baseline = BASELINES[figures["best_baseline"]]
    measured = (
        f"right on {_percent(figures, 'accuracy')} of {figures['compared']} pairs; “{baseline}” is right on "
        f"{figures['baselines'][figures['best_baseline']]['accuracy']:.1%}."
    )
    low, high = figures["accuracy_ci"]
    if figures["prompts"] < FEWEST_PROMPTS:
        return f"Too few to tell ({figures['prompts']} prompts, {FEWEST_PROMPTS} are needed): {measured}"
    if figures["beats_baselines"]:
        return f"Better than every trivial baseline: {measured}"
    if figures["worth_training_on"]:
        return f"As right as a rule that is right itself, so that rule is what is asked for: {measured}"
    if high < 0.5:
        return f"Worse than chance: {measured} Its options are the wrong way round, or one of its biases decides."
    if low <= 0.5:
        return f"At chance: {measured} Nothing can be learned from its labels."
    return f"No better than a trivial baseline: {measured} Its labels hold no more than that rule does."


def _percent(figures: Figures, name: str) -> str:
    low, high = figures[f"{name}_ci"]
    return f"{figures[name]:.1%} [{low:.1%}, {high:.1%}]"


def _figure(name: str, estimate: Estimate) -> Figures:
    """Empty where it is not defined."""
    return {} if np.isnan(estimate.mean) else {name: estimate.mean, f"{name}_ci": estimate.interval}


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    """(observations,), (resamples, observations) -> (resamples,); nan where nothing has weight."""
    total = weights.sum(axis=1)
    means: Floats = np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0.0)
    return means
