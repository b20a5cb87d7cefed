"""What a rollout asks of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    """(score - offset) / spread * scale: reference samples get mean 0 and standard deviation `scale`.

    Keeps the step size and the KL coefficient comparable between reward models (arXiv 1909.08593, section 2.1).
    """

    def __init__(self, scorer: Scorer, *, offset: float, spread: float, scale: float) -> None:
        self.scorer = scorer
        self.offset = offset
        self.spread = spread
        self.scale = scale

    def to(self, device: torch.device) -> StandardisedScorer:
        self.scorer.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        return (self.scorer.score(completions) - self.offset) / self.spread * self.scale
