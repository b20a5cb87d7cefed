"""The policy and its critic: one forward gives log-probs and values of a response's tokens."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.adapters import CRITIC, POLICY, REWARD, active, adapter_parameters, copy_adapter
from rlhf_lightning.models.forward_pass import position_arguments, shard
from rlhf_lightning.models.loading import score_head, whole_weights
from rlhf_lightning.models.sharing import Branch, run_from_states
from rlhf_lightning.models.top_layers import shared_copy
from rlhf_lightning.objectives.kl import exact_kl
from rlhf_lightning.objectives.logprobs import token_entropies, token_logprobs

VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_FOLDER = "critic"
CRITIC_FILE = "critic.safetensors"
"""The trained weights of a critic whose trunk is partly frozen; a critic trained in full is a model in `critic/`."""


class ResponseOutputs(NamedTuple):
    """Outputs of a forward pass at the R response tokens of each sequence; all (batch, R) float32."""

    logprobs: Tensor
    values: Tensor
    entropies: Tensor | None
    kl: Tensor | None
    """The exact KL to the reference whose logits were given."""


def response_logits(
    model: PreTrainedModel, sequences: Tensor, attention_mask: Tensor, response_length: int
) -> tuple[Tensor, Tensor]:
    """Logits that predict the last `response_length` tokens, and the hidden states they were made from.

    The LM head runs on those positions only. The hidden states are what enters that head, so that any
    architecture's own scaling or capping after it stays in force.

    Args:
        sequences: (batch, P + R) left-padded prompts, right-padded responses.
        attention_mask: (batch, P + R).
        response_length: R.

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
            logits_to_keep=response_length + 1,
            use_cache=False,
        ).logits
    finally:
        hook.remove()
    return logits[:, :-1], entering[0][:, :-1]


class ValueHead(nn.Module):
    """A linear value head on the policy's hidden states; initialized to 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def from_reward_model(cls, reward_model: PreTrainedModel, *, mean: float, std: float) -> ValueHead:
        """The reward model's head, giving (score - mean) / std, the scale of PPO's rewards.

        Raises:
            ArtifactError: the reward model's head is not a single linear output on every position.
        """
        score = score_head(reward_model)
        if score is None or score.out_features != 1:
            raise ArtifactError(
                "A critic can only be copied from a reward model with one linear score.",
                fix="train it with reward_model.head=scalar, or use ppo.critic=separate or policy_trunk",
            )
        head = cls(score.in_features)
        with torch.no_grad():
            head.linear.weight.copy_(score.weight.float() / std)
            bias = score.bias.float() if score.bias is not None else torch.zeros(1)
            head.linear.bias.copy_((bias - mean) / std)
        return head

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, time, hidden) -> (batch, time)."""
        values: Tensor = self.linear(hidden_states.to(self.linear.weight.dtype)).squeeze(-1)
        return values.float()


