"""The reward is a logit, of the right label, read at the right token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.classifier import Classifier, classifier_logits, positive_index, score_texts
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import save_classifier

MakeModel = Callable[..., PreTrainedModel]
MakeWords = Callable[..., PreTrainedTokenizerFast]

EOS = 1
SEQUENCES = [[5, 9, 7, EOS], [12, EOS], [30, 8, 44, 23, 17, 6]]


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        id2label={0: "bad", 1: "good"},
    )
    model: PreTrainedModel = BertForSequenceClassification(config).eval()
    return model


@pytest.mark.parametrize(
    ("labels", "label", "index"),
    [
        # By position in a sorted list, "NEGATIVE" would always come first, and the last would always be "positive".
        (("POSITIVE", "NEGATIVE"), "POSITIVE", 0),
        (("NEGATIVE", "POSITIVE"), "POSITIVE", 1),
        (("positive", "negative", "neutral"), "negative", 1),
        (("toxic", "fine"), "fine", 1),
        # Case does not matter, the model's own order does.
        (("Joy", "Anger"), "joy", 0),
        # This project's own labels need no name.
        (("chosen", "rejected"), None, 0),
        (("rejected", "chosen"), None, 1),
        (("reward",), None, 0),
        (("LABEL_0",), None, 0),
    ],
)
def test_the_positive_label_is_found_by_name(
    labels: tuple[str, ...], label: str | None, index: int, make_reward_model: MakeModel
) -> None:
    assert positive_index(make_reward_model(labels=labels), label, "here") == index


def test_an_unknown_label_is_refused_with_the_known_ones(make_reward_model: MakeModel) -> None:
    with pytest.raises(ArtifactError, match="no label 'nice'") as raised:
        positive_index(make_reward_model(labels=("toxic", "fine")), "nice", "some/model")
    assert raised.value.where == "some/model"
    assert raised.value.fix == "choose one of toxic, fine"


def test_an_unnamed_label_is_not_guessed(make_reward_model: MakeModel) -> None:
    with pytest.raises(ArtifactError, match="Which of the labels LABEL_0, LABEL_1") as raised:
        positive_index(make_reward_model(labels=("LABEL_0", "LABEL_1")), None, "some/model")
    assert "reward.positive_label" in str(raised.value.fix)


@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_sequence_is_scored_at_its_last_real_token_whatever_pads_it(
    kind: str, pad: str, make_reward_model: MakeModel, make_words: MakeWords
) -> None:
    model = make_reward_model(kind, labels=("rejected", "chosen"))
    together = Classifier(model, make_words(pad=pad), positive=1).logits_of_ids(SEQUENCES)
    for row, sequence in enumerate(SEQUENCES):
        hidden = model.base_model(torch.tensor([sequence])).last_hidden_state
        head = model.score
        assert isinstance(head, torch.nn.Linear)
        torch.testing.assert_close(together[row], head(hidden[0, -1]), atol=1e-5, rtol=0)
    assert together.std() > 0.1


def test_a_sequence_of_no_tokens_disturbs_nobody(make_reward_model: MakeModel, words: PreTrainedTokenizerFast) -> None:
    classifier = Classifier(make_reward_model(), words, positive=0)
    logits = classifier.logits_of_ids([[], [5, 9]])
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1:], classifier.logits_of_ids([[5, 9]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_longer_batch_mate_changes_no_score(
    kind: str, make_reward_model: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    classifier = Classifier(make_reward_model(kind), words, positive=0)
    alone = classifier.logits_of_ids(SEQUENCES[:1])
    crowded = classifier.logits_of_ids([*SEQUENCES[:1], list(range(3, 43))])[:1]
    torch.testing.assert_close(alone, crowded, atol=1e-5, rtol=0)


def test_the_reward_is_a_logit_and_not_a_probability(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    model = make_reward_model(labels=("rejected", "chosen"))
    with torch.no_grad():
        model.score.weight.mul_(50.0)  # type: ignore[operator, union-attr]
    logits = Classifier(model, words, positive=1).logits_of_ids(SEQUENCES)
    assert logits.abs().max() > 1.0
    transformers_own = model(torch.tensor([[30, 8, 44, 23, 17, 6]])).logits
    torch.testing.assert_close(logits[2:], transformers_own, atol=1e-4, rtol=0)


def test_texts_are_encoded_by_the_classifiers_own_tokenizer(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast
) -> None:
    classifier = Classifier(make_reward_model(), words, positive=0)
    expected = classifier.logits_of_ids([[5, 9], [7]])
    torch.testing.assert_close(classifier.logits_of_texts(["w5 w9", "w7"]), expected, atol=1e-5, rtol=0)


def test_a_text_longer_than_the_tokenizer_allows_is_cut(make_reward_model: MakeModel, make_words: MakeWords) -> None:
    tokenizer = make_words()
    tokenizer.model_max_length = 2
    classifier = Classifier(make_reward_model(), tokenizer, positive=0)
    expected = classifier.logits_of_ids([[5, 9]])
    torch.testing.assert_close(classifier.logits_of_texts(["w5 w9 w7"]), expected, atol=1e-5, rtol=0)


def test_an_encoder_style_classifier_pools_in_its_own_way(words: PreTrainedTokenizerFast) -> None:
    model = bert()
    logits = Classifier(model, words, positive=1).logits_of_ids([[5, 9, 7], [12]])
    for row, sequence in enumerate([[5, 9, 7], [12]]):
        torch.testing.assert_close(logits[row], model(torch.tensor([sequence])).logits[0], atol=1e-5, rtol=0)


def test_an_encoder_is_told_which_text_of_a_pair_is_which(make_words: MakeWords) -> None:
    model, tokenizer = bert(), make_words()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own tokenizer has them
    logits = Classifier(model, tokenizer, positive=1).logits_of_texts(["w5 w9", "w3"], ["w7", "w4 w6 w8"])
    for row, (ids, segments) in enumerate([([5, 9, 7], [0, 0, 1]), ([3, 4, 6, 8], [0, 1, 1, 1])]):
        expected = model(torch.tensor([ids]), token_type_ids=torch.tensor([segments])).logits[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)


def test_training_reaches_the_trunk_through_the_logits(make_reward_model: MakeModel) -> None:
    model = make_reward_model()
    ids = torch.tensor([[5, 9, 7]])
    classifier_logits(model, ids, torch.ones_like(ids)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loaded_classifier_is_frozen(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_classifier(make_reward_model("gpt2", labels=("fine", "toxic")), words, tmp_path)
    classifier = Classifier.load(ModelSource(str(tmp_path)), "fine")
    assert classifier.positive == 0
    assert classifier.labels() == ["fine", "toxic"]
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())
    assert not classifier.model.training


def test_scored_texts_say_logits_probabilities_and_reward_by_label(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_reward_model(labels=("good", "bad"))
    save_classifier(model, words, tmp_path)
    first, second = score_texts(str(tmp_path), ["w5 w9", "w7"], "good")
    good, bad = model(torch.tensor([[5, 9]])).logits[0].tolist()
    assert first.text == "w5 w9"
    assert first.logits == pytest.approx({"good": good, "bad": bad}, abs=1e-5)
    assert first.reward == first.logits["good"]
    odds = torch.tensor(good - bad).exp().item()
    assert first.probabilities == pytest.approx({"good": odds / (1 + odds), "bad": 1 / (1 + odds)}, abs=1e-5)
    assert second.reward != first.reward


def test_a_single_logit_has_the_probability_of_its_sigmoid(
    make_reward_model: MakeModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_classifier(make_reward_model(), words, tmp_path)
    (score,) = score_texts(str(tmp_path), ["w5 w9"], None)
    assert score.logits == {"reward": score.reward}
    assert score.probabilities["reward"] == pytest.approx(1.0 / (1.0 + torch.tensor(-score.reward).exp().item()))
