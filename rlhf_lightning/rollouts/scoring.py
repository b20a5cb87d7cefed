"""Reward interface of the rollouts, and classifiers and reward models behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.models.classifier import Classifier
from rlhf_lightning.rollouts.sampler import SampledResponse


class Scorer(Protocol):
    """Anything that gives responses a score: a reward model, a classifier, a rule."""

    def to(self, device: torch.device) -> object:
        """Move what it computes with."""
        ...

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        """(batch,) float32 on the CPU; the higher the better."""
        ...


class StandardizedScorer:
    """(score - mean) / std: reference samples get mean 0 and standard deviation 1.

    Keeps the step size and the KL coefficient comparable between reward models (arXiv 1909.08593, section 2.1).
    """

    def __init__(self, scorer: Scorer, *, mean: float, std: float) -> None:
        self.scorer = scorer
        self.mean = mean
        self.std = std

    def to(self, device: torch.device) -> StandardizedScorer:
        self.scorer.to(device)
        return self

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        return (self.scorer.score(responses) - self.mean) / self.std


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

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        scores = torch.stack([member.score(responses) for member in self.members])
        if self.combine == "min":
            return scores.amin(dim=0)
        return scores.mean(dim=0) - self.disagreement_coef * scores.std(dim=0, correction=0)


class RewardModelScorer:
    """A reward model of this project: prompt and response, read at the response's last token.

    Where policy and reward model share a tokenizer, the sampled ids are scored as they are; else prompt and response
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

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        logits = self.classifier.logits_of_ids([self._ids(response) for response in responses])
        return logits[:, self.classifier.positive]

    def _ids(self, response: SampledResponse) -> Sequence[int]:
        if self.encoder is None:
            return response.prompt_ids + response.response_ids
        prompt_ids, response_ids = self.encoder.whole_ids(response.prompt, response.text)
        return [*prompt_ids, *(response_ids if response.finished else response_ids[:-1])]


class TextScorer:
    """Any sequence classifier, on plain text through its own tokenizer.

    Args:
        include_prompt: classify prompt and response as a pair; else the response alone.
    """

    def __init__(self, classifier: Classifier, *, include_prompt: bool) -> None:
        self.classifier = classifier
        self.include_prompt = include_prompt

    def to(self, device: torch.device) -> TextScorer:
        self.classifier.to(device)
        return self

    def score(self, responses: Sequence[SampledResponse]) -> Tensor:
        texts = [response.text for response in responses]
        if self.include_prompt:
            logits = self.classifier.logits_of_texts([response.prompt.plain() for response in responses], texts)
        else:
            logits = self.classifier.logits_of_texts(texts)
        return logits[:, self.classifier.positive]


ModelScorer = RewardModelScorer | TextScorer


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """True if both give the same text the same ids, chat template included."""
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template
