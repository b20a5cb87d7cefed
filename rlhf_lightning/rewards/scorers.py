"""Classifiers and reward models as scorers of rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.rewards.classifier import Classifier
from rlhf_lightning.rollouts.sampler import Completion


class RewardModelScorer:
    """A reward model of this project: prompt and reply, read at the reply's last token.

    Where policy and reward model share a tokenizer, the sampled ids are scored as they are; else prompt and reply
    are encoded anew for the reward model.

    Args:
        classifier: the reward model.
        encoder: the reward model's encoder, or None where the policy's ids are its own.
    """

    def __init__(self, classifier: Classifier, encoder: Encoder | None) -> None:
        self.classifier = classifier
        self.encoder = encoder

    def to(self, device: torch.device) -> RewardModelScorer:
        self.classifier.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        logits = self.classifier.logits_of_ids([self._ids(completion) for completion in completions])
        return logits[:, self.classifier.positive]

    def _ids(self, completion: Completion) -> Sequence[int]:
        if self.encoder is None:
            return completion.prompt_ids + completion.reply_ids
        prompt, reply = self.encoder.whole_ids(completion.prompt, completion.reply)
        return [*prompt, *(reply if completion.finished else reply[:-1])]


class TextScorer:
    """Any sequence classifier, on plain text through its own tokenizer.

    Args:
        include_prompt: classify prompt and reply as a pair; else the reply alone.
    """

    def __init__(self, classifier: Classifier, *, include_prompt: bool) -> None:
        self.classifier = classifier
        self.include_prompt = include_prompt

    def to(self, device: torch.device) -> TextScorer:
        self.classifier.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        replies = [completion.reply for completion in completions]
        if self.include_prompt:
            logits = self.classifier.logits_of_texts([completion.prompt.plain() for completion in completions], replies)
        else:
            logits = self.classifier.logits_of_texts(replies)
        return logits[:, self.classifier.positive]


ModelScorer = RewardModelScorer | TextScorer


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """True if both give the same text the same ids, chat template included."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template
