"""Findings about the reward: uninformative, gamed, or correlated with length."""

from __future__ import annotations

import statistics

from rlhf_lightning.diagnosis.finding import Finding, Severity, figure, override
from rlhf_lightning.diagnosis.kl import DEFAULT_COEF, GOLD_FALL, LENGTH_DRIFT
from rlhf_lightning.diagnosis.run_record import RunRecord

CORRELATED = 0.4
"""Correlation of score and length that is more than chance in a batch. Healthy runs of the embedded world reach it for
a few iterations, since good help is longer than a refusal."""
DECIDES = 0.6
"""Correlation at which length alone explains more than a third of the scores' variance. Healthy: 0.24 in the median of
the second half."""
SATURATED = 0.05
"""Share of the scores' first standard deviation that is left."""
CLIPPED = 0.95
"""A mean score this close to the clip has most single scores cut off."""
SHRUNK = 0.5
"""Replies half as long as at the start."""


def length_gaming(record: RunRecord) -> Finding | None:
    """Replies grow because longer ones score higher, or length decides most of the score."""
    length, score = record.ppo("rollout/length"), record.ppo("objective/score")
    correlation = record.ppo("rollout/score_length_correlation")
    if length is None or score is None or score.end <= score.first:
        return None
    growth = length.end / max(length.first, 1.0)
    paid = (record.number("reward.length_penalty") or 0.0) < 0
    follows = correlation is not None and max(correlation.smooth.values) > CORRELATED
    decides = correlation is not None and growth >= 1 and statistics.median(correlation.late_half.values) >= DECIDES
    grown = growth >= LENGTH_DRIFT and (paid or follows)
    if not (grown or decides or (paid and follows)):
        return None
    evidence = [length.change(), score.change()]
    if correlation is not None:
        iteration, highest = correlation.smooth.peak()
        usual = statistics.median(correlation.late_half.values)
        evidence.append(
            f"{correlation.name} up to {figure(highest)} (around iteration {iteration}), {figure(usual)} in the median "
            "of the second half"
        )
    if paid:
        evidence.append(f"reward.length_penalty={record.number('reward.length_penalty'):g} pays for every token")
    gold = record.ppo("objective/gold")
    if gold is not None and gold.smooth.peak()[1] - gold.end > GOLD_FALL:
        evidence.append(f"objective/gold fell from {figure(gold.smooth.peak()[1])} to {figure(gold.end)}")
    return Finding(
        name="length_gaming",
        severity=Severity.SERIOUS if grown or decides else Severity.WARNING,
        title="the policy games length: the reward pays for longer replies",
        evidence=tuple(evidence),
        explanation=(
            "Scores rise with length, and replies grow to collect them. Reward models learn this from annotators who "
            "prefer the thorough-looking reply; compare the reward model with its baseline 'longer' in metrics.json."
        ),
        overrides=("reward.length_penalty=0.02",) if not paid else ("reward.length_penalty=0",),
        explains=frozenset(
            {
                "length_drift",
                "vanishing_eos",
                "overoptimisation",
                "exploding_kl",
                "repetition",
                "entropy_collapse",
                "collapsed_replies",
            }
        ),
    )


def length_drift(record: RunRecord) -> Finding | None:
    """Replies much longer or shorter than they were, for whatever reason."""
    length = record.ppo("rollout/length")
    if length is None:
        return None
    growth = length.end / max(length.first, 1.0)
    if SHRUNK < growth < LENGTH_DRIFT:
        return None
    return Finding(
        name="length_drift",
        severity=Severity.WARNING,
        title="replies grow" if growth > 1 else "replies shrink",
        evidence=(length.change(),),
        explanation="Read samples.jsonl and the diary: is what was added, or left out, what was meant to be learned?",
        overrides=("reward.length_penalty=0.02",) if growth > 1 else (),
    )


def overoptimisation(record: RunRecord) -> Finding | None:
    """The proxy holds or rises while the gold reward falls (where a gold reward is known)."""
    gold, score = record.ppo("objective/gold"), record.ppo("objective/score")
    if gold is None or score is None:
        return None
    iteration, best = gold.smooth.peak()
    if best - gold.end <= GOLD_FALL or score.end < score.smooth.at(iteration) - GOLD_FALL:
        return None
    coef = record.number("kl.coef")
    penalty = (override("kl.coef", 3 * coef),) if coef else ("kl=fixed", override("kl.coef", DEFAULT_COEF))
    return Finding(
        name="overoptimisation",
        severity=Severity.SERIOUS,
        title="the reward model is over-optimised",
        evidence=(
            f"objective/gold {figure(best)} around iteration {iteration}, {figure(gold.end)} at the end",
            f"objective/score {figure(score.smooth.at(iteration))} there, {figure(score.end)} at the end",
        ),
        explanation=(
            "The policy has found replies that the reward model overrates. plots/overoptimization.png shows where the "
            "two part; stop before, pay more for KL, or train the reward model on samples of this policy."
        ),
        overrides=(*penalty, f"ppo.iterations={max(1, iteration)}"),
    )


def saturated_reward(record: RunRecord) -> Finding | None:
    """Scores that no longer differ."""
    spread, score = record.ppo("objective/score_std"), record.ppo("objective/score")
    if spread is None or score is None or spread.first == 0:
        return None
    clip = record.number("reward.clip")
    clipped = clip is not None and abs(score.end) >= CLIPPED * clip
    if spread.end > SATURATED * spread.first and not clipped:
        return None
    evidence = [spread.change(), score.change()]
    if clipped:
        evidence.append(f"reward.clip={clip:g} cuts off the mean score")
    return Finding(
        name="saturated_reward",
        severity=Severity.WARNING,
        title="the reward is saturated: all replies score alike",
        evidence=tuple(evidence),
        explanation="Where scores do not differ, advantages are noise, and only the KL penalty still teaches.",
        overrides=(override("reward.clip", 3 * clip),) if clipped and clip is not None else (),
    )


def reward_model_at_chance(record: RunRecord) -> Finding | None:
    """A reward model that cannot tell the better reply, or only by its length."""
    stage = record.last_instance("reward_model")
    figures = record.metrics.get("stages", {}).get(stage, {})
    accuracy, interval, lift = (figures.get(name) for name in ("accuracy", "accuracy_ci", "lift_ci"))
    if accuracy is None or interval is None:
        return None
    at_chance = interval[0] <= 0.5
    no_lift = lift is not None and lift[0] <= 0
    if not (at_chance or no_lift):
        return None
    evidence = [f"right on {accuracy:.1%} [{interval[0]:.1%}, {interval[1]:.1%}] of {figures['pairs']} held-out pairs"]
    if no_lift:
        evidence.append(
            f"'prefer the {figures['best_baseline']}' is as good: lift {figures['lift']:.1%} "
            f"[{lift[0]:.1%}, {lift[1]:.1%}]"
        )
    labels = record.setting(f"{stage}.comparisons_from") or "comparisons"
    rate, prompts = record.number(f"{stage}.learning_rate"), record.number(f"{labels}.prompts")
    return Finding(
        name="reward_model_at_chance",
        severity=Severity.SERIOUS if at_chance else Severity.WARNING,
        title="the reward model is at chance" if at_chance else "the reward model may know only length",
        evidence=tuple(evidence),
        explanation="PPO against such a reward learns its noise. More or cleaner comparisons come first.",
        overrides=(
            *((f"{labels}.prompts={int(2 * prompts)}",) if prompts else ()),
            f"{stage}.epochs=2",
            *((override(f"{stage}.learning_rate", rate / 3),) if rate else ()),
        ),
        explains=frozenset({"overoptimisation"}),
    )
