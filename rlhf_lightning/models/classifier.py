"""A sequence classifier as a reward: the logit, not the probability, of one label, chosen by its name.

A probability saturates: past 0.99 it says nothing more, while the logit still tells better from good.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.batches import right_padded, right_padding_mask
from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.adapters import Role
from rlhf_lightning.models.forward_pass import last_real_positions, position_arguments
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_classifier, load_tokenizer, score_head

POSITIVE_LABEL = "chosen"
NEGATIVE_LABEL = "rejected"
SCALAR_LABEL = "reward"
"""The label names of this project's own reward models."""


@dataclass(frozen=True, slots=True)
class TextScore:
    """Outputs of a classifier for one text.

    Attributes:
        logits: by label.
        probabilities: by label (softmax; the sigmoid of a single logit).
        reward: the logit of the positive label.
    """

    text: str
    logits: dict[str, float]
    probabilities: dict[str, float]
    reward: float


def positive_index(model: PreTrainedModel, label: str | None, where: str) -> int:
    """The output whose logit is the reward, by label name; the only one of a model with a single output.

    Args:
        model: a sequence classifier.
        label: its positive label, in any case; None for a single output or this project's own labels.
        where: named in the error.

    Raises:
        ArtifactError: there is no such label, or none was named and the choice is not obvious.
    """
    labels = {str(name): int(index) for index, name in (model.config.id2label or {}).items()}
    by_folded_name = {name.casefold(): index for name, index in labels.items()}
    if label is not None:
        if label.casefold() in by_folded_name:
            return by_folded_name[label.casefold()]
        raise ArtifactError(
            f"The classifier has no label {label!r}.", where=where, fix=f"choose one of {', '.join(labels)}"
        )
    if len(labels) == 1:
        return 0
    if POSITIVE_LABEL in by_folded_name:
        return by_folded_name[POSITIVE_LABEL]
    raise ArtifactError(
        f"Which of the labels {', '.join(labels)} is the positive one?",
        where=where,
        fix="name it: reward=classifier reward.positive_label=LABEL (rlhf score: --positive-label LABEL)",
    )


def classifier_logits(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None = None
) -> Tensor:
    """(batch, labels) logits at the last real token of right-padded sequences.

    Transformers finds that token by `ids != pad`, which is wrong where pad is EOS; here the mask decides.
    Encoder-style classifiers pool in their own way and are simply called.

    Args:
        input_ids: (batch, time) right-padded.
        attention_mask: (batch, time).
        segments: (batch, time), which text of a pair each token belongs to, for encoder-style models that are told.
    """
    head = score_head(model)
    if head is None:
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask}
        if segments is not None and "token_type_ids" in inspect.signature(model.forward).parameters:
            arguments["token_type_ids"] = segments
        logits: Tensor = model(**arguments).logits
        return logits.float()
    hidden = model.base_model(
        input_ids=input_ids, **position_arguments(model.base_model, attention_mask), use_cache=False
    ).last_hidden_state
    rows = torch.arange(len(hidden), device=hidden.device)
    scores: Tensor = head(hidden[rows, last_real_positions(attention_mask)])
    return scores.float()


class Classifier:
    """A frozen sequence classifier with its own tokenizer.

    Args:
        positive: index of the positive label.
        role: the trunk is the policy's, which this turns into the classifier's for a while; None for one of its own.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, positive: int, role: Role | None = None
    ) -> None:
        self.model = model
        if role is None:
            model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.positive = positive
        self.role: Role = role or nullcontext

    @classmethod
    def load(cls, source: ModelSource, positive_label: str | None) -> Classifier:
        """Open a finished classifier.

        Raises:
            ArtifactError: it is no classifier, or has no such label.
            ModelError: it cannot be opened.
        """
        model = load_classifier(source)
        return cls(model, load_tokenizer(source), positive_index(model, positive_label, source.name_or_path))

    def to(self, device: torch.device) -> Classifier:
        nn.Module.to(self.model, device)
        return self

    @torch.no_grad()
    def logits_of_ids(
        self, sequences: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """(batch, labels) float32 on the CPU, for sequences of this tokenizer's ids.

        Args:
            segments: which text of a pair each id belongs to, where the tokenizer says so.
        """
        device = self.model.device
        input_ids = right_padded(sequences, self.tokenizer.pad_token_id).to(device)
        attention_mask = right_padding_mask(sequences).to(device)
        types = right_padded(segments, 0).to(device) if segments is not None else None
        with self.role():
            return classifier_logits(self.model, input_ids, attention_mask, types).cpu()

    def logits_of_texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """(batch, labels) float32 on the CPU, for texts, or pairs of texts, that its own tokenizer encodes."""
        encoded = self.tokenizer(
            list(texts),
            list(pairs) if pairs is not None else None,
            truncation=self.tokenizer.model_max_length < 1_000_000,
            verbose=False,
        )
        return self.logits_of_ids(encoded["input_ids"], encoded.get("token_type_ids"))

    def labels(self) -> list[str]:
        """Label names in the order of the logits."""
        return [str(name) for name in (self.model.config.id2label or {}).values()]


def score_texts(model_dir: str, texts: Sequence[str], positive_label: str | None) -> list[TextScore]:
    """Logits, probabilities and reward of each text: what `rlhf score` prints.

    Raises:
        ArtifactError: not a classifier, or no such label.
        ModelError: it cannot be opened.
    """
    classifier = Classifier.load(ModelSource(model_dir), positive_label)
    logits = classifier.logits_of_texts(texts)
    single = logits.shape[1] == 1
    probabilities = torch.sigmoid(logits) if single else torch.softmax(logits, dim=1)
    labels = classifier.labels()
    return [
        TextScore(
            text=text,
            logits=dict(zip(labels, row.tolist(), strict=True)),
            probabilities=dict(zip(labels, shares.tolist(), strict=True)),
            reward=float(row[classifier.positive]),
        )
        for text, row, shares in zip(texts, logits, probabilities, strict=True)
    ]
