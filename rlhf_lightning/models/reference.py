"""The frozen reference policy that the KL is measured to."""

from __future__ import annotations

import copy
import hashlib

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import reply_logits
from rlhf_lightning.objectives.logprobs import token_logprobs


class FrozenReference:
    """A policy that never changes.

    Not a module of the LightningModule on purpose: it is neither trained, nor checkpointed, nor wrapped.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.requires_grad_(False).eval()

    @classmethod
    def copy_of(cls, policy: PreTrainedModel) -> FrozenReference:
        return cls(copy.deepcopy(policy))

    def to(self, device: torch.device) -> FrozenReference:
        self.model.to(device)
        return self

    @torch.no_grad()
    def logprobs(self, sequences: Tensor, attention_mask: Tensor, reply_length: int, temperature: float) -> Tensor:
        """(batch, R) log-probs of the last R tokens, as `ActorCritic.forward` gives them for the policy."""
        logits = self.logits(sequences, attention_mask, reply_length)
        return token_logprobs(logits, sequences[:, -reply_length:], temperature)

    @torch.no_grad()
    def logits(self, sequences: Tensor, attention_mask: Tensor, reply_length: int) -> Tensor:
        """(batch, R, vocab) logits that predict the last R tokens."""
        return reply_logits(self.model, sequences, attention_mask, reply_length)[0]

    def fingerprint(self) -> str:
        """A hash of all weights: equal before and after training, bit for bit."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
