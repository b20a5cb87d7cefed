"""Each check on runs that are wrong in one way, and on runs that are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hand_made_runs import ITERATIONS, line, make_record

from rlhf_lightning.evaluation import doctor_outcomes, doctor_updates
from rlhf_lightning.evaluation.doctor_record import Finding, Severity


def found(finding: Finding | None) -> Finding:
    assert finding is not None
    return finding


def constant(value: float) -> list[float]:
    return [value] * ITERATIONS


# Distance to the reference


def test_the_noise_floor_is_the_deepest_four_standard_errors_reach() -> None:
    # K - 4 sqrt(2K/n) over K, for n = 128: smallest at K = 8/n, where it is 8/n - 4 sqrt(16/n^2) = -8/n.
    deepest = min(k - 4 * math.sqrt(2 * k / 128) for k in (step / 10000 for step in range(1, 5000)))
    assert doctor_updates.noise_floor(128) == pytest.approx(0.0625)
    assert deepest == pytest.approx(-0.0625, abs=1e-6)


def test_a_kl_below_zero_by_no_more_than_noise_is_none() -> None:
    assert doctor_updates.negative_kl(make_record({"objective/kl": [-0.06, *line(0.0, 3.0)]})) is None


def test_a_negative_kl_beyond_noise_is_serious_and_says_where() -> None:
    finding = found(doctor_updates.negative_kl(make_record({"objective/kl": [0.0, -0.2, -0.5, 0.1, -0.1]})))
    assert finding.severity is Severity.SERIOUS
    assert finding.evidence == (
        "objective/kl down to -0.5 nats a response, below the noise floor of -0.0625 for batches of 128 "
        "(iterations 1-2, 4)",
    )


@pytest.mark.parametrize(("end", "severity"), [(4.0, None), (8.0, Severity.WARNING), (20.0, Severity.SERIOUS)])
def test_a_kl_is_judged_a_token(end: float, severity: Severity | None) -> None:
    # Responses have 12 tokens at the end: a third of a nat, two thirds, one and two thirds.
    finding = doctor_updates.exploding_kl(
        make_record({"objective/kl": line(0.0, end), "rollout/length": constant(12.0)})
    )
    assert (finding and finding.severity) == severity
    if finding is not None:
        assert finding.overrides == ("kl.coef=0.12",)


def test_a_kl_that_was_asked_for_is_no_explosion() -> None:
    curves = {"objective/kl": line(0.0, 8.0), "rollout/length": constant(12.0)}
    assert doctor_updates.exploding_kl(make_record({**curves, "kl/target": constant(8.0)})) is None
    assert doctor_updates.exploding_kl(make_record({**curves, "kl/target": constant(4.0)})) is not None


UNPAID = {"kl.kind": "none"}


def test_no_penalty_is_a_note_while_nothing_drifts() -> None:
    finding = found(doctor_updates.no_kl_penalty(make_record({"kl/coef": constant(0.0)}, UNPAID)))
    assert finding.severity is Severity.NOTE
    assert finding.overrides == ("kl=fixed", "kl.coef=0.08")
    assert doctor_updates.no_kl_penalty(make_record()) is None


@pytest.mark.parametrize(
    "drift",
    [
        {"objective/gold": [*line(-0.1, 0.8, 20), *line(0.8, 0.1, 20)]},
        {"rollout/repetition": line(0.0, 0.4)},
        {"rollout/length": line(12.0, 20.0)},
        {"objective/kl": line(0.0, 30.0)},
    ],
)
def test_no_penalty_and_a_drift_is_serious(drift: dict[str, list[float]]) -> None:
    assert found(doctor_updates.no_kl_penalty(make_record(drift, UNPAID))).severity is Severity.SERIOUS


def test_a_coefficient_of_zero_is_no_penalty_either() -> None:
    assert "kl.coef=0" in found(doctor_updates.no_kl_penalty(make_record(settings={"kl.coef": 0.0}))).evidence


def test_an_adaptive_controller_that_misses_its_target() -> None:
    def missing(kl_of_a_response: float, iterations: int = 60) -> Finding | None:
        curves = {"kl/target": [6.0] * iterations, "objective/kl": [kl_of_a_response] * iterations}
        return doctor_updates.kl_off_target(make_record(curves, {"kl.horizon": 10000}))

    assert missing(6.9) is None
    assert missing(12.0, iterations=40) is None  # it has not settled
    finding = found(missing(12.0))
    assert "12 on average over the last third, kl/target 6" in finding.evidence[0]
    assert finding.overrides == ("kl.horizon=3333",)


def test_a_penalty_that_holds_the_policy_down() -> None:
    held = {"objective/kl": constant(0.01), "objective/score": constant(0.1)}
    assert doctor_updates.kl_penalty_too_strong(make_record({**held, "kl/coef": constant(0.04)})) is None
    finding = found(doctor_updates.kl_penalty_too_strong(make_record({**held, "kl/coef": constant(5.0)})))
    assert finding.overrides == ("kl.coef=1",)


# Updates


@pytest.mark.parametrize(("precision", "allowed"), [("32-true", 0.004), ("bf16-mixed", 0.05)])
def test_a_mismatch_within_rounding_is_none(precision: str, allowed: float) -> None:
    record = make_record({"rollout/logprob_mismatch": constant(allowed)}, {"trainer.precision": precision})
    assert doctor_updates.sampling_mismatch(record) is None


def test_a_sampling_mismatch_names_the_temperature_and_explains_what_follows() -> None:
    finding = found(doctor_updates.sampling_mismatch(make_record({"rollout/logprob_mismatch": constant(0.12)})))
    assert "temperature" in finding.title
    assert "rollout.temperature=1" in finding.evidence[1]
    assert {"negative_kl", "learning_rate_too_high"} <= finding.explains


VIOLENT = {
    "policy/approx_kl": [1.6, 8.3, *([0.0] * (ITERATIONS - 2))],
    "policy/clip_fraction": [0.22, 0.36, *([0.0] * (ITERATIONS - 2))],
}


def test_a_few_violent_updates_are_a_cause_only_where_they_did_damage() -> None:
    assert doctor_updates.learning_rate_too_high(make_record(VIOLENT)) is None
    record = make_record({**VIOLENT, "objective/kl": line(0.0, 400.0)})
    finding = found(doctor_updates.learning_rate_too_high(record))
    assert finding.severity is Severity.SERIOUS
    assert "in iterations 0-1" in finding.evidence[0]
    # sqrt(median(1.6, 8.3) / 0.002) = 49.7 times too high.
    assert finding.overrides == ("ppo.learning_rate=2e-06",)


def test_violent_updates_as_a_rule_are_a_warning() -> None:
    record = make_record({"policy/approx_kl": constant(0.08), "policy/clip_fraction": constant(0.1)})
    finding = found(doctor_updates.learning_rate_too_high(record))
    assert finding.severity is Severity.WARNING
    assert finding.overrides == ("ppo.learning_rate=1.6e-05",)  # sqrt(0.08 / 0.002) = 6.3


def test_a_large_kl_of_a_few_rare_tokens_is_not_the_learning_rate() -> None:
    record = make_record({"policy/approx_kl": constant(0.12), "objective/gold": line(0.9, -1.0)})
    assert doctor_updates.learning_rate_too_high(record) is None  # the clip fraction is 0.005


STILL = {
    "policy/approx_kl": constant(1e-11),
    "objective/kl": constant(1e-6),
    "objective/score": constant(0.1),
}


def test_a_policy_that_does_not_move() -> None:
    finding = found(doctor_updates.learning_rate_too_low(make_record(STILL, {"ppo.learning_rate": 1e-8})))
    # sqrt(0.002 / 1e-11) = 14,142, of which a thousand is taken.
    assert finding.overrides == ("ppo.learning_rate=1e-05",)
    assert doctor_updates.learning_rate_too_low(make_record({**STILL, "objective/kl": line(0.0, 0.5)})) is None
    assert (
        doctor_updates.learning_rate_too_low(make_record({name: values[:8] for name, values in STILL.items()})) is None
    )


def test_a_high_clip_fraction_as_a_rule() -> None:
    assert doctor_updates.clip_fraction(make_record({"policy/clip_fraction": [0.5, *constant(0.1)[1:]]})) is None
    finding = found(doctor_updates.clip_fraction(make_record({"policy/clip_fraction": constant(0.3)})))
    assert finding.overrides == ("ppo.learning_rate=3.3e-05", "ppo.epochs=1")


def test_updates_that_are_mostly_stopped() -> None:
    curves = {"policy/optimizer_steps": constant(2.0)}
    assert doctor_updates.updates_stop_early(make_record(curves)) is None  # without a target nothing stops them
    finding = found(doctor_updates.updates_stop_early(make_record(curves, {"ppo.target_kl": 0.01})))
    assert finding.evidence == ("policy/optimizer_steps 2 of 8 in the median iteration; ppo.target_kl=0.01",)
    full = make_record({"policy/optimizer_steps": constant(8.0)}, {"ppo.target_kl": 0.01})
    assert doctor_updates.updates_stop_early(full) is None


# The critic


def test_a_frozen_value_head() -> None:
    frozen = {"value/mean": constant(0.0), "value/explained_variance": constant(0.0)}
    by_weight = found(doctor_outcomes.critic_does_not_learn(make_record(frozen, {"ppo.value_coef": 0.0})))
    assert by_weight.severity is Severity.SERIOUS
    assert by_weight.title == "the value head is frozen"
    assert by_weight.overrides == ("ppo.value_coef=0.1",)
    for_other_reasons = found(doctor_outcomes.critic_does_not_learn(make_record(frozen)))
    assert for_other_reasons.title == "the value head is frozen"
    assert "ppo.critic_learning_rate=0.005" in for_other_reasons.overrides


def test_a_critic_that_moves_and_explains_nothing_is_a_warning() -> None:
    finding = found(doctor_outcomes.critic_does_not_learn(make_record({"value/explained_variance": constant(0.01)})))
    assert finding.severity is Severity.WARNING
    assert doctor_outcomes.critic_does_not_learn(make_record({"value/explained_variance": constant(0.01)[:9]})) is None


def test_a_critic_worse_than_a_constant_for_long() -> None:
    late = [*line(0.0, 0.3, 20), *([-0.4] * 20)]
    finding = found(doctor_outcomes.critic_worse_than_constant(make_record({"value/explained_variance": late})))
    assert finding.severity is Severity.SERIOUS
    assert "iterations 20-39, down to -0.4" in finding.evidence[0]
    # Bad at the start and good later, as large critic steps can be: nothing to say.
    early = [-1.4, *line(0.0, 0.6, 39)]
    assert doctor_outcomes.critic_worse_than_constant(make_record({"value/explained_variance": early})) is None


def test_values_far_beyond_all_rewards() -> None:
    finding = found(doctor_outcomes.value_explosion(make_record({"value/mean": line(0.0, -40.0)})))
    assert "value/mean -40, while objective/reward never exceeds 1.4" in finding.evidence[0]
    assert finding.overrides == ("ppo.critic_learning_rate=0.0001",)
    # -10 where the rewards are -30: a critic on its way.
    slow = {"value/mean": line(0.0, -10.0), "objective/reward": line(0.0, -30.0)}
    assert doctor_outcomes.value_explosion(make_record(slow)) is None


# The reward

LONGER = {"rollout/length": line(12.0, 24.0)}


def test_length_gaming_needs_longer_responses_that_score_higher_for_it() -> None:
    correlated = {"rollout/score_length_correlation": constant(0.7)}
    finding = found(doctor_outcomes.length_gaming(make_record({**LONGER, **correlated})))
    assert finding.severity is Severity.SERIOUS
    assert "up to 0.7" in finding.evidence[2]
    assert finding.overrides == ("reward.length_penalty=0.02",)
    assert doctor_outcomes.length_gaming(make_record(correlated)) is None
    assert doctor_outcomes.length_gaming(make_record(LONGER)) is None
    falling = {**LONGER, **correlated, "objective/score": line(0.5, -1.0)}
    assert doctor_outcomes.length_gaming(make_record(falling)) is None


def test_length_that_decides_the_score_is_serious_unless_responses_shrink() -> None:
    decided = {"rollout/score_length_correlation": constant(0.7)}
    steady = make_record({**decided, "rollout/length": line(12.0, 12.5)})
    assert found(doctor_outcomes.length_gaming(steady)).severity is Severity.SERIOUS
    assert doctor_outcomes.length_gaming(make_record(decided)) is None  # from 14 tokens to 12


def test_a_bonus_for_length_that_tells_in_the_scores_is_a_warning_before_responses_grow() -> None:
    paid = {"reward.length_penalty": -0.1}
    correlated = {"rollout/score_length_correlation": constant(0.5)}
    assert found(doctor_outcomes.length_gaming(make_record(correlated, paid))).severity is Severity.WARNING
    assert doctor_outcomes.length_gaming(make_record(correlated)) is None
    assert doctor_outcomes.length_gaming(make_record(settings=paid)) is None


def test_a_bonus_for_length_is_named_as_the_cause() -> None:
    finding = found(doctor_outcomes.length_gaming(make_record(LONGER, {"reward.length_penalty": -0.1})))
    assert "reward.length_penalty=-0.1 pays for every token" in finding.evidence
    assert finding.overrides == ("reward.length_penalty=0",)


@pytest.mark.parametrize(("end", "title"), [(20.0, "responses grow"), (5.0, "responses shrink"), (10.0, None)])
def test_responses_that_change_their_length(end: float, title: str | None) -> None:
    finding = doctor_outcomes.length_drift(make_record({"rollout/length": line(12.0, end)}))
    assert (finding and finding.title) == title


def test_proxy_up_and_gold_down_is_over_optimization() -> None:
    hacked = {"objective/gold": [*line(-0.1, 0.8, 20), *line(0.8, 0.0, 20)]}
    finding = found(doctor_outcomes.overoptimization(make_record(hacked)))
    assert finding.overrides[0] == "kl.coef=0.12"
    assert finding.overrides[1].startswith("ppo.iterations=2")
    both_fall = {**hacked, "objective/score": [*line(0.0, 1.0, 20), *line(1.0, -1.0, 20)]}
    assert doctor_outcomes.overoptimization(make_record(both_fall)) is None


def test_scores_that_no_longer_differ() -> None:
    alike = make_record({"objective/score_std": [1.0, *constant(0.01)[1:]]})
    assert found(doctor_outcomes.saturated_reward(alike)).evidence[0].endswith("1 at the start, 0.01 at the end")
    clipped = make_record({"objective/score": line(0.0, 2.2)}, {"reward.clip": 2.0})
    assert found(doctor_outcomes.saturated_reward(clipped)).overrides == ("reward.clip=6",)
    assert doctor_outcomes.saturated_reward(make_record(settings={"reward.clip": 5.0})) is None


def reward_model(**figures: Any) -> dict[str, Any]:
    known = {"pairs": 400, "accuracy": 0.66, "accuracy_ci": [0.61, 0.71], "best_baseline": "longer", "lift": 0.1}
    return {"stages": {"reward_model": {**known, "lift_ci": [0.05, 0.15], **figures}}}


def test_a_reward_model_at_chance() -> None:
    assert doctor_outcomes.reward_model_at_chance(make_record(metrics=reward_model())) is None
    chance = reward_model(accuracy=0.51, accuracy_ci=[0.46, 0.56])
    finding = found(doctor_outcomes.reward_model_at_chance(make_record(metrics=chance)))
    assert finding.severity is Severity.SERIOUS
    assert finding.evidence[0] == "right on 51.0% [46.0%, 56.0%] of 400 held-out pairs"
    only_length = found(doctor_outcomes.reward_model_at_chance(make_record(metrics=reward_model(lift_ci=[-0.02, 0.1]))))
    assert only_length.severity is Severity.WARNING
    assert "'prefer the longer' is as good" in only_length.evidence[1]


@pytest.mark.parametrize(("source", "proposed"), [(None, "comparisons"), ("ai_feedback", "ai_feedback")])
def test_more_comparisons_are_asked_of_the_stage_that_made_them(source: str | None, proposed: str) -> None:
    settings = {"comparisons.prompts": 500, "ai_feedback.prompts": 500, "reward_model.comparisons_from": source}
    chance = reward_model(accuracy=0.51, accuracy_ci=[0.46, 0.56])
    finding = found(doctor_outcomes.reward_model_at_chance(make_record(settings=settings, metrics=chance)))
    assert finding.overrides == (f"{proposed}.prompts=1000", "reward_model.epochs=2")


# Responses


@pytest.mark.parametrize(("end", "severity"), [(0.1, None), (0.03, Severity.WARNING), (0.005, Severity.SERIOUS)])
def test_entropy_is_judged_by_what_is_left_of_it(end: float, severity: Severity | None) -> None:
    finding = doctor_outcomes.entropy_collapse(make_record({"objective/entropy": [0.5, *constant(end)[1:]]}))
    assert (finding and finding.severity) == severity
    if finding is not None:
        assert "ppo.entropy_coef=0.01" in finding.overrides


@pytest.mark.parametrize(
    ("opening", "variety", "severity"),
    [
        (0.9, 0.05, Severity.WARNING),
        (0.9, 0.07, Severity.NOTE),  # a fifth of 0.3 is 0.06
        (0.45, 0.2, Severity.NOTE),
        (0.39, 0.2, None),  # not many of them
        (0.35, 0.05, Severity.WARNING),  # several refusals, with openings of their own
        (0.3, 0.05, None),  # 0.1 more than at the start: chance
    ],
)
def test_responses_that_are_all_alike(opening: float, variety: float, severity: Severity | None) -> None:
    curves = {
        "rollout/top_opening_share": [0.2, *constant(opening)[1:]],
        "rollout/distinct_2": [0.3, *constant(variety)[1:]],
    }
    finding = doctor_outcomes.collapsed_responses(make_record(curves))
    assert (finding and finding.severity) == severity
    if finding is not None:
        assert f"rollout/distinct_2 0.3 at the start, {variety} at the end" in finding.evidence
        assert finding.overrides == (("kl.coef=0.12",) if severity is Severity.WARNING else ())


def test_responses_were_alike_from_the_start() -> None:
    curves = {"rollout/top_opening_share": constant(1.0), "rollout/distinct_2": constant(0.01)}
    assert doctor_outcomes.collapsed_responses(make_record(curves)) is None


def test_responses_that_stop_ending_themselves() -> None:
    finding = found(
        doctor_outcomes.vanishing_eos(
            make_record({"rollout/eos_rate": line(1.0, 0.1)}, {"ppo.missing_eos_penalty": None})
        )
    )
    assert finding.title == "responses end themselves less and less"
    assert finding.overrides == ("ppo.missing_eos_penalty=-1", "rollout.max_new_tokens=64")
    never = found(doctor_outcomes.vanishing_eos(make_record({"rollout/eos_rate": constant(0.1)})))
    assert never.title == "responses do not end themselves"
    assert doctor_outcomes.vanishing_eos(make_record({"rollout/eos_rate": line(1.0, 0.95)})) is None


def test_responses_in_loops() -> None:
    assert (
        found(doctor_outcomes.repetition(make_record({"rollout/repetition": line(0.0, 0.2)}))).severity
        is Severity.WARNING
    )
    assert (
        found(doctor_outcomes.repetition(make_record({"rollout/repetition": line(0.0, 0.9)}))).severity
        is Severity.SERIOUS
    )
    assert doctor_outcomes.repetition(make_record({"rollout/repetition": constant(0.3)})) is None


# Ends


def test_a_failed_run_shows_its_error() -> None:
    record = make_record(state="failed", stage="ppo", error="A rule broke.\nhere\ndo this")
    finding = found(doctor_outcomes.failed(record))
    assert finding.title == "the run failed in stage ppo"
    assert finding.evidence == ("A rule broke.", "here", "do this")


def test_a_run_whose_process_is_gone() -> None:
    assert doctor_outcomes.cut_short(make_record(state="running", stage="ppo", alive=True)) is None
    assert (
        "its process is gone" in found(doctor_outcomes.cut_short(make_record(state="running", stage="ppo"))).evidence[0]
    )
    assert found(doctor_outcomes.cut_short(make_record(state="interrupted", stage="sft"))).evidence == (
        "interrupted in stage sft",
    )


def test_figures_that_are_not_finite_are_named_from_the_first() -> None:
    curves = {"policy/loss": [0.1, math.nan, math.nan], "value/loss": [0.1, 0.1, math.inf]}
    finding = found(doctor_outcomes.not_finite(make_record(curves)))
    assert finding.evidence == ("stage ppo, first at iteration 1: policy/loss, value/loss",)
    assert finding.overrides == ("ppo.learning_rate=1e-05",)
