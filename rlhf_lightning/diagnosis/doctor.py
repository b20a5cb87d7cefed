"""All checks on one run, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from rlhf_lightning.diagnosis import critic, kl, replies, reward, stops, updates
from rlhf_lightning.diagnosis.finding import Finding, Severity
from rlhf_lightning.diagnosis.run_record import RunRecord
from rlhf_lightning.settings.pipeline import instances_of

Check = Callable[[RunRecord], Finding | None]

CHECKS: tuple[Check, ...] = (
    stops.failed,
    stops.not_finite,
    updates.sampling_mismatch,
    updates.learning_rate_too_high,
    updates.learning_rate_too_low,
    kl.no_kl_penalty,
    kl.negative_kl,
    kl.exploding_kl,
    kl.kl_off_target,
    kl.kl_penalty_too_strong,
    reward.reward_model_at_chance,
    reward.length_gaming,
    reward.overoptimisation,
    reward.saturated_reward,
    reward.length_drift,
    critic.critic_does_not_learn,
    critic.value_explosion,
    critic.critic_worse_than_constant,
    replies.collapsed_replies,
    replies.entropy_collapse,
    replies.vanishing_eos,
    replies.repetition,
    updates.clip_fraction,
    updates.updates_stop_early,
    stops.cut_short,
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
