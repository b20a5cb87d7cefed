"""From raw reward to the score that PPO uses, and the KL penalty: estimator, place and current coefficient."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rlhf_lightning.objectives.advantages import replace_unfinished
from rlhf_lightning.objectives.kl import SampleEstimator, adapted_coefficient
from rlhf_lightning.rollouts.settings import AdaptiveKl, KlSettings, NoKl, RewardSection


class KlController:
    """Holds the coefficient of the KL penalty; the adaptive one changes it once per rollout batch.

    Attributes:
        coef: of the penalty, in units of reward per nat; 0 where there is none.
        estimator: of the per-token KL that is paid for, from samples (k1 where nothing is paid); None: the exact one.
        in_reward: whether the penalty is part of the reward.
        in_loss: whether it is part of the loss.
    """

    def __init__(self, settings: KlSettings) -> None:
        self.settings = settings
        self.coef = 0.0
        self.estimator: SampleEstimator | None = "k1"
        self.in_reward = self.in_loss = False
        if not isinstance(settings, NoKl):
            self.coef = settings.coef
            self.estimator = None if settings.estimator == "exact" else settings.estimator
            self.in_reward = settings.apply_to == "reward"
            self.in_loss = settings.apply_to == "loss"

    @property
    def reward_coef(self) -> float:
        """KL penalty of the reward per nat."""
        return self.coef if self.in_reward else 0.0

    def update(self, kl: float, episodes: int) -> None:
        """Adapt the coefficient towards the target, if there is one, by the KL of the last rollouts.

        Args:
            kl: summed over each response's tokens, averaged over responses.
            episodes: responses in the batch.
        """
        if isinstance(self.settings, AdaptiveKl):
            self.coef = adapted_coefficient(
                self.coef, kl=kl, target=self.settings.target, episodes=episodes, horizon=self.settings.horizon
            )

    def metrics(self) -> dict[str, float]:
        """`kl/coef` and, where there is one, `kl/target`."""
        target = {"kl/target": self.settings.target} if isinstance(self.settings, AdaptiveKl) else {}
        return {"kl/coef": self.coef, **target}

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = state["coef"]


SMALLEST_STD = 1e-6
"""A running standard deviation below this does not divide: a constant reward stays what it is."""


class RunningMoments:
    """Mean and standard deviation of all numbers seen so far (Chan, Golub and LeVeque, 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0
        """Sum of squared deviations from the mean."""

    def add(self, values: Tensor) -> None:
        """Add a batch of any size."""
        count = values.numel()
        if not count:
            return
        values = values.double()
        mean = float(values.mean())
        gap = mean - self.mean
        total = self.count + count
        self.squares += float(((values - mean) ** 2).sum()) + gap * gap * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before the first batch."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class RewardShaper:
    """Normalizes by running moments, scales, clips, charges for length, replaces the score of unfinished responses.

    Args:
        settings: of the reward; standardizing on reference samples is the scorer's part.
        missing_eos_penalty: the score of a response that did not end itself, instead of its own; None leaves its own.
    """

    def __init__(self, settings: RewardSection, missing_eos_penalty: float | None) -> None:
        self.settings = settings
        self.missing_eos_penalty = missing_eos_penalty
        self.moments = RunningMoments()

    def shape(self, raw_scores: Tensor, lengths: Tensor, finished: Tensor) -> Tensor:
        """The scores of one iteration's responses.

        Args:
            raw_scores: (batch,), as the scorer gives them.
            lengths: (batch,), tokens of each response.
            finished: (batch,) bool.

        Returns:
            (batch,) float32.
        """
        scores = raw_scores.float()
        if self.settings.running_normalization:
            # What unfinished responses score is replaced below: it must not move the moments either.
            counted = scores if self.missing_eos_penalty is None else scores[finished]
            self.moments.add(counted)
            std = self.moments.std if self.moments.std > SMALLEST_STD else 1.0
            scores = (scores - self.moments.mean) / std
        scores = scores * self.settings.scale
        if self.settings.clip is not None:
            scores = scores.clamp(-self.settings.clip, self.settings.clip)
        scores = scores - self.settings.length_penalty * lengths.float()
        return replace_unfinished(scores, finished, self.missing_eos_penalty)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
