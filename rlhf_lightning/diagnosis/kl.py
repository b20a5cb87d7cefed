"""Findings about the KL to the reference: negative, exploding, unpenalised, off target, or too restricted."""

from __future__ import annotations

from rlhf_lightning.diagnosis.curve import Curve, spans
from rlhf_lightning.diagnosis.finding import Finding, Severity, figure, override
from rlhf_lightning.diagnosis.run_record import RunRecord

NOISE_DEVIATIONS = 4.0
"""Standard errors that the mean of a batch may stray. See `noise_floor`."""
NATS_A_TOKEN_SERIOUS = 1.0
"""At one nat a token the reference gives an average sampled token 1/e of the probability that the policy gives it:
most replies are none that it would write. Healthy runs of the embedded world end at 0.25 to 0.3."""
NATS_A_TOKEN_WARNING = 0.5
LENGTH_DRIFT = 1.3
"""Replies a third longer than at the start are no accident of sampling."""
REPETITION = 0.1
"""Share of repeated n-grams above which replies read as loops; healthy replies have 0 to 0.03."""
GOLD_FALL = 0.3
"""Fall of the smoothed gold reward from its peak: three standard errors of a batch of 128 replies."""
OFF_TARGET = 0.25
"""An adaptive controller that has had its time holds the KL within a quarter of its target."""
SETTLING_ITERATIONS = 50
"""The controller moves the coefficient by a few percent an iteration: it needs about thirty before it can be judged."""
DRIFTS = frozenset(
    {
        "exploding_kl",
        "overoptimisation",
        "collapsed_replies",
        "entropy_collapse",
        "repetition",
        "length_drift",
        "vanishing_eos",
    }
)
"""Findings that a KL penalty that is too weak explains. Length gaming is one too, unless the reward asks for length."""
HELD = 0.1
"""Nats a reply below which the policy is still the reference for practical purposes."""
STRONG_COEF = 0.4
"""A nat costs 0.4 standard deviations of the score: five times the default."""
ENOUGH_ITERATIONS = 10
"""Fewer cannot tell slow from stuck."""
DEFAULT_COEF = 0.08
"""Default of `kl.coef` in conf/kl/fixed.yaml."""


def nats_a_token(record: RunRecord) -> Curve | None:
    """The KL a reply divided by the tokens of a reply, over the iterations."""
    kl, length = record.ppo("objective/kl"), record.ppo("rollout/length")
    if kl is None or length is None:
        return None
    values = tuple(
        value / max(length.at(iteration), 1.0) for iteration, value in zip(kl.iterations, kl.values, strict=True)
    )
    return Curve("KL a token", kl.iterations, values)


def noise_floor(batch_size: float) -> float:
    """Magnitude of the most negative batch mean of k1 estimates that chance explains, in nats per reply.

    The log-ratio of two policies at a KL of K has mean K and, near zero, variance 2K. At z standard errors below, the
    mean of a batch of n is K - z sqrt(2K/n); the smallest value of that over all K is -z^2 / 2n.
    """
    return NOISE_DEVIATIONS**2 / (2 * batch_size)


def negative_kl(record: RunRecord) -> Finding | None:
    """A KL below what the estimator's noise allows: the replies are not samples of the policy that is evaluated."""
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
            f"objective/kl down to {figure(min(kl.values))} nats a reply, below the noise floor of {figure(-floor)} "
            f"for batches of {batch_size:g} (iterations {spans(below)})",
        ),
        explanation=(
            "A KL cannot be negative; its estimate can, by a little. This much means that the replies were not drawn "
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
            f"objective/kl {figure(kl.end)} nats a reply at the end, {figure(per_token.end)} a token; "
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
            f"objective/kl {figure(kl.first)} at the start, {figure(kl.end)} nats a reply at the end "
            f"({figure(per_token.end)} a token)",
            *drift,
        ),
        explanation=(
            "Nothing but the learning rate keeps the policy near texts that the reward model can judge. The longer it "
            "trains, the surer it finds replies that score well and are not good."
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
        evidence=(f"kl.coef={figure(coef)}; objective/kl {figure(kl.end)} nats a reply at the end", score.change()),
        explanation=f"A nat of KL costs {figure(coef)} of score, more than the reward has to offer for it.",
        overrides=(override("kl.coef", coef / 5),),
    )
