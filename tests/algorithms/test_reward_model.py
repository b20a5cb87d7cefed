"""The reward model learns which of two responses was preferred."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rlhf_lightning.algorithms import reward_model as algorithm
from rlhf_lightning.algorithms.reward_model import PairLogits, RewardModel, pair_rewards
from rlhf_lightning.batches import PreferenceBatch
from rlhf_lightning.data.batching import collate_preferences
from rlhf_lightning.data.encoding import EncodedPreference
from rlhf_lightning.stages.reward_model import RewardModelSettings

MakeModel = Callable[..., PreTrainedModel]

SETTINGS = RewardModelSettings(
    stage="reward_model",
    backbone_from="sft",
    comparisons_from="comparisons",
    mix_from=None,
    mix_ratio=0.0,
    head="scalar",
    margin_coef=0.0,
    reward_centering_coef=0.0,
    epochs=1,
    max_steps=None,
    batch_size=8,
    micro_batch_size=8,
    learning_rate=0.05,
    warmup_fraction=0.0,
    max_grad_norm=1e6,
)
PAIRS = [
    EncodedPreference((5, 9, 7), (12, 30, 1), (8, 1), 0.0),
    EncodedPreference((11,), (20, 1), (6, 6, 6, 6, 1), 2.0),
    EncodedPreference((6, 6, 40, 33), (17, 18, 19, 22, 1), (1,), 0.5),
    EncodedPreference((4,), (1,), (3, 1), 0.0),
    EncodedPreference((8, 9), (44, 45), (46, 47, 48), 1.0),
    EncodedPreference((3, 4), (33, 1), (34, 1), 0.0),
    EncodedPreference((31,), (32, 33, 1), (35, 36, 37, 1), 3.0),
    EncodedPreference((24, 25, 26), (27, 1), (28, 29, 1), 0.0),
]


def batches(micro_batch_size: int) -> list[PreferenceBatch]:
    """All pairs as the micro-batches of one optimizer step."""
    starts = range(0, len(PAIRS), micro_batch_size)
    return [collate_preferences(PAIRS[start : start + micro_batch_size], 0, len(PAIRS)) for start in starts]


def module(classifier: PreTrainedModel, optimizer: Any = torch.optim.SGD, **values: Any) -> RewardModel:
    positive = len(classifier.config.id2label or {}) - 1
    return RewardModel(classifier, positive, SETTINGS.model_copy(update=values), optimizer, total_steps=1)


def scalar(*rewards: float) -> torch.Tensor:
    return torch.tensor(rewards)[:, None]


def test_a_pair_costs_the_bradley_terry_loss(make_reward_model: MakeModel) -> None:
    losses = module(make_reward_model()).pair_losses(
        PairLogits(scalar(1.0, math.log(3.0)), scalar(1.0, 0.0)), torch.tensor([5.0, 5.0])
    )
    # With margin_coef 0 recorded margins do not count: ln 2 for equal rewards, -log 3/4 for a lead of ln 3.
    assert losses.tolist() == pytest.approx([math.log(2.0), -math.log(0.75)])


def test_margins_and_centering_have_their_coefficients(make_reward_model: MakeModel) -> None:
    logits = PairLogits(scalar(2.0), scalar(1.0))
    with_margin = module(make_reward_model(), margin_coef=0.5).pair_losses(logits, torch.tensor([2.0]))
    # 2 - 1 - 0.5 * 2 = 0: ln 2.
    assert with_margin.item() == pytest.approx(math.log(2.0))
    centered = module(make_reward_model(), reward_centering_coef=0.1).pair_losses(logits, torch.tensor([2.0]))
    # -log sigmoid(1) + 0.1 * (2 + 1)^2.
    assert centered.item() == pytest.approx(math.log(1.0 + math.exp(-1.0)) + 0.9)


def test_two_labels_add_the_classification_of_both_responses(make_reward_model: MakeModel) -> None:
    two = module(make_reward_model(labels=("rejected", "chosen")))
    losses = two.pair_losses(PairLogits(torch.zeros(1, 2), torch.zeros(1, 2)), torch.zeros(1))
    # Without knowledge: ln 2 for the pair, and ln 2 for each of its responses.
    assert losses.item() == pytest.approx(3.0 * math.log(2.0))
    # The chosen response's logit of the positive label, the second, makes all three right.
    right = two.pair_losses(PairLogits(torch.tensor([[0.0, 9.0]]), torch.tensor([[0.0, -9.0]])), torch.zeros(1))
    assert right.item() < 0.001


def test_soft_labels_reach_every_part_of_the_loss(make_reward_model: MakeModel) -> None:
    logits = PairLogits(torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2))
    losses = module(make_reward_model(labels=("rejected", "chosen"))).pair_losses(
        logits, torch.zeros(1), torch.tensor([0.75])
    )
    # The lead and the chosen response's two labels say 3 to 1, as the label does: its entropy for both. The rejected
    # response's labels say nothing: ln 2.
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert losses.item() == pytest.approx(2.0 * entropy + math.log(2.0))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_response_is_judged_at_its_last_token_whatever_pads_it(kind: str, make_reward_model: MakeModel) -> None:
    model = make_reward_model(kind)
    for pad in (0, 1):
        chosen, rejected = pair_rewards(model, 0, collate_preferences(PAIRS, pad, len(PAIRS)))
        for row, pair in enumerate(PAIRS):
            for response, reward in ((pair.chosen_ids, chosen[row]), (pair.rejected_ids, rejected[row])):
                hidden = model.base_model(torch.tensor([pair.prompt_ids + response])).last_hidden_state
                head: Any = model.score
                assert reward == pytest.approx(head(hidden[0, -1]).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "labels"),
    # Where a gradient is near 0, AdamW's first step is rate * gradient / eps: a small eps makes steps of rounding,
    # whose size differs between processors.
    [
        (torch.optim.SGD, 0.1, ("rejected", "chosen")),
        (partial(torch.optim.AdamW, eps=1e-4), 0.001, ("reward",)),
    ],
)
def test_the_micro_batch_size_does_not_change_the_update(
    optimizer: Any,
    learning_rate: float,
    labels: tuple[str, ...],
    make_reward_model: MakeModel,
    fit: Any,
    stepping: Any,
    assert_same_weights: Any,
) -> None:
    fits = {}
    for size in (1, 4, 8):
        steps = stepping(optimizer)
        model = make_reward_model(labels=labels)
        trained = module(model, steps, learning_rate=learning_rate, margin_coef=0.3, reward_centering_coef=0.1)
        fits[size] = fit(trained, steps, batches(size), accumulate=8 // size)
        assert len(steps.rates) == 1
    for size in (1, 4):
        assert_same_weights(fits[size], fits[8])
    start = dict(make_reward_model(labels=labels).named_parameters())
    assert max((fits[8].weights[f"classifier.{name}"] - weight).abs().max() for name, weight in start.items()) > 1e-4


def test_what_is_logged_is_the_mean_over_pairs(make_reward_model: MakeModel, fit: Any, stepping: Any) -> None:
    model = make_reward_model()
    chosen, rejected = (torch.tensor(rewards) for rewards in pair_rewards(model, 0, batches(8)[0]))
    steps = stepping(torch.optim.SGD)
    recorder = fit(module(model, steps), steps, batches(8)).recorder
    expected = {
        "reward_model/loss": -torch.sigmoid(chosen - rejected).log().mean().item(),
        "reward_model/accuracy": (chosen > rejected).float().mean().item(),
        "reward_model/margin": (chosen - rejected).mean().item(),
    }
    for name, value in expected.items():
        assert recorder.series(name) == [pytest.approx(value, abs=1e-5)], name


def test_held_out_pairs_are_measured_once_each(make_reward_model: MakeModel, fit: Any, stepping: Any) -> None:
    model = make_reward_model()
    steps = stepping(torch.optim.SGD)
    metrics = fit(module(model, steps), steps, batches(8), held_out=[*batches(4)[:1], *batches(2)[2:]]).metrics
    chosen, rejected = (torch.tensor(rewards) for rewards in pair_rewards(model, 0, batches(8)[0]))
    accuracy = (chosen > rejected).float().mean().item()
    assert metrics["reward_model/validation_accuracy"] == pytest.approx(accuracy)
    loss = -torch.sigmoid(chosen - rejected).log().mean().item()
    assert metrics["reward_model/validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_a_tie_is_not_accurate(make_reward_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of zeros says the same of every response: it has found none of the preferred ones."""
    model = make_reward_model()
    torch.nn.init.zeros_(model.get_parameter("score.weight"))
    validated = module(model)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(validated, "log_dict", lambda figures, **_: logged.update(figures))
    validated.validation_step(batches(8)[0], 0)
    assert logged["reward_model/validation_accuracy"].item() == 0.0
    assert logged["reward_model/validation_loss"].item() == pytest.approx(math.log(2.0))


