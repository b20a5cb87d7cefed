"""KL penalty of a run: estimator, place (reward or loss), and current coefficient."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.objectives.kl import SampleEstimator, adapted_coefficient
from rlhf_lightning.settings.reinforcement import AdaptiveKl, KlSettings, NoKl


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
            kl: summed over each reply's tokens, averaged over replies.
            episodes: replies in the batch.
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
