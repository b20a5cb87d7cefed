"""All checks on one run, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from rlhf_lightning.evaluation import doctor_outcomes, doctor_updates
from rlhf_lightning.evaluation.doctor_record import Finding, RunRecord, Severity
from rlhf_lightning.sections import instances_of

Check = Callable[[RunRecord], Finding | None]

CHECKS: tuple[Check, ...] = (
    doctor_outcomes.failed,
    doctor_outcomes.not_finite,
    doctor_updates.sampling_mismatch,
    doctor_updates.learning_rate_too_high,
    doctor_updates.learning_rate_too_low,
    doctor_updates.no_kl_penalty,
    doctor_updates.negative_kl,
    doctor_updates.exploding_kl,
    doctor_updates.kl_off_target,
    doctor_updates.kl_penalty_too_strong,
    doctor_outcomes.reward_model_at_chance,
    doctor_outcomes.length_gaming,
    doctor_outcomes.overoptimization,
    doctor_outcomes.saturated_reward,
    doctor_outcomes.length_drift,
    doctor_outcomes.critic_does_not_learn,
    doctor_outcomes.value_explosion,
    doctor_outcomes.critic_worse_than_constant,
    doctor_outcomes.collapsed_responses,
    doctor_outcomes.entropy_collapse,
    doctor_outcomes.vanishing_eos,
    doctor_outcomes.repetition,
    doctor_updates.clip_fraction,
    doctor_updates.updates_stop_early,
    doctor_outcomes.cut_short,
)
"""Causes before their symptoms."""

EARLY = 5
"""Iterations before which silence of the checks means little."""

SHOWN = (
    "objective/score",
    "objective/gold",
    "objective/kl",
    "objective/entropy",
    "policy/approx_kl",
    "policy/clip_fraction",
    "value/explained_variance",
    "rollout/length",
    "rollout/eos_rate",
    "rollout/repetition",
    "rollout/top_opening_share",
    "rollout/distinct_2",
    "rollout/logprob_mismatch",
    "rollout/score_length_correlation",
)
"""Metrics shown for every run."""


class Verdict(StrEnum):
    """The state of a run in a word."""

    HEALTHY = "healthy"
    DOUBTFUL = "doubtful"
    UNHEALTHY = "unhealthy"
    TOO_EARLY = "too early to tell"


@dataclass(frozen=True, slots=True)
class ShownFigure:
    """A metric of PPO in four numbers."""

    name: str
    first: float
    end: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings of a run.

    Attributes:
        causes: findings that no other one explains, worst first.
        consequences: findings that follow from one of the causes.
        iterations: of PPO, that were looked at.
    """

    verdict: Verdict
    causes: tuple[Finding, ...]
    consequences: tuple[Finding, ...]
    figures: tuple[ShownFigure, ...]
    iterations: int


def diagnose(record: RunRecord) -> Diagnosis:
    """Examines a run, finished or not.

    Args:
        record: what it left behind so far.
    """
    findings = [finding for check in CHECKS if (finding := check(record)) is not None]
    explained = _explained(findings)
    causes = [finding for finding in findings if finding.name not in explained]
    return Diagnosis(
        verdict=_verdict(record, findings),
        causes=tuple(sorted(causes, key=lambda finding: list(Severity).index(finding.severity))),
        consequences=tuple(finding for finding in findings if finding.name in explained),
        figures=_figures(record),
        iterations=record.iterations,
    )


def _explained(findings: list[Finding]) -> set[str]:
    """The findings that follow from others. Of two that explain each other the earlier check is the cause.

    A note explains nothing: no KL penalty is the cause of a drift only where there is one.
    """
    explained: set[str] = set()
    for finding in findings:
        if finding.severity is not Severity.NOTE and finding.name not in explained:
            explained |= finding.explains
    return explained


def _verdict(record: RunRecord, findings: list[Finding]) -> Verdict:
    severities = {finding.severity for finding in findings}
    if Severity.SERIOUS in severities:
        return Verdict.UNHEALTHY
    if Severity.WARNING in severities:
        return Verdict.DOUBTFUL
    planned = record.setting("pipeline.stages")
    judged = record.iterations >= EARLY or record.state == "finished"
    waits = isinstance(planned, list) and any(stage == "ppo" for _, stage in instances_of(record.config)) and not judged
    return Verdict.TOO_EARLY if waits else Verdict.HEALTHY


def _figures(record: RunRecord) -> tuple[ShownFigure, ...]:
    curves = [curve for name in SHOWN if (curve := record.ppo(name)) is not None]
    return tuple(
        ShownFigure(curve.name, curve.first, curve.end, min(curve.values), max(curve.values)) for curve in curves
    )
