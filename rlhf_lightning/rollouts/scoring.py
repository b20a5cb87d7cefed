"""Reward interface of the rollouts, and classifiers and reward models behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.models.classifier import Classifier
from rlhf_lightning.rollouts.sampler import Completion


class Scorer(Protocol):
    """Anything that gives completions a score: a reward model, a classifier, a rule."""

    def to(self, device: torch.device) -> object:
        """Move what it computes with."""
        ...

    def score(self, completions: Sequence[Completion]) -> Tensor:
        """(batch,) float32 on the CPU; the higher the better."""
        ...


class StandardisedScorer:
    """(score - offset) / spread: reference samples get mean 0 and standard deviation 1.

    Keeps the step size and the KL coefficient comparable between reward models (arXiv 1909.08593, section 2.1).
    """

    def __init__(self, scorer: Scorer, *, offset: float, spread: float) -> None:
        self.scorer = scorer
        self.offset = offset
        self.spread = spread

    def to(self, device: torch.device) -> StandardisedScorer:
        self.scorer.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        return (self.scorer.score(completions) - self.offset) / self.spread


class EnsembleScorer:
    """The mean score of several rewards minus their disagreement, or the lowest of them (arXiv 2310.02743).

    Args:
        members: on a common scale.
        combine: `mean_minus_std` or `min`.
        disagreement_coef: what a standard deviation among the members costs (`mean_minus_std`).
    """

    def __init__(
        self, members: Sequence[Scorer], *, combine: Literal["mean_minus_std", "min"], disagreement_coef: float
    ) -> None:
        self.members = tuple(members)
        self.combine = combine
        self.disagreement_coef = disagreement_coef

    def to(self, device: torch.device) -> EnsembleScorer:
        for member in self.members:
            member.to(device)
        return self

    def score(self, completions: Sequence[Completion]) -> Tensor:
        scores = torch.stack([member.score(completions) for member in self.members])
        if self.combine == "min":
            return scores.amin(dim=0)
        return scores.mean(dim=0) - self.disagreement_coef * scores.std(dim=0, correction=0)


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
