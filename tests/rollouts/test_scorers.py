"""What a reward model reads of a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.data.settings import Records
from rlhf_lightning.models.classifier import Classifier
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.rollouts.sampler import SampledResponse
from rlhf_lightning.rollouts.scoring import RewardModelScorer, TextScorer, same_tokenizer

MakeModel = Callable[..., PreTrainedModel]
MakeWords = Callable[..., PreTrainedTokenizerFast]

# The policy's ids are not those that the reward model's tokenizer would give the same text.
ENDED = SampledResponse(Prompt("w5 w6"), (5, 6), (40, 41, 1), "w7 w8", finished=True)
CUT = SampledResponse(Prompt("w5"), (5,), (42, 43, 44), "w9 w10", finished=False)


class Listening:
    """A classifier that remembers what it was asked, and answers with lengths."""

    positive = 1

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def logits_of_ids(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        self.asked = [list(sequence) for sequence in sequences]
        return torch.tensor([[0.0, float(len(sequence))] for sequence in sequences])

    def logits_of_texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        self.asked = [list(texts), pairs and list(pairs)]
        return torch.tensor([[0.0, float(len(text))] for text in texts])


def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(
        tokenizer, Records(max_prompt_length=64, max_response_length=64, on_long_record="truncate", pairing="all")
    )


def test_with_the_policys_tokenizer_the_sampled_ids_are_scored() -> None:
    classifier = Listening()
    scores = RewardModelScorer(cast(Classifier, classifier), None).score([ENDED, CUT])
    assert classifier.asked == [[5, 6, 40, 41, 1], [5, 42, 43, 44]]
    assert scores.tolist() == [5.0, 4.0]


def test_with_another_tokenizer_the_texts_are_encoded_anew(words: PreTrainedTokenizerFast) -> None:
    classifier = Listening()
    RewardModelScorer(cast(Classifier, classifier), encoder(words)).score([ENDED, CUT])
    # A response that ended itself ends with EOS; one that was cut does not.
    assert classifier.asked == [[5, 6, 7, 8, 1], [5, 9, 10]]


def test_the_score_is_the_positive_labels_logit(make_reward_model: MakeModel, words: PreTrainedTokenizerFast) -> None:
    model = make_reward_model(labels=("rejected", "chosen"))
    logits = model(torch.tensor([[5, 6, 40, 41, 1]])).logits[0]
    for positive in (0, 1):
        scorer = RewardModelScorer(Classifier(model, words, positive), None)
        torch.testing.assert_close(scorer.score([ENDED]), logits[positive : positive + 1], atol=1e-5, rtol=0)


def test_a_text_scorer_reads_the_response_alone_or_with_its_prompt() -> None:
    classifier = Listening()
    scores = TextScorer(cast(Classifier, classifier), include_prompt=False).score([ENDED, CUT])
    assert classifier.asked == [["w7 w8", "w9 w10"], None]
    assert scores.tolist() == [5.0, 6.0]
    turns = Message("user", "w3"), Message("assistant", "w4"), Message("user", "w5")
    chat = SampledResponse(Prompt(turns), (3,), (4,), "w4", finished=True)
    TextScorer(cast(Classifier, classifier), include_prompt=True).score([ENDED, chat])
    assert classifier.asked == [["w5 w6", "user: w3\nassistant: w4\nuser: w5"], ["w7 w8", "w4"]]


def test_tokenizers_are_the_same_if_vocabulary_and_template_are(make_words: MakeWords) -> None:
    one, other = make_words(), make_words()
    assert same_tokenizer(one, other)
    other.chat_template = "{{ messages }}"
    assert not same_tokenizer(one, other)
    longer = make_words()
    longer.add_tokens(["w50"])
    assert not same_tokenizer(one, longer)
