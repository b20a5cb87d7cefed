"""Reward interface of the rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from rlhf_lightning.rollouts.sampler import Completion


class Scorer(Protocol):
    """Anything that gives completions a score: a reward model, a classifier, a rule."""

    def to(self, device: torch.device) -> object:
        """Move what it computes with."""
        ...

    def score(self, completions: Sequence[Completion]) -> Tensor:
        """(batch,) float32 on the CPU; the higher the better."""
        ...


class StandardisedScorer:
    """(score - offset) / spread: reference samples get mean 0 and standard deviation 1.

    Keeps the step size and the KL coefficient comparable between reward models (arXiv 1909.08593, section 2.1).
    """

    def __init__(self, scorer: Scorer, *, offset: float, spread: float) -> None:
        self.scorer = scorer
        self.offset = offset
        self.spread = spread

    def to(self, device: torch.device) -> StandardisedScorer:
        self.scorer.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        return (self.scorer.score(completions) - self.offset) / self.spread


class EnsembleScorer:
    """The mean score of several rewards minus their disagreement, or the lowest of them (arXiv 2310.02743).

    Args:
        members: on a common scale.
        combine: `mean_minus_std` or `min`.
        disagreement_coef: what a standard deviation among the members costs (`mean_minus_std`).
    """

    def __init__(
        self, members: Sequence[Scorer], *, combine: Literal["mean_minus_std", "min"], disagreement_coef: float
    ) -> None:
        self.members = tuple(members)
        self.combine = combine
        self.disagreement_coef = disagreement_coef

    def to(self, device: torch.device) -> EnsembleScorer:
        for member in self.members:
            member.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        scores = torch.stack([member.score(completions) for member in self.members])
        if self.combine == "min":
            return scores.amin(dim=0)
        return scores.mean(dim=0) - self.disagreement_coef * scores.std(dim=0, correction=0)
