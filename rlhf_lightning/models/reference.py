"""The frozen reference policy of the KL."""

from __future__ import annotations

import copy
import hashlib
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.distributed import full_tensor
from rlhf_lightning.models.actor_critic import response_logits
from rlhf_lightning.models.adapters import Role, active
from rlhf_lightning.models.sharing import Branch, run_from_states
from rlhf_lightning.models.top_layers import shared_copy
from rlhf_lightning.objectives.logprobs import token_logprobs


class FrozenReference:
    """A policy that never changes.

    Not a module of the LightningModule on purpose: it is neither trained, nor checkpointed, nor wrapped.

    Args:
        branch: of the model, if it has its frozen blocks in common with the policy, whose `trunk_states` it then takes.
        role: the model is the policy itself, which this turns into the reference for a while; None for one of its own.
    """

    def __init__(self, model: PreTrainedModel, branch: Branch | None = None, role: Role | None = None) -> None:
        self.model = model
        if role is None:
            model.requires_grad_(False).eval()
        self.branch = branch
        self.role: Role = role or nullcontext

    @classmethod
    def copy_of(cls, policy: PreTrainedModel) -> FrozenReference:
        return cls(copy.deepcopy(policy))

    @classmethod
    def on_trunk_of(cls, policy: PreTrainedModel, branch: Branch | None = None) -> FrozenReference:
        """A copy of the policy's trained weights, and its frozen ones themselves.

        Args:
            branch: of the policy.
        """
        model = shared_copy(policy)
        return cls(model, None if branch is None else branch.of_copy(model))

    @classmethod
    def on_policy(cls, policy: PreTrainedModel, adapter: str | None) -> FrozenReference:
        """The policy's own frozen weights, with another adapter active or with none.

        Args:
            adapter: that the policy started from; None if it started from the frozen weights alone.
        """
        return cls(policy, role=partial(active, policy, adapter))

    def to(self, device: torch.device) -> FrozenReference:
        nn.Module.to(self.model, device)
        return self

    @torch.no_grad()
    def logprobs(self, sequences: Tensor, attention_mask: Tensor, response_length: int, temperature: float) -> Tensor:
        """(batch, R) log-probs of the last R tokens, as `ActorCritic.forward` gives them for the policy."""
        logits = self.logits(sequences, attention_mask, response_length)
        return token_logprobs(logits, sequences[:, -response_length:], temperature)

    @torch.no_grad()
    def logits(
        self, sequences: Tensor, attention_mask: Tensor, response_length: int, trunk_states: Tensor | None = None
    ) -> Tensor:
        """(batch, R, vocab) logits that predict the last R tokens.

        Args:
            trunk_states: (batch, P + R, hidden), of these sequences, from `ActorCritic.trunk_states`.
        """
        with self.role():
            model = run_from_states(self.model, self.branch, trunk_states)
            return response_logits(model, sequences, attention_mask, response_length)[0]

    def fingerprint(self) -> str:
        """A hash of all frozen weights: equal before and after training, bit for bit.

        Under FSDP all processes must ask.
        """
        digest = hashlib.sha256()
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        for name, tensor in self.model.state_dict().items():
            if name in trained:  # of the policy, where the reference is the policy without them
                continue
            digest.update(name.encode())
            digest.update(full_tensor(tensor.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
