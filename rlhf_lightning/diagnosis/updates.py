"""Findings about the updates: too large, too small, clipped, or off-policy."""

from __future__ import annotations

import math
import statistics

from rlhf_lightning.diagnosis.curve import Curve, spans
from rlhf_lightning.diagnosis.finding import Finding, Severity, figure, override
from rlhf_lightning.diagnosis.kl import ENOUGH_ITERATIONS, GOLD_FALL, NATS_A_TOKEN_WARNING, nats_a_token
from rlhf_lightning.diagnosis.run_record import RunRecord

MISMATCH = 0.005
"""Mean |difference| of log-probs in float32, where rounding gives about 1e-6 and a temperature of 0.95 against 1 gives
0.01 and more."""
MISMATCH_16_BIT = 0.1
"""The same in 16-bit arithmetic, whose rounding gives 0.01 to 0.03."""
VIOLENT_CLIP = 0.2
"""A fifth of the ratios outside the clip range: the update has used up what its samples can tell. Healthy: < 0.02."""
VIOLENT_KL = 0.05
"""Approximate KL of an update in nats a token; implementations that stop updates early stop at 0.01 to 0.05."""
FEW_CLIPPED = 0.03
"""Below this clip fraction a large approximate KL is the work of a few rare tokens, not of the step size."""
OFTEN = 0.2
"""Share of iterations above which something is the rule."""
REPEATED = 2
"""A single large update may be the work of an odd batch."""
USUAL_KL = 0.002
"""Approximate KL of an update that learns well, in nats a token. It grows with the square of the learning rate."""
STILL_KL = 1e-5
"""Approximate KL of an update that changes nothing: a learning run's largest is 100 times this and more."""
STILL_DISTANCE = 0.02
"""Nats a reply from the reference, after all iterations."""


def sampling_mismatch(record: RunRecord) -> Finding | None:
    """The distribution that was sampled is not the one that is trained."""
    mismatch = record.ppo("rollout/logprob_mismatch")
    if mismatch is None:
        return None
    sixteen_bit = "16" in f"{record.setting('trainer.precision')} {record.setting('model.dtype')}"
    allowed = MISMATCH_16_BIT if sixteen_bit else MISMATCH
    above = mismatch.where(lambda value: value > allowed)
    if not above:
        return None
    temperature = record.number("rollout.temperature")
    evidence = [
        f"rollout/logprob_mismatch {figure(mismatch.first)} at the start, up to {figure(max(mismatch.values))} "
        f"(above {allowed:g} in iterations {spans(above)})"
    ]
    if temperature is not None:
        evidence.append(f"rollout.temperature={temperature:g} is what the log-probs of the update assume")
    return Finding(
        name="sampling_mismatch",
        severity=Severity.SERIOUS,
        title="replies are sampled from another distribution than is trained: temperature mismatch",
        evidence=tuple(evidence),
        explanation=(
            "The log-probs that the sampler recorded and those that the training recomputes disagree. By far the most "
            "common cause is a temperature that is applied on one side only; others are top-k or top-p, dropout, wrong "
            "positions under padding, another precision. Every ratio and KL is wrong by as much."
        ),
        overrides=("callbacks.self_checks=true",),
        explains=frozenset(
            {
                "negative_kl",
                "learning_rate_too_high",
                "clip_fraction",
                "exploding_kl",
                "entropy_collapse",
                "collapsed_replies",
                "updates_stop_early",
                "repetition",
                "overoptimisation",
            }
        ),
    )


def learning_rate_too_high(record: RunRecord) -> Finding | None:
    """Updates that leave the trust region; serious where the policy was damaged."""
    violent = _violent(record)
    damage = _damage(record)
    kl, clip = record.ppo("policy/approx_kl"), record.ppo("policy/clip_fraction")
    if kl is None or clip is None or not violent or (len(violent) < OFTEN * len(kl) and not damage):
        return None
    if len(violent) < REPEATED and clip.at(violent[0]) <= VIOLENT_CLIP:
        return None
    sizes = [kl.at(iteration) for iteration in violent]
    rate = record.number("ppo.learning_rate")
    factor = min(100.0, max(2.0, math.sqrt(statistics.median(sizes) / USUAL_KL)))
    evidence = [
        f"policy/approx_kl up to {figure(max(sizes))} nats a token and policy/clip_fraction up to "
        f"{figure(max(clip.at(iteration) for iteration in violent))} in iterations {spans(violent)}",
        *damage,
    ]
    norm, limit = record.ppo("optimizer/grad_norm"), record.number("ppo.max_grad_norm")
    if norm is not None and limit is not None and norm.end > 3 * limit:
        evidence.append(f"optimizer/grad_norm {figure(norm.end)} at the end, clipped to {figure(limit)}")
    return Finding(
        name="learning_rate_too_high",
        severity=Severity.SERIOUS if damage else Severity.WARNING,
        title="the learning rate is too high",
        evidence=tuple(evidence),
        explanation=(
            "One iteration moves the policy further than its samples can vouch for. The first such steps ruin it, and "
            "what comes after learns from ruined replies."
        ),
        overrides=(override("ppo.learning_rate", rate / factor),) if rate else (),
        explains=frozenset(
            {
                "clip_fraction",
                "exploding_kl",
                "negative_kl",
                "entropy_collapse",
                "collapsed_replies",
                "value_explosion",
                "critic_does_not_learn",
                "critic_worse_than_constant",
                "vanishing_eos",
                "saturated_reward",
                "repetition",
                "length_drift",
                "overoptimisation",
                "updates_stop_early",
                "kl_off_target",
            }
        ),
    )