def test_what_is_sharded_is_what_is_read_in_one_piece(
    make_reward_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear head is read apart from its trunk; a model whose head is of another kind is read as a whole."""
    sharded: list[tuple[torch.nn.Module, str]] = []
    monkeypatch.setattr(algorithm, "shard", lambda *told: sharded.append(told))
    monkeypatch.setattr(RewardModel, "device_mesh", {"data_parallel": "mesh"})
    model = make_reward_model()
    module(model).configure_model()
    assert sharded == [(model.base_model, "mesh"), (model.score, "mesh")]
    sharded.clear()
    model.score = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 1))
    module(model).configure_model()
    assert sharded == [(model, "mesh")]


@pytest.mark.parametrize("labels", [("reward",), ("rejected", "chosen")])
def test_training_puts_the_preferred_responses_first(
    labels: tuple[str, ...], make_reward_model: MakeModel, fit: Any, stepping: Any
) -> None:
    model = make_reward_model(labels=labels, initializer_range=0.05)
    steps = stepping(partial(torch.optim.AdamW, eps=1e-5))
    settings = SETTINGS.model_copy(update={"learning_rate": 0.01})
    positive = len(labels) - 1
    fit(RewardModel(model, positive, settings, steps, total_steps=30), steps, batches(8), epochs=30)
    chosen, rejected = pair_rewards(model, positive, batches(8)[0])
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))


@pytest.mark.parametrize(
    ("probability", "labels"), [(0.5, ("reward",)), (0.75, ("rejected", "chosen")), (0.9, ("reward",))]
)
def test_training_on_soft_labels_of_one_pair_leads_to_the_label(
    probability: float, labels: tuple[str, ...], make_reward_model: MakeModel, fit: Any, stepping: Any
) -> None:
    model = make_reward_model(labels=labels, initializer_range=0.05)
    steps = stepping(partial(torch.optim.AdamW, eps=1e-5, weight_decay=0.0))
    # A linear fall of the rate to 0 lets it settle.
    settings = SETTINGS.model_copy(update={"learning_rate": 0.01})
    pair = EncodedPreference((5, 9, 7), (12, 30, 1), (8, 1), 0.0, probability)
    positive = len(labels) - 1
    batch = collate_preferences([pair] * 4, 0, 4)
    fitted = fit(RewardModel(model, positive, settings, steps, total_steps=45), steps, [batch], epochs=45)
    chosen, rejected = pair_rewards(model, positive, batch)
    assert torch.sigmoid(torch.tensor(chosen[0] - rejected[0])).item() == pytest.approx(probability, abs=0.01)
    # The entropy of the label, for the pair and, with two labels, for each of its responses: no loss can be less.
    entropy = -probability * math.log(probability) - (1.0 - probability) * math.log(1.0 - probability)
    parts = 1 if len(labels) == 1 else 3
    assert fitted.recorder.series("reward_model/loss")[-1] == pytest.approx(parts * entropy, abs=0.001)
