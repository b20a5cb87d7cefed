"""The policy and its critic: one forward gives log-probs and values of a reply's tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.branching import Branch, going_on
from rlhf_lightning.models.loading import score_head
from rlhf_lightning.models.positions import position_arguments
from rlhf_lightning.models.saving import whole_weights
from rlhf_lightning.models.sharding import shard
from rlhf_lightning.objectives.kl import exact_kl
from rlhf_lightning.objectives.logprobs import token_entropies, token_logprobs

VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_FOLDER = "critic"


class ReplyOutputs(NamedTuple):
    """What a forward pass says of the R reply tokens of each sequence; all (batch, R) float32."""

    logprobs: Tensor
    values: Tensor
    entropies: Tensor | None
    kl: Tensor | None
    """The exact KL to the reference whose logits were given."""


def reply_logits(
    model: PreTrainedModel, sequences: Tensor, attention_mask: Tensor, reply_length: int
) -> tuple[Tensor, Tensor]:
    """Logits that predict the last `reply_length` tokens, and the hidden states they were made from.

    The LM head runs on those positions only. The hidden states are what enters that head, so that any
    architecture's own scaling or capping after it stays in force.

    Args:
        sequences: (batch, P + R) left-padded prompts, right-padded replies.
        attention_mask: (batch, P + R).
        reply_length: R.

    Returns:
        logits (batch, R, vocab) and hidden states (batch, R, hidden).
    """
    entering: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    try:
        # One position more: position t predicts token t + 1, and nothing is predicted by the last token.
        logits = model(
            input_ids=sequences,
            **position_arguments(model, attention_mask),
            logits_to_keep=reply_length + 1,
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    return logits[:, :-1], entering[0][:, :-1]


class ValueHead(nn.Module):
    """A linear read-out of the policy's own hidden states; starts at exactly 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, time, hidden) -> (batch, time)."""
        values: Tensor = self.linear(hidden_states.to(self.linear.weight.dtype)).squeeze(-1)
        return values.float()


class SeparateCritic(nn.Module):
    """A critic with a trunk of its own.

    Args:
        branch: of the trunk, if it has its frozen blocks in common with the policy, whose `trunk_states` it then takes.
    """

    def __init__(self, trunk: PreTrainedModel, head: ValueHead, branch: Branch | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.branch = branch

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> SeparateCritic:
        """A copy of the policy's trunk under a head that starts at 0."""
        trunk = copy.deepcopy(policy.base_model)
        assert isinstance(trunk, PreTrainedModel)
        return cls(trunk, ValueHead(policy.config.get_text_config().hidden_size))

    @classmethod
    def from_reward_model(cls, reward_model: PreTrainedModel, *, offset: float, spread: float) -> SeparateCritic:
        """A copy of the reward model, its head giving (score - offset) / spread, the scale of PPO's rewards.

        Raises:
            ArtifactError: the reward model's head is not a single linear output on every position.
        """
        score = score_head(reward_model)
        if score is None or score.out_features != 1:
            raise ArtifactError(
                "A critic can only be copied from a reward model with one linear score.",
                fix="train it with reward_model.head=scalar, or use ppo.critic=separate or policy_trunk",
            )
        head = ValueHead(score.in_features)
        with torch.no_grad():
            head.linear.weight.copy_(score.weight.float() / spread)
            bias = score.bias.float() if score.bias is not None else torch.zeros(1)
            head.linear.bias.copy_((bias - offset) / spread)
        trunk = copy.deepcopy(reward_model.base_model)
        assert isinstance(trunk, PreTrainedModel)
        return cls(trunk, head)

    def forward(
        self, sequences: Tensor, attention_mask: Tensor, reply_length: int, trunk_states: Tensor | None = None
    ) -> Tensor:
        """Values before each of the last `reply_length` tokens: (batch, R)."""
        trunk = going_on(self.trunk, self.branch, trunk_states)
        hidden = trunk(
            input_ids=sequences, **position_arguments(self.trunk, attention_mask), use_cache=False
        ).last_hidden_state
        values: Tensor = self.head(hidden[:, -reply_length - 1 : -1])
        return values


class ActorCritic(nn.Module):
    """A policy with a value head on its trunk, or with a separate critic beside it.

    Args:
        policy: a causal language model without dropout.
        critic: None puts a new value head on the policy's trunk.
        branch: of the policy, if what its frozen blocks give is computed once for many updates.
    """

    def __init__(
        self, policy: PreTrainedModel, critic: SeparateCritic | None = None, branch: Branch | None = None
    ) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        self.branch = branch
        self.value_head = ValueHead(policy.config.get_text_config().hidden_size) if critic is None else None

    def forward(
        self,
        sequences: Tensor,
        attention_mask: Tensor,
        reply_length: int,
        temperature: float,
        *,
        with_entropy: bool = False,
        reference_logits: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> ReplyOutputs:
        """Log-probs, values and (on request) entropies and exact KL of the last `reply_length` tokens.

        Args:
            sequences: (batch, P + R) left-padded prompts, right-padded replies.
            attention_mask: (batch, P + R).
            reply_length: R.
            temperature: that the replies were sampled at.
            with_entropy: give entropies.
            reference_logits: (batch, R, vocab); give the exact KL to the distributions that they stand for.
            trunk_states: of these sequences; goes on from them.
        """
        policy = going_on(self.policy, self.branch, trunk_states)
        logits, hidden = reply_logits(policy, sequences, attention_mask, reply_length)
        if self.critic is not None:
            values = self.critic(sequences, attention_mask, reply_length, trunk_states)
        else:
            assert self.value_head is not None
            values = self.value_head(hidden)
        return ReplyOutputs(
            logprobs=token_logprobs(logits, sequences[:, -reply_length:], temperature),
            values=values,
            entropies=token_entropies(logits, temperature) if with_entropy else None,
            kl=exact_kl(logits, reference_logits, temperature) if reference_logits is not None else None,
        )

    def trunk_states(self, sequences: Tensor, attention_mask: Tensor) -> Tensor | None:
        """What the policy's frozen blocks give, (batch, time, hidden), if it is computed once; None otherwise."""
        return self.branch.states(sequences, attention_mask) if self.branch is not None else None

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that only the critic has: the value head, and its own trunk where it has one."""
        critic = self.critic if self.critic is not None else self.value_head
        assert critic is not None
        return [parameter for parameter in critic.parameters() if parameter.requires_grad]

    def shard(self, mesh: DeviceMesh) -> None:
        """Shards policy and critic in place (`sharding.shard`)."""
        shard(self.policy, mesh)
        if self.critic is not None:
            shard(self.critic.trunk, mesh)
        shard(self._head, mesh)

    @property
    def _head(self) -> ValueHead:
        head = self.critic.head if self.critic is not None else self.value_head
        assert head is not None
        return head

    def save_critic(self, directory: Path) -> None:
        """The value head, and the critic's own trunk where it has one, beside the policy: neither is lost.

        All processes of a run call this; the first one writes.
        """
        head = whole_weights(self._head) or self._head.state_dict()
        trunk = whole_weights(self.critic.trunk) if self.critic is not None else None
        if rank() > 0:
            return
        save_file({name: tensor.contiguous() for name, tensor in head.items()}, directory / VALUE_HEAD_FILE)
        if self.critic is not None:
            assert isinstance(self.critic.trunk, PreTrainedModel)
            self.critic.trunk.save_pretrained(directory / CRITIC_FOLDER, state_dict=trunk)
