"""A stage, a reward and a metric of a user's own, in one module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import torch

from rlhf_lightning.evaluation.metrics import MAX, Metric
from rlhf_lightning.rollouts.sampler import SampledResponse
from rlhf_lightning.rollouts.settings import RewardSection
from rlhf_lightning.sections import Positive, StageRef
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import Stage, StageSection, register, rollout_metric
from rlhf_lightning.stages.reward_kinds import RewardKind, register_reward


class ToySettings(StageSection):
    policy_from: StageRef
    scale: Positive


@register
class Toy(Stage):
    """Measures how large a policy's weights are."""

    name = "toy"
    Settings = ToySettings
    reads = ("seed",)
    metrics = (Metric("toy/weight_norm", MAX, "Weight norm"),)

    def run(self, context: StageContext) -> StageResult:
        from safetensors.torch import load_file

        settings = context.section(ToySettings)
        weights = load_file(f"{context.inputs.model(settings.policy_from).name_or_path}/model.safetensors")
        norms = [settings.scale * float(weight.norm()) for weight in weights.values()]
        for logger in context.tracker.loggers:
            for step, norm in enumerate(norms[:3]):
                logger.log_metrics({"toy/weight_norm": norm}, step)
        (context.directory / "norms.json").write_text(json.dumps(norms))
        return StageResult({"weight_norm": sum(norms)}, objective=sum(norms))


class BrevitySettings(RewardSection):
    kind: Literal["brevity"]


@register_reward
class Brevity(RewardKind):
    """The fewer tokens, the better."""

    Settings = BrevitySettings

    def open(self, *_: object) -> list[Brevity]:
        return [self]

    def to(self, _: object) -> Brevity:
        return self

    def score(self, responses: Sequence[SampledResponse]) -> torch.Tensor:
        return torch.tensor([-float(len(response.response_ids)) for response in responses])


@rollout_metric(Metric("rollout/longest", MAX, "Longest response", "tokens"))
def longest(responses: Sequence[SampledResponse]) -> float:
    return float(max(len(response.response_ids) for response in responses))
