"""Registry of the kinds of rewards: what `reward.kind` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast, get_args

from rlhf_lightning.rollouts.settings import ClassifierReward, EnsembleReward, LearnedReward, RewardSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.data.encoding import Encoder
    from rlhf_lightning.rollouts.scoring import Scorer
    from rlhf_lightning.stages.context import StageContext

R = TypeVar("R", bound="RewardKind")


class RewardKind:
    """Base class of the kinds of rewards. A subclass declares its section and opens the reward.

    Attributes:
        Settings: the schema of the `reward` section, whose `kind: Literal[NAME]` names it.
    """

    Settings: ClassVar[type[RewardSection]]

    def open(self, context: StageContext, encoder: Encoder, policy: PreTrainedModel) -> list[Scorer]:
        """The raw rewards, on the context's device; more than one for an ensemble.

        Args:
            encoder: for the policy's tokenizer.
            policy: tuned; reward models may share its frozen weights.
        """
        raise NotImplementedError

    def combined(self, settings: RewardSection, members: Sequence[Scorer]) -> Scorer:
        """One reward of the raw ones, each of which is standardized by now."""
        (member,) = members
        return member


REWARDS: dict[str, RewardKind] = {}
"""All registered kinds of rewards by name."""


def register_reward(kind: type[R]) -> type[R]:
    """Class decorator that registers a kind of reward under the name in its section."""
    (name,) = get_args(kind.Settings.model_fields["kind"].annotation)
    REWARDS[name] = kind()
    return kind


@register_reward
class Learned(RewardKind):
    """The reward model that the stage's `reward_from` names."""

    Settings = LearnedReward

    def open(self, context: StageContext, encoder: Encoder, policy: PreTrainedModel) -> list[Scorer]:
        from rlhf_lightning.models.adapters import REWARD
        from rlhf_lightning.stages.ppo import PpoSettings
        from rlhf_lightning.stages.rewards import reward_on_policy

        return [reward_on_policy(context, context.section(PpoSettings).reward_from, encoder, policy, REWARD)]


@register_reward
class Ensemble(RewardKind):
    """Several reward models, combined."""

    Settings = EnsembleReward

    def open(self, context: StageContext, encoder: Encoder, policy: PreTrainedModel) -> list[Scorer]:
        from rlhf_lightning.models.adapters import REWARD
        from rlhf_lightning.stages.rewards import reward_on_policy

        models = cast(EnsembleReward, context.settings.reward).models
        names = [REWARD, *(f"{REWARD}_{number}" for number in range(2, len(models) + 1))]
        return [
            reward_on_policy(context, model, encoder, policy, name) for model, name in zip(models, names, strict=True)
        ]

    def combined(self, settings: RewardSection, members: Sequence[Scorer]) -> Scorer:
        from rlhf_lightning.rollouts.scoring import EnsembleScorer

        reward = cast(EnsembleReward, settings)
        return EnsembleScorer(members, combine=reward.combine, disagreement_coef=reward.disagreement_coef)


@register_reward
class OfAClassifier(RewardKind):
    """The logit of a label of a Transformers sequence classifier."""

    Settings = ClassifierReward

    def open(self, context: StageContext, encoder: Encoder, policy: PreTrainedModel) -> list[Scorer]:
        from rlhf_lightning.models.classifier import Classifier
        from rlhf_lightning.models.hub import ModelSource
        from rlhf_lightning.rollouts.scoring import TextScorer

        reward = cast(ClassifierReward, context.settings.reward)
        classifier = Classifier.load(ModelSource(reward.name_or_path), reward.positive_label)
        return [TextScorer(classifier, include_prompt=reward.include_prompt).to(context.device)]
