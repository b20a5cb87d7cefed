"""Findings about the policy's updates and its KL to the reference."""

from __future__ import annotations

import math
import statistics

from rlhf_lightning.evaluation.doctor_record import Curve, Finding, RunRecord, Severity, figure, override, spans

NOISE_DEVIATIONS = 4.0
"""Standard errors that the mean of a batch may stray. See `noise_floor`."""
NATS_A_TOKEN_SERIOUS = 1.0
"""At one nat a token the reference gives an average sampled token 1/e of the probability that the policy gives it:
most responses are none that it would write. Healthy runs of the embedded world end at 0.25 to 0.3."""
NATS_A_TOKEN_WARNING = 0.5
LENGTH_DRIFT = 1.3
"""Responses a third longer than at the start are no accident of sampling."""
REPETITION = 0.1
"""Share of repeated n-grams above which responses read as loops; healthy responses have 0 to 0.03."""
GOLD_FALL = 0.3
"""Fall of the smoothed gold reward from its peak: three standard errors of a batch of 128 responses."""
OFF_TARGET = 0.25
"""An adaptive controller that has had its time holds the KL within a quarter of its target."""
SETTLING_ITERATIONS = 50
"""The controller moves the coefficient by a few percent an iteration: it needs about thirty before it can be judged."""
DRIFTS = frozenset(
    {
        "exploding_kl",
        "overoptimization",
        "collapsed_responses",
        "entropy_collapse",
        "repetition",
        "length_drift",
        "vanishing_eos",
    }
)
"""Findings that a KL penalty that is too weak explains. Length gaming is one too, unless the reward asks for length."""
HELD = 0.1
"""Nats a response below which the policy is still the reference for practical purposes."""
STRONG_COEF = 0.4
"""A nat costs 0.4 standard deviations of the score: five times the default."""
ENOUGH_ITERATIONS = 10
"""Fewer cannot tell slow from stuck."""
DEFAULT_COEF = 0.08
"""Default of `kl.coef` in conf/kl/fixed.yaml."""


def nats_a_token(record: RunRecord) -> Curve | None:
    """The KL a response divided by the tokens of a response, over the iterations."""
    kl, length = record.ppo("objective/kl"), record.ppo("rollout/length")
    if kl is None or length is None:
        return None
    values = tuple(
        value / max(length.at(iteration), 1.0) for iteration, value in zip(kl.iterations, kl.values, strict=True)
    )
    return Curve("KL a token", kl.iterations, values)


def noise_floor(batch_size: float) -> float:
    """Magnitude of the most negative batch mean of k1 estimates that chance explains, in nats per response.

    The log-ratio of two policies at a KL of K has mean K and, near zero, variance 2K. At z standard errors below, the
    mean of a batch of n is K - z sqrt(2K/n); the smallest value of that over all K is -z^2 / 2n.
    """
    return NOISE_DEVIATIONS**2 / (2 * batch_size)


def negative_kl(record: RunRecord) -> Finding | None:
    """A KL below what the estimator's noise allows: the responses are not samples of the policy that is evaluated."""
    kl, batch_size = record.ppo("objective/kl"), record.number("rollout.batch_size")
    if kl is None or batch_size is None:
        return None
    floor = noise_floor(batch_size)
    below = kl.where(lambda value: value < -floor)
    if not below:
        return None
    return Finding(
        name="negative_kl",
        severity=Severity.SERIOUS,
        title="the KL is negative beyond noise",
        evidence=(
            f"objective/kl down to {figure(min(kl.values))} nats a response, below the noise floor of {figure(-floor)} "
            f"for batches of {batch_size:g} (iterations {spans(below)})",
        ),
        explanation=(
            "A KL cannot be negative; its estimate can, by a little. This much means that the responses were not drawn "
            "from the distribution whose log-probs are compared: another temperature, top-k or top-p, an old copy of "
            "the policy, wrong positions under padding. The policy is rewarded for the difference."
        ),
        overrides=("callbacks.self_checks=true",),
        explains=frozenset({"exploding_kl", "entropy_collapse"}),
    )


def exploding_kl(record: RunRecord) -> Finding | None:
    """The policy went far away from the reference."""
    per_token, kl = nats_a_token(record), record.ppo("objective/kl")
    if per_token is None or kl is None or per_token.end < NATS_A_TOKEN_WARNING:
        return None
    target = record.ppo("kl/target")
    if target is not None and kl.end <= target.end * (1 + OFF_TARGET):
        return None
    iteration, highest = kl.peak()
    coef = record.number("kl.coef")
    return Finding(
        name="exploding_kl",
        severity=Severity.SERIOUS if per_token.end >= NATS_A_TOKEN_SERIOUS else Severity.WARNING,
        title="the policy has left the reference far behind",
        evidence=(
            f"objective/kl {figure(kl.end)} nats a response at the end, {figure(per_token.end)} a token; "
            f"highest {figure(highest)} at iteration {iteration}",
        ),
        explanation=(
            f"From {NATS_A_TOKEN_WARNING:g} nats a token the policy says what the reference hardly would, and the "
            "reward model judges texts unlike any it has learned from."
        ),
        overrides=(override("kl.coef", 3 * coef),) if coef else ("kl=fixed", override("kl.coef", DEFAULT_COEF)),
    )