def _violent(record: RunRecord) -> list[int]:
    """The iterations whose update left the trust region."""
    kl, clip = record.ppo("policy/approx_kl"), record.ppo("policy/clip_fraction")
    if kl is None or clip is None:
        return []
    return [
        iteration
        for iteration, size in zip(kl.iterations, kl.values, strict=True)
        if clip.at(iteration) > VIOLENT_CLIP or (size > VIOLENT_KL and clip.at(iteration) > FEW_CLIPPED)
    ]


def _damage(record: RunRecord) -> list[str]:
    """Evidence that large updates damaged the policy."""
    found = []
    per_token, kl = nats_a_token(record), record.ppo("objective/kl")
    if per_token is not None and kl is not None and per_token.end > NATS_A_TOKEN_WARNING:
        found.append(f"{kl.change()} ({figure(per_token.end)} nats a token)")
    score = record.ppo("objective/score")
    if score is not None and score.smooth.peak()[1] - score.end > _spread(record, score):
        found.append(score.change())
    gold = record.ppo("objective/gold")
    if gold is not None and gold.smooth.peak()[1] - gold.end > GOLD_FALL:
        found.append(gold.change())
    return found


def _spread(record: RunRecord, score: Curve) -> float:
    """The standard deviation of scores at the start; 1 (standardised scores) where it was not logged."""
    spread = record.ppo("objective/score_std")
    return max(spread.first, abs(score.first) * 1e-3) if spread is not None else 1.0


def learning_rate_too_low(record: RunRecord) -> Finding | None:
    """The policy does not change."""
    size, kl, score = (record.ppo(name) for name in ("policy/approx_kl", "objective/kl", "objective/score"))
    if size is None or kl is None or score is None or len(kl) < ENOUGH_ITERATIONS:
        return None
    if max(size.values) > STILL_KL or abs(kl.end) > STILL_DISTANCE:
        return None
    rate = record.number("ppo.learning_rate")
    largest = max(*size.values, 1e-12)
    factor = min(1000.0, max(3.0, math.sqrt(USUAL_KL / largest)))
    return Finding(
        name="learning_rate_too_low",
        severity=Severity.SERIOUS,
        title="the learning rate is too low: the policy does not move",
        evidence=(
            f"policy/approx_kl at most {figure(max(size.values))} nats a token",
            f"objective/kl {figure(kl.end)} nats a reply after {len(kl)} iterations",
            score.change(),
        ),
        explanation="The updates are real but too small to matter; what moves the score is the choice of prompts.",
        overrides=(override("ppo.learning_rate", rate * factor),) if rate else (),
    )


def clip_fraction(record: RunRecord) -> Finding | None:
    """Many ratios outside the clip range, most of the time."""
    clip = record.ppo("policy/clip_fraction")
    if clip is None:
        return None
    above = clip.where(lambda value: value > VIOLENT_CLIP)
    if len(above) < max(2.0, OFTEN * len(clip)):
        return None
    epochs = record.number("ppo.epochs")
    rate = record.number("ppo.learning_rate")
    return Finding(
        name="clip_fraction",
        severity=Severity.WARNING,
        title="too many tokens are clipped",
        evidence=(
            f"policy/clip_fraction above {VIOLENT_CLIP:g} in {len(above)} of {len(clip)} iterations "
            f"({spans(above)}), up to {figure(max(clip.values))}",
        ),
        explanation="A clipped token no longer teaches. Smaller steps, or fewer passes over a batch, clip fewer.",
        overrides=(
            *((override("ppo.learning_rate", rate / 3),) if rate else ()),
            *((f"ppo.epochs={int(epochs) // 2}",) if epochs and epochs > 1 else ()),
        ),
    )


def updates_stop_early(record: RunRecord) -> Finding | None:
    """The target KL of an update is reached after few of its steps."""
    taken, target = record.ppo("policy/optimizer_steps"), record.number("ppo.target_kl")
    epochs, minibatches = record.number("ppo.epochs"), record.number("ppo.minibatches")
    if taken is None or target is None or epochs is None or minibatches is None:
        return None
    planned, usual = epochs * minibatches, statistics.median(taken.values)
    if usual > planned / 2:
        return None
    rate = record.number("ppo.learning_rate")
    return Finding(
        name="updates_stop_early",
        severity=Severity.WARNING,
        title="most updates are stopped early",
        evidence=(
            f"policy/optimizer_steps {usual:g} of {planned:g} in the median iteration; ppo.target_kl={target:g}",
        ),
        explanation="Rollouts are paid for and then thrown away. Smaller steps use more of them.",
        overrides=(override("ppo.learning_rate", rate / 2),) if rate else (),
    )
