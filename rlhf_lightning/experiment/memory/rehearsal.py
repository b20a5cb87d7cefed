"""Training stages rehearsed on tensors without data: their own code runs, and what it would hold in memory is counted.

What is rehearsed was made in `shapes_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.optimization import trainable
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reward_model import RewardModel
from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.batches import DemonstrationBatch, PreferenceBatch
from rlhf_lightning.experiment.memory.stand_ins import Judge
from rlhf_lightning.models.actor_critic import ReplyOutputs
from rlhf_lightning.models.footprint import Footprint
from rlhf_lightning.models.live_bytes import LiveBytes, storage_bytes
from rlhf_lightning.models.positions import position_arguments
from rlhf_lightning.objectives.logprobs import token_logprobs
from rlhf_lightning.rollouts.collector import evaluating
from rlhf_lightning.rollouts.keyed_sampling import KeyedSampling

ROLLOUT_FIELDS = 10
"""Tensors of (batch, R) that a rollout batch keeps from phase one to phase two, of 4 bytes each."""
TOKEN_FIELDS = 4
"""The same for (batch, P + R): two tensors of 8 bytes each."""


@dataclass(frozen=True, slots=True)
class UpdateShape:
    """One optimizer step of a process.

    Attributes:
        micro_batch: records of a forward pass.
        accumulated: micro-batches of the step.
        precision: `trainer.precision`.
        device: that it runs on.
        copies_gradients: whether the strategy keeps a second copy of the gradients (DDP's buckets).
    """

    micro_batch: int
    accumulated: int
    precision: str
    device: torch.device
    copies_gradients: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """The precision that the forward pass runs in."""
        kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        kind = kinds.get(self.precision)
        return nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)


@dataclass(frozen=True, slots=True)
class RolloutShape:
    """Phase one of PPO, of a process.

    Attributes:
        batch: rollouts of an iteration, those of all processes.
        chunk: generated and scored together.
        prompt: tokens of the longest prompt.
        reply: tokens of the longest reply.
    """

    batch: int
    chunk: int
    prompt: int
    reply: int


def rehearse_sft(module: SupervisedFineTuning, update: UpdateShape, length: int) -> Footprint:
    """Supervised fine-tuning.

    Args:
        length: tokens of the longest demonstration.
    """
    with _rehearsing({"policy": module.policy}, module, update) as stage:
        ids, mask = _tokens(update, update.micro_batch, length)
        batch = DemonstrationBatch(ids, mask, mask.bool(), step_weight=1)
        stage.update(lambda: module(batch))
    return stage.footprint()


def rehearse_reward_model(module: RewardModel, update: UpdateShape, length: int) -> Footprint:
    """Training a reward model.

    Args:
        update: its micro-batch counts pairs.
        length: tokens of the longest prompt with a reply.
    """
    with _rehearsing({"reward model": module.classifier}, module, update) as stage:
        ids, mask = _tokens(update, update.micro_batch, length)
        margin = torch.zeros(update.micro_batch, device=update.device)
        batch = PreferenceBatch(ids, mask, ids, mask, margin, torch.ones_like(margin), step_weight=1)
        stage.update(lambda: module.pair_losses(module(batch), margin).sum())
    return stage.footprint()


def rehearse_ppo(module: PPO, rewards: Sequence[Judge], update: UpdateShape, rollout: RolloutShape) -> Footprint:
    """Proximal policy optimisation.

    Args:
        rewards: the reward models.
    """
    actor_critic = module.actor_critic
    models: dict[str, nn.Module] = {"policy": actor_critic.policy, "reference": module.reference.model}
    for number, reward in enumerate(rewards, start=1):
        models["reward model" if len(rewards) == 1 else f"reward model {number}"] = reward.model
    models["critic"] = actor_critic
    with _rehearsing(models, module, update) as stage:
        width = rollout.prompt + rollout.reply
        with stage.phase("generate"), evaluating(actor_critic), update.autocast():
            _generate(actor_critic.policy, rollout, module.temperature, update.device)
        with torch.no_grad(), update.autocast(), stage.phase("evaluate"), evaluating(actor_critic):
            ids, mask = _tokens(update, rollout.chunk, width)
            states = _evaluate(module, rewards, ids, mask, rollout.reply)
        # The rollouts wait for their turn while micro-batches of them are learned from.
        numbers = rollout.reply * ROLLOUT_FIELDS + width * TOKEN_FIELDS
        waiting = [torch.empty(rollout.batch, numbers, device=update.device)]
        if states is not None:
            waiting.append(states.new_empty(rollout.batch, *states.shape[1:]))
            states = states.new_empty(update.micro_batch, *states.shape[1:])
        ids, mask = _tokens(update, update.micro_batch, width)

        def loss() -> Tensor:
            inputs = ids, mask, rollout.reply
            exact = module.kl.in_loss and module.kl.estimator is None
            outputs: ReplyOutputs = actor_critic(
                *inputs,
                module.temperature,
                with_entropy=module.settings.entropy_coef > 0,
                reference_logits=module.reference.logits(*inputs, states) if exact else None,
                trunk_states=states,
            )
            return torch.stack([part.sum() for part in outputs if part is not None]).sum()

        stage.update(loss)
        del waiting
    return stage.footprint()


class Rehearsed:
    """The phases of a stage, one after the other on the same models."""

    def __init__(
        self, models: Mapping[str, nn.Module], module: pl.LightningModule, update: UpdateShape, memory: LiveBytes
    ) -> None:
        self.weights = _weights_by_model(models)
        self.module = module
        self.shape = update
        self.memory = memory
        self.phases: dict[str, int] = {}
        self.trained = trainable(module)
        with self.phase("step"):
            self.gradients, self.state = self._step()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Notes the most that is held inside the `with` block, besides weights."""
        self.memory.begin()
        yield
        self.phases[name] = self.memory.peak

    def update(self, loss: Callable[[], Tensor]) -> None:
        """A micro-batch's forward and backward pass, beside the gradients of those before it."""
        if self.shape.accumulated == 1:
            # Lightning lets go of the last step's gradients between the two passes.
            with self.phase("forward"), self.shape.autocast():
                value = loss()
            self._drop_gradients()
            with self.phase("backward"):
                value.backward()
            self.phases["update"] = max(self.phases.pop("forward"), self.phases.pop("backward"))
            return
        with self.phase("update"):
            with self.shape.autocast():
                value = loss()
            value.backward()

    def footprint(self) -> Footprint:
        return Footprint(
            weights=self.weights,
            trainable=sum(parameter.numel() for parameter in self.trained),
            gradients=self.gradients,
            optimizer=self.state,
            phases=self.phases,
        )

    def _step(self) -> tuple[int, int]:
        """An optimizer step, which makes the optimizer's state; bytes of gradients and of the state."""
        copies = []
        before = self.memory.live
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
            if self.shape.copies_gradients:
                copies.append(torch.zeros_like(parameter))
        gradients = self.memory.live - before
        configured: Any = self.module.configure_optimizers()
        self.optimizer: Optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        self.optimizer.step()
        self.copies = copies
        return gradients, self.memory.live - before - gradients

    def _drop_gradients(self) -> None:
        for parameter in self.trained:
            parameter.grad = None


@contextmanager
def _rehearsing(
    models: Mapping[str, nn.Module], module: pl.LightningModule, update: UpdateShape
) -> Iterator[Rehearsed]:
    resident = [tensor for model in models.values() for tensor in (*model.parameters(), *model.buffers())]
    with LiveBytes(resident) as memory:
        yield Rehearsed(models, module, update, memory)


def _generate(policy: PreTrainedModel, rollout: RolloutShape, temperature: float, device: torch.device) -> None:
    """The prompt and all of the reply but its last token fill the cache, and the last token is sampled."""
    seen = rollout.prompt + rollout.reply - 1
    ids = torch.zeros(rollout.chunk, seen, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        cached = policy(
            input_ids=ids, **position_arguments(policy, mask), use_cache=True, logits_to_keep=1
        ).past_key_values
        mask = torch.ones(rollout.chunk, seen + 1, dtype=torch.long, device=device)
        arguments = position_arguments(policy, mask)
        if "position_ids" in arguments:
            arguments["position_ids"] = arguments["position_ids"][:, -1:]
        logits = policy(
            input_ids=ids[:, -1:], **arguments, past_key_values=cached, use_cache=True, logits_to_keep=1
        ).logits
        chance = KeyedSampling(
            seed=0, draws=range(rollout.chunk), temperature=temperature, prompt_length=rollout.prompt, device=device
        )
        chance(ids, logits[:, -1].to(copy=True, dtype=torch.float32))


def _evaluate(module: PPO, rewards: Sequence[Judge], ids: Tensor, mask: Tensor, reply: int) -> Tensor | None:
    """What `RolloutCollector` asks of a chunk; gives the states of the frozen blocks, if they are kept."""
    states = module.actor_critic.trunk_states(ids, mask)
    logits = module.reference.logits(ids, mask, reply, states)
    token_logprobs(logits, ids[:, -reply:], module.temperature)
    exact_to = logits if module.kl.estimator is None else None
    del logits
    module.actor_critic(ids, mask, reply, module.temperature, reference_logits=exact_to, trunk_states=states)
    for reward in rewards:
        reward.score(ids, mask)
    return states


def _tokens(update: UpdateShape, batch: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(batch, length, dtype=torch.long, device=update.device)
    return ids, torch.ones_like(ids)


def _weights_by_model(models: Mapping[str, nn.Module]) -> dict[str, int]:
    """Bytes by model; what several have in common counts for the first of them."""
    seen: list[Tensor] = []
    sizes = {}
    before = 0
    for name, model in models.items():
        seen += [*model.parameters(), *model.buffers()]
        total = storage_bytes(seen)
        sizes[name] = total - before
        before = total
    return sizes
