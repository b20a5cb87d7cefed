"""Findings about the critic, the responses, the reward, and runs that ended early or logged NaN."""

from __future__ import annotations

import statistics

from rlhf_lightning.evaluation.doctor_record import Curve, Finding, RunRecord, Severity, figure, override, spans
from rlhf_lightning.evaluation.doctor_updates import DEFAULT_COEF, GOLD_FALL, LENGTH_DRIFT, REPETITION

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
            "Advantages are estimated against values that know nothing of prompt and response, so every token of a "
            "response is praised or blamed alike. Learning goes on, but noisily and slowly."
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


COLLAPSED = 0.03
"""Share of the first entropy that is left. Healthy runs of the embedded world end with 0.08 to 0.28 of it."""
NARROW = 0.06
ENDLESS = 0.5
"""Fewer than half of the responses end themselves."""
FEWER_ENDS = 0.9
"""Share of the first rate of responses that end themselves."""
LOOPS = 0.3
"""Share of repeated n-grams in responses that consist of loops."""
OPENS_ALIKE = 0.15
"""By how much the share of the most frequent opening has to grow: about four standard errors in a batch of 128."""
LITTLE_VARIETY = 0.2
"""Share of the first distinct-2 that is left. In batches of 64 to 512 responses of the embedded world (`behavior.py`),
flawless ones that all open with one polite phrase keep 0.29 to 0.45 of the base model's, those with any polite opening
0.7 to 0.8, and refusals of every prompt 0.04 to 0.12."""
MANY = 0.4
"""Share of responses with one opening that is more than a mixture: politeness with any of its phrases gives 0.34. Where
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
        explanation="A policy without entropy samples the same response again and again, and so learns nothing new.",
        overrides=(
            override("ppo.entropy_coef", 3 * coef if coef else 0.01),
            *((override("ppo.learning_rate", rate / 3),) if rate else ()),
        ),
    )


def collapsed_responses(record: RunRecord) -> Finding | None:
    """Whatever the prompt, the response is one of a few; or, which may be fine, responses only begin alike."""
    opening, variety = record.ppo("rollout/top_opening_share"), record.ppo("rollout/distinct_2")
    if opening is None or variety is None or opening.end < opening.first + OPENS_ALIKE:
        return None
    evidence = (opening.change(), variety.change())
    if variety.end > LITTLE_VARIETY * variety.first:
        if opening.end <= MANY:
            return None
        return Finding(
            name="collapsed_responses",
            severity=Severity.NOTE,
            title="many responses begin alike",
            evidence=evidence,
            explanation=(
                "What follows still differs, as where a policy has become polite in one way; or where it refuses in "
                "many words. Look at samples.jsonl, and at evasion and over-refusal in metrics.json."
            ),
        )
    coef = record.number("kl.coef")
    return Finding(
        name="collapsed_responses",
        severity=Severity.WARNING,
        title="the responses have collapsed: much the same one to every prompt",
        evidence=evidence,
        explanation=(
            "A response that the reward likes after any prompt has displaced the others, such as a refusal. What the "
            "policy could do before is gone; if the reward is right, it does not look at the prompt."
        ),
        overrides=(override("kl.coef", 3 * coef),) if coef else ("kl=fixed",),
        explains=frozenset({"entropy_collapse"}),
    )


def vanishing_eos(record: RunRecord) -> Finding | None:
    """Responses no longer end themselves, or never did."""
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
        title="responses do not end themselves" if never else "responses end themselves less and less",
        evidence=(ends.change(), *([length.change()] if (length := record.ppo("rollout/length")) else [])),
        explanation=(
            "A response that is cut off has no natural place for its score, and the reward model saw few such. Give "
            "responses room, and let a missing end cost something."
        ),
        overrides=(*penalty, *longer),
    )


def repetition(record: RunRecord) -> Finding | None:
    """Responses that repeat themselves."""
    repeated = record.ppo("rollout/repetition")
    if repeated is None or repeated.end <= repeated.first + REPETITION:
        return None
    coef = record.number("kl.coef")
    return Finding(
        name="repetition",
        severity=Severity.SERIOUS if repeated.end > LOOPS else Severity.WARNING,
        title="responses repeat themselves",
        evidence=(repeated.change(), f"highest {figure(repeated.peak()[1])} at iteration {repeated.peak()[0]}"),
        explanation="The reward does not mind repetition, or cannot see it, and nothing else holds the policy back.",
        overrides=(override("kl.coef", 3 * coef),) if coef else ("kl=fixed",),
    )


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
"""Responses half as long as at the start."""


def length_gaming(record: RunRecord) -> Finding | None:
    """Responses grow because longer ones score higher, or length decides most of the score."""
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
        title="the policy games length: the reward pays for longer responses",
        evidence=tuple(evidence),
        explanation=(
            "Scores rise with length, and responses grow to collect them. Reward models learn this from annotators who "
            "prefer the thorough-looking response; compare the reward model with its baseline 'longer' in metrics.json."
        ),
        overrides=("reward.length_penalty=0.02",) if not paid else ("reward.length_penalty=0",),
        explains=frozenset(
            {
                "length_drift",
                "vanishing_eos",
                "overoptimization",
                "exploding_kl",
                "repetition",
                "entropy_collapse",
                "collapsed_responses",
            }
        ),
    )


def length_drift(record: RunRecord) -> Finding | None:
    """Responses much longer or shorter than they were, for whatever reason."""
    length = record.ppo("rollout/length")
    if length is None:
        return None
    growth = length.end / max(length.first, 1.0)
    if SHRUNK < growth < LENGTH_DRIFT:
        return None
    return Finding(
        name="length_drift",
        severity=Severity.WARNING,
        title="responses grow" if growth > 1 else "responses shrink",
        evidence=(length.change(),),
        explanation="Read samples.jsonl and sample_log.jsonl: is what was added, or left out, what should be learned?",
        overrides=("reward.length_penalty=0.02",) if growth > 1 else (),
    )


def overoptimization(record: RunRecord) -> Finding | None:
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
        name="overoptimization",
        severity=Severity.SERIOUS,
        title="the reward model is over-optimized",
        evidence=(
            f"objective/gold {figure(best)} around iteration {iteration}, {figure(gold.end)} at the end",
            f"objective/score {figure(score.smooth.at(iteration))} there, {figure(score.end)} at the end",
        ),
        explanation=(
            "The policy has found responses that the reward model overrates. plots/overoptimization.png shows "
            "where the two part; stop before, pay more for KL, or train the reward model on samples of this policy."
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
        title="the reward is saturated: all responses score alike",
        evidence=tuple(evidence),
        explanation="Where scores do not differ, advantages are noise, and only the KL penalty still teaches.",
        overrides=(override("reward.clip", 3 * clip),) if clipped and clip is not None else (),
    )


def reward_model_at_chance(record: RunRecord) -> Finding | None:
    """A reward model that cannot tell the better response, or only by its length."""
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
        explains=frozenset({"overoptimization"}),
    )


SHOWN = 4
"""Figures that are named where many are not finite."""


def failed(record: RunRecord) -> Finding | None:
    """The run stopped with an error, which says what to do."""
    if record.state != "failed" or record.error is None:
        return None
    return Finding(
        name="failed",
        severity=Severity.SERIOUS,
        title=f"the run failed in stage {record.stage}" if record.stage else "the run failed",
        evidence=tuple(record.error.splitlines()),
        explanation="The error above is the run's own account; run.log and error.log in the run directory say more.",
    )


def cut_short(record: RunRecord) -> Finding | None:
    """The run was interrupted, or its process ended without a status."""
    if record.state == "interrupted":
        how = f"interrupted in stage {record.stage}"
    elif record.state == "running" and not record.alive:
        how = f"status.json says that it runs stage {record.stage}, but on this machine its process is gone"
    else:
        return None
    return Finding(
        name="cut_short",
        severity=Severity.NOTE,
        title="the run did not reach its end",
        evidence=(how,),
        explanation="What follows is about the part that was run. `rlhf train resume=RUN_DIR` continues it.",
    )


def not_finite(record: RunRecord) -> Finding | None:
    """A figure became NaN or infinite."""
    broken = record.not_finite
    if not broken:
        return None
    row, iteration = broken[0]
    when = f"iteration {iteration}" if iteration is not None else f"optimizer step {row.step}"
    names = list(dict.fromkeys(other.name for other, _ in broken))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    rate = record.number(f"{row.stage}.learning_rate")
    return Finding(
        name="not_finite",
        severity=Severity.SERIOUS,
        title="figures are not finite",
        evidence=(f"stage {row.stage}, first at {when}: {', '.join(names[:SHOWN])}{more}",),
        explanation=(
            "A loss or weight overflowed, or was divided by zero. Most often the learning rate is too high, or 16-bit "
            "precision ran out of range; checkpoints/STAGE/diverged_batch.safetensors holds the batch that did it."
        ),
        overrides=(override(f"{row.stage}.learning_rate", rate / 10),) if rate else (),
    )