def no_kl_penalty(record: RunRecord) -> Finding | None:
    """No effective KL penalty; serious once the policy has drifted."""
    coef, kind = record.ppo("kl/coef"), record.setting("kl.kind")
    unpaid = kind == "none" or record.number("kl.coef") == 0 or (coef is not None and max(coef.values) == 0)
    kl, per_token = record.ppo("objective/kl"), nats_a_token(record)
    if not unpaid or kl is None or per_token is None:
        return None
    drift = _drift(record)
    if drift or per_token.end >= NATS_A_TOKEN_SERIOUS:
        severity = Severity.SERIOUS
    else:
        severity = Severity.WARNING if per_token.end >= NATS_A_TOKEN_WARNING else Severity.NOTE
    return Finding(
        name="no_kl_penalty",
        severity=severity,
        title="there is no KL penalty" + (", and the policy drifts" if severity is not Severity.NOTE else ""),
        evidence=(
            "kl=none" if kind == "none" else "kl.coef=0",
            f"objective/kl {figure(kl.first)} at the start, {figure(kl.end)} nats a response at the end "
            f"({figure(per_token.end)} a token)",
            *drift,
        ),
        explanation=(
            "Nothing but the learning rate keeps the policy near texts that the reward model can judge. The longer it "
            "trains, the surer it finds responses that score well and are not good."
        ),
        overrides=("kl=fixed", override("kl.coef", DEFAULT_COEF)),
        explains=DRIFTS if (record.number("reward.length_penalty") or 0.0) < 0 else DRIFTS | {"length_gaming"},
    )


def _drift(record: RunRecord) -> list[str]:
    """Evidence that the policy got worse, rather than just far from the reference."""
    found = []
    gold = record.ppo("objective/gold")
    if gold is not None and (fall := gold.smooth.peak()[1] - gold.end) > GOLD_FALL:
        iteration, best = gold.smooth.peak()
        found.append(f"objective/gold fell by {figure(fall)} from {figure(best)} (iteration {iteration})")
    repetition = record.ppo("rollout/repetition")
    if repetition is not None and repetition.end > repetition.first + REPETITION:
        found.append(repetition.change())
    length = record.ppo("rollout/length")
    if length is not None and length.end > LENGTH_DRIFT * length.first:
        found.append(length.change())
    return found


def kl_off_target(record: RunRecord) -> Finding | None:
    """An adaptive controller that does not hold the KL at its target."""
    kl, target = record.ppo("objective/kl"), record.ppo("kl/target")
    if kl is None or target is None or len(kl) < SETTLING_ITERATIONS:
        return None
    last_third = kl.values[-(len(kl) // 3) :]
    mean = sum(last_third) / len(last_third)
    if abs(mean / target.end - 1) <= OFF_TARGET:
        return None
    side = "above" if mean > target.end else "below"
    horizon = record.number("kl.horizon")
    return Finding(
        name="kl_off_target",
        severity=Severity.WARNING,
        title=f"the KL stays {side} its target",
        evidence=(
            f"objective/kl {figure(mean)} on average over the last third, kl/target {figure(target.end)}",
            *([coef.change()] if (coef := record.ppo("kl/coef")) else []),
        ),
        explanation=(
            "The controller changes the coefficient by at most 0.2 * episodes / horizon an iteration. A shorter "
            "horizon follows faster; a start nearer to where kl/coef went saves the way. Below the target "
            "with a coefficient that falls, the reward asks for no more."
        ),
        overrides=(f"kl.horizon={max(1, int(horizon / 3))}",) if horizon else (),
    )


def kl_penalty_too_strong(record: RunRecord) -> Finding | None:
    """The KL penalty, not the learning rate, keeps the policy at the reference."""
    kl, score, coefs = (record.ppo(name) for name in ("objective/kl", "objective/score", "kl/coef"))
    if kl is None or score is None or coefs is None or len(kl) < ENOUGH_ITERATIONS:
        return None
    coef = coefs.end
    if coef < STRONG_COEF or kl.end > HELD:
        return None
    return Finding(
        name="kl_penalty_too_strong",
        severity=Severity.WARNING,
        title="the KL penalty holds the policy where it began",
        evidence=(f"kl.coef={figure(coef)}; objective/kl {figure(kl.end)} nats a response at the end", score.change()),
        explanation=f"A nat of KL costs {figure(coef)} of score, more than the reward has to offer for it.",
        overrides=(override("kl.coef", coef / 5),),
    )


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
"""Nats a response from the reference, after all iterations."""


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
        title="responses are sampled from another distribution than is trained: temperature mismatch",
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
                "collapsed_responses",
                "updates_stop_early",
                "repetition",
                "overoptimization",
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
            "what comes after learns from ruined responses."
        ),
        overrides=(override("ppo.learning_rate", rate / factor),) if rate else (),
        explains=frozenset(
            {
                "clip_fraction",
                "exploding_kl",
                "negative_kl",
                "entropy_collapse",
                "collapsed_responses",
                "value_explosion",
                "critic_does_not_learn",
                "critic_worse_than_constant",
                "vanishing_eos",
                "saturated_reward",
                "repetition",
                "length_drift",
                "overoptimization",
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
    """The standard deviation of scores at the start; 1 (standardized scores) where it was not logged."""
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
            f"objective/kl {figure(kl.end)} nats a response after {len(kl)} iterations",
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