class SeparateCritic(nn.Module):
    """A critic with a trunk of its own.

    Args:
        branch: of the trunk, if it has its frozen blocks in common with the policy, whose `trunk_states` it then takes.
        adapter: the trunk is the policy's, and this adapter on it is the critic; None for a trunk of its own.
    """

    def __init__(
        self, trunk: PreTrainedModel, head: ValueHead, branch: Branch | None = None, adapter: str | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.branch = branch
        self.adapter = adapter

    @classmethod
    def from_policy(cls, policy: PreTrainedModel) -> SeparateCritic:
        """A copy of the policy's trunk under a head that starts at 0."""
        return cls(copy.deepcopy(trunk_of(policy)), ValueHead(hidden_size(policy)))

    @classmethod
    def on_trunk_of(cls, policy: PreTrainedModel, branch_below_trained_layers: int | None) -> SeparateCritic:
        """A copy of what the policy trains, on its frozen blocks, under a head that starts at 0.

        Args:
            branch_below_trained_layers: how many top layers go on from the policy's `trunk_states`; None computes all
                anew.
        """
        trunk = trunk_of(shared_copy(policy))
        branch = None if branch_below_trained_layers is None else Branch.of(trunk, branch_below_trained_layers)
        return cls(trunk, ValueHead(hidden_size(policy)), branch)

    @classmethod
    def on_policy(cls, policy: PreTrainedModel, adapter: str, head: ValueHead | None = None) -> SeparateCritic:
        """A second adapter beside the policy's, begun as a copy of `adapter`; a head of its own starts at 0."""
        copy_adapter(policy, adapter, CRITIC)
        for parameter in adapter_parameters(policy, CRITIC):
            parameter.requires_grad_(True)
        return cls(trunk_of(policy), head or ValueHead(hidden_size(policy)), adapter=CRITIC)

    @classmethod
    def from_reward_model(cls, reward_model: PreTrainedModel, *, mean: float, std: float) -> SeparateCritic:
        """A copy of the reward model, its head giving (score - mean) / std, the scale of PPO's rewards.

        Raises:
            ArtifactError: the reward model's head is not a single linear output on every position.
        """
        head = ValueHead.from_reward_model(reward_model, mean=mean, std=std)
        return cls(copy.deepcopy(trunk_of(reward_model)), head)

    def forward(
        self, sequences: Tensor, attention_mask: Tensor, response_length: int, trunk_states: Tensor | None = None
    ) -> Tensor:
        """Values before each of the last `response_length` tokens: (batch, R)."""
        with nullcontext() if self.adapter is None else active(self.trunk, self.adapter):
            trunk = run_from_states(self.trunk, self.branch, trunk_states)
            hidden = trunk(
                input_ids=sequences, **position_arguments(self.trunk, attention_mask), use_cache=False
            ).last_hidden_state
        values: Tensor = self.head(hidden[:, -response_length - 1 : -1])
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
        self.value_head = ValueHead(hidden_size(policy)) if critic is None else None

    def forward(
        self,
        sequences: Tensor,
        attention_mask: Tensor,
        response_length: int,
        temperature: float,
        *,
        with_entropy: bool = False,
        reference_logits: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> ResponseOutputs:
        """Log-probs, values and (on request) entropies and exact KL of the last `response_length` tokens.

        Args:
            sequences: (batch, P + R) left-padded prompts, right-padded responses.
            attention_mask: (batch, P + R).
            response_length: R.
            temperature: that the responses were sampled at.
            with_entropy: give entropies.
            reference_logits: (batch, R, vocab); give the exact KL to the distributions that they stand for.
            trunk_states: of these sequences; goes on from them.
        """
        policy = run_from_states(self.policy, self.branch, trunk_states)
        logits, hidden = response_logits(policy, sequences, attention_mask, response_length)
        if self.critic is not None:
            values = self.critic(sequences, attention_mask, response_length, trunk_states)
        else:
            assert self.value_head is not None
            values = self.value_head(hidden)
        return ResponseOutputs(
            logprobs=token_logprobs(logits, sequences[:, -response_length:], temperature),
            values=values,
            entropies=token_entropies(logits, temperature) if with_entropy else None,
            kl=exact_kl(logits, reference_logits, temperature) if reference_logits is not None else None,
        )

    def trunk_states(self, sequences: Tensor, attention_mask: Tensor) -> Tensor | None:
        """Output of the frozen blocks of the policy, (batch, time, hidden), if it is computed once; else None."""
        return self.branch.states(sequences, attention_mask) if self.branch is not None else None

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that only the critic has: the value head, and its own trunk or adapter where it has one."""
        head = [parameter for parameter in self._head.parameters() if parameter.requires_grad]
        if self.critic is None:
            return head
        if self.critic.adapter is not None:
            return [*adapter_parameters(self.critic.trunk, self.critic.adapter), *head]
        return [*(parameter for parameter in self.critic.trunk.parameters() if parameter.requires_grad), *head]

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained and not only the critic's."""
        critics = {id(parameter) for parameter in self.critic_parameters()}
        trained = (parameter for parameter in self.policy.parameters() if parameter.requires_grad)
        return [parameter for parameter in trained if id(parameter) not in critics]

    def shard(self, mesh: DeviceMesh) -> None:
        """Shards policy and critic in place (`sharding.shard`)."""
        shard(self.policy, mesh)
        if self.critic is not None and self.critic.adapter is None:
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
        if self.critic is None:
            return
        trained = self._trained_of_critic(self.critic)
        if len(trained) == len(list(self.critic.trunk.parameters())):
            self.critic.trunk.save_pretrained(directory / CRITIC_FOLDER, state_dict=trunk)
        else:
            weights = trunk or self.critic.trunk.state_dict()
            save_file({_without_role(name): weights[name].contiguous() for name in trained}, directory / CRITIC_FILE)

    def _trained_of_critic(self, critic: SeparateCritic) -> list[str]:
        critics = {id(parameter) for parameter in self.critic_parameters()}
        return [name for name, parameter in critic.trunk.named_parameters() if id(parameter) in critics]


def _without_role(name: str) -> str:
    """The name of a weight whichever adapter it is of: on a trunk of its own a critic is called what it began as."""
    return ".".join(part for part in name.split(".") if part not in (POLICY, REWARD, CRITIC))


def trunk_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head."""
    trunk = model.base_model
    assert isinstance(trunk, PreTrainedModel)
    return trunk


def hidden_size(model: PreTrainedModel) -> int:
    """The width of what enters a model's head."""
    size: int = model.config.get_text_config().hidden_size
    return size
