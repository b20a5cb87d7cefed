"""Findings about the critic: frozen, useless, or diverged."""

from __future__ import annotations

import statistics

from rlhf_lightning.diagnosis.curve import Curve, spans
from rlhf_lightning.diagnosis.finding import Finding, Severity, figure, override
from rlhf_lightning.diagnosis.run_record import RunRecord

ENOUGH_ITERATIONS = 10
"""Iterations before a critic is judged: one that starts at zero needs some; by then healthy ones explain 0.1."""
NOTHING_EXPLAINED = 0.05
"""Explained variance of a critic that knows nothing; 0 is what a constant explains."""
STILL = 1e-3
"""Movement of value/mean, against the movement of the reward, below which the critic stands still."""
RUN_AWAY = 5.0
"""A mean value beyond five times the largest mean reward is no estimate of it."""
DEFAULT_VALUE_COEF = 0.1


def critic_does_not_learn(record: RunRecord) -> Finding | None:
    """Values that do not move, or explain nothing, while rewards do."""
    explained, values = record.ppo("value/explained_variance"), record.ppo("value/mean")
    if explained is None or values is None or len(explained) < ENOUGH_ITERATIONS:
        return None
    usual = statistics.median(explained.late_half.values)
    coef = record.number("ppo.value_coef")
    frozen = coef == 0 or _stands_still(values, record.ppo("objective/reward"))
    if abs(usual) > NOTHING_EXPLAINED or (not frozen and usual < 0):
        return None
    evidence = [
        f"value/explained_variance {figure(usual)} in the median of the second half (0: no better than a constant)",
        f"value/mean from {figure(min(values.values))} to {figure(max(values.values))}",
    ]
    reward = record.ppo("objective/reward")
    if reward is not None:
        evidence.append(reward.change())
    if coef == 0:
        evidence.insert(0, "ppo.value_coef=0: the value loss has no weight")
    rate = record.number("ppo.critic_learning_rate")
    faster = (override("ppo.critic_learning_rate", 5 * rate),) if rate else ()
    return Finding(
        name="critic_does_not_learn",
        severity=Severity.SERIOUS if frozen else Severity.WARNING,
        title="the value head is frozen" if frozen else "the critic explains nothing",
        evidence=tuple(evidence),
        explanation=(
            "Advantages are estimated against values that know nothing of the prompt or the reply, so every token of a "
            "reply is praised or blamed alike. Learning goes on, but noisily and slowly."
        ),
        overrides=(override("ppo.value_coef", DEFAULT_VALUE_COEF),) if coef == 0 else (*faster, "ppo.critic=separate"),
    )


def _stands_still(values: Curve, reward: Curve | None) -> bool:
    movement = max(values.values) - min(values.values)
    against = max(reward.values) - min(reward.values) if reward is not None else 1.0
    return movement <= STILL * against


def critic_worse_than_constant(record: RunRecord) -> Finding | None:
    """Explained variance below zero, for long."""
    explained = record.ppo("value/explained_variance")
    if explained is None or len(explained) < ENOUGH_ITERATIONS:
        return None
    below = explained.late_half.where(lambda value: value < -NOTHING_EXPLAINED)
    if len(below) < len(explained.late_half) / 2:
        return None
    rate, clip = record.number("ppo.critic_learning_rate"), record.number("ppo.value_clip_range")
    return Finding(
        name="critic_worse_than_constant",
        severity=Severity.SERIOUS,
        title="the critic is worse than a constant",
        evidence=(
            f"value/explained_variance below 0 in iterations {spans(below)}, down to {figure(min(explained.values))}",
        ),
        explanation=(
            "Its values miss the returns by more than the returns' own mean would. Either it overshoots, or it cannot "
            "follow returns that move faster than the value clip lets it, or it reads a trunk that the policy "
            "keeps changing. It adds noise to every advantage."
        ),
        overrides=(
            *((override("ppo.critic_learning_rate", rate / 3),) if rate else ()),
            *((override("ppo.value_clip_range", 5 * clip),) if clip else ()),
            "ppo.critic_warmup=5",
        ),
    )


def value_explosion(record: RunRecord) -> Finding | None:
    """Values far outside the range of rewards."""
    values, reward = record.ppo("value/mean"), record.ppo("objective/reward")
    if values is None or reward is None:
        return None
    scale = max(1.0, *(abs(value) for value in reward.values))
    beyond = values.where(lambda value: abs(value) > RUN_AWAY * scale)
    if not beyond:
        return None
    rate = record.number("ppo.critic_learning_rate")
    largest = max(values.values, key=abs)
    return Finding(
        name="value_explosion",
        severity=Severity.SERIOUS,
        title="the values have run away",
        evidence=(
            f"value/mean {figure(largest)}, while objective/reward never exceeds {figure(scale)} in size "
            f"(iterations {spans(beyond)})",
            *([loss.change()] if (loss := record.ppo("value/loss")) else []),
        ),
        explanation="The critic's steps overshoot; advantages are its noise.",
        overrides=(override("ppo.critic_learning_rate", rate / 10),) if rate else (),
        explains=frozenset({"critic_worse_than_constant", "critic_does_not_learn"}),
    )
