"""Findings about the replies: collapsed, unfinished, repetitive."""

from __future__ import annotations

from rlhf_lightning.diagnosis.finding import Finding, Severity, figure, override
from rlhf_lightning.diagnosis.kl import REPETITION
from rlhf_lightning.diagnosis.run_record import RunRecord

COLLAPSED = 0.03
"""Share of the first entropy that is left. Healthy runs of the embedded world end with 0.08 to 0.28 of it."""
NARROW = 0.06
ENDLESS = 0.5
"""Fewer than half of the replies end themselves."""
FEWER_ENDS = 0.9
"""Share of the first rate of replies that end themselves."""
LOOPS = 0.3
"""Share of repeated n-grams in replies that consist of loops."""
OPENS_ALIKE = 0.15
"""By how much the share of the most frequent opening has to grow: about four standard errors in a batch of 128."""
LITTLE_VARIETY = 0.2
"""Share of the first distinct-2 that is left. In batches of 64 to 512 replies of the embedded world (`behaviour.py`),
flawless ones that all open with one polite phrase keep 0.29 to 0.45 of the base model's, those with any polite opening
0.7 to 0.8, and refusals of every prompt 0.04 to 0.12."""
MANY = 0.4
"""Share of replies with one opening that is more than a mixture: politeness with any of its phrases gives 0.34. Where
policies of the embedded world had learned to refuse nearly everything, with random fillers, it was 0.35 to 0.5, and 0.7
of distinct-2 was left: those are told from polite ones by what they say alone, so this is a note."""


def entropy_collapse(record: RunRecord) -> Finding | None:
    """The policy says one thing only."""
    entropy = record.ppo("objective/entropy")
    if entropy is None or entropy.first <= 0 or entropy.end > NARROW * entropy.first:
        return None
    collapsed = entropy.end <= COLLAPSED * entropy.first
    low = entropy.where(lambda value: value <= NARROW * entropy.first)
    coef, rate = record.number("ppo.entropy_coef"), record.number("ppo.learning_rate")
    return Finding(
        name="entropy_collapse",
        severity=Severity.SERIOUS if collapsed else Severity.WARNING,
        title="the entropy has collapsed" if collapsed else "the entropy is close to collapse",
        evidence=(f"{entropy.change()} (nats a token)", f"first below {NARROW:.0%} of the start at iteration {low[0]}"),
        explanation="A policy without entropy samples the same reply again and again, and so learns nothing new.",
        overrides=(
            override("ppo.entropy_coef", 3 * coef if coef else 0.01),
            *((override("ppo.learning_rate", rate / 3),) if rate else ()),
        ),
    )


def collapsed_replies(record: RunRecord) -> Finding | None:
    """Whatever the prompt, the reply is one of a few; or, which may be fine, replies only begin alike."""
    opening, variety = record.ppo("rollout/top_opening_share"), record.ppo("rollout/distinct_2")
    if opening is None or variety is None or opening.end < opening.first + OPENS_ALIKE:
        return None
    evidence = (opening.change(), variety.change())
    if variety.end > LITTLE_VARIETY * variety.first:
        if opening.end <= MANY:
            return None
        return Finding(
            name="collapsed_replies",
            severity=Severity.NOTE,
            title="many replies begin alike",
            evidence=evidence,
            explanation=(
                "What follows still differs, as where a policy has become polite in one way; or where it refuses in "
                "many words. Look at samples.jsonl, and at evasion and over-refusal in metrics.json."
            ),
        )
    coef = record.number("kl.coef")
    return Finding(
        name="collapsed_replies",
        severity=Severity.WARNING,
        title="the replies have collapsed: much the same one to every prompt",
        evidence=evidence,
        explanation=(
            "A reply that the reward likes after any prompt has displaced the others, such as a refusal. What the "
            "policy could do before is gone; if the reward is right, it does not look at the prompt."
        ),
        overrides=(override("kl.coef", 3 * coef),) if coef else ("kl=fixed",),
        explains=frozenset({"entropy_collapse"}),
    )


def vanishing_eos(record: RunRecord) -> Finding | None:
    """Replies no longer end themselves, or never did."""
    ends = record.ppo("rollout/eos_rate")
    if ends is None or ends.end >= max(ENDLESS, FEWER_ENDS * ends.first):
        return None
    never = ends.first < ENDLESS
    limit = record.number("rollout.max_new_tokens")
    longer = (f"rollout.max_new_tokens={int(2 * limit)}",) if limit else ()
    off = record.setting("ppo.missing_eos_penalty") is None
    penalty = ("ppo.missing_eos_penalty=-1",) if off and record.config.get("ppo") else ()
    return Finding(
        name="vanishing_eos",
        severity=Severity.SERIOUS if ends.end < ENDLESS else Severity.WARNING,
        title="replies do not end themselves" if never else "replies end themselves less and less",
        evidence=(ends.change(), *([length.change()] if (length := record.ppo("rollout/length")) else [])),
        explanation=(
            "A reply that is cut off has no natural place for its score, and the reward model has seen few such. Give "
            "replies room, and let a missing end cost something."
        ),
        overrides=(*penalty, *longer),
    )


def repetition(record: RunRecord) -> Finding | None:
    """Replies that repeat themselves."""
    repeated = record.ppo("rollout/repetition")
    if repeated is None or repeated.end <= repeated.first + REPETITION:
        return None
    coef = record.number("kl.coef")
    return Finding(
        name="repetition",
        severity=Severity.SERIOUS if repeated.end > LOOPS else Severity.WARNING,
        title="replies repeat themselves",
        evidence=(repeated.change(), f"highest {figure(repeated.peak()[1])} at iteration {repeated.peak()[0]}"),
        explanation="The reward does not mind repetition, or cannot see it, and nothing else holds the policy back.",
        overrides=(override("kl.coef", 3 * coef),) if coef else ("kl=fixed",),
    )
