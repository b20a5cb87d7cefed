"""Supervised fine-tuning imitates responses, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.sft import SupervisedFineTuning
from rlhf_lightning.batches import DemonstrationBatch
from rlhf_lightning.data.batching import collate_demonstrations
from rlhf_lightning.data.encoding import EncodedDemonstration
from rlhf_lightning.stages.sft import SftSettings

MakeModel = Callable[..., PreTrainedModel]

SETTINGS = SftSettings(
    stage="sft",
    policy_from="base",
    demonstrations_from="data",
    held_out_fraction=0.0,
    epochs=1,
    max_steps=None,
    batch_size=8,
    micro_batch_size=8,
    learning_rate=0.05,
    warmup_fraction=0.0,
    max_grad_norm=1e6,
)
RECORDS = [
    EncodedDemonstration((5, 9, 7), (12, 30, 8, 1)),
    EncodedDemonstration((11,), (20, 1)),
    EncodedDemonstration((6, 6, 40, 33, 21), (17, 18, 19, 22, 23, 1)),
    EncodedDemonstration((4,), (1,)),
    EncodedDemonstration((8, 9), (44, 45, 46)),
    EncodedDemonstration((3, 4), (33, 1)),
    EncodedDemonstration((31,), (32, 33, 34, 35, 1)),
    EncodedDemonstration((24, 25, 26), (27, 1)),
]
TOKENS = sum(len(record.response_ids) for record in RECORDS)


def batches(micro_batch_size: int, records: list[EncodedDemonstration] = RECORDS) -> list[DemonstrationBatch]:
    """All records as the micro-batches of one optimizer step."""
    weight = sum(len(record.response_ids) for record in records)
    starts = range(0, len(records), micro_batch_size)
    return [collate_demonstrations(records[start : start + micro_batch_size], 0, weight) for start in starts]


class Deaf(nn.Module):
    """A model whose logits depend on the position alone: only the labels can change its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(32, 50, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        del attention_mask, use_cache
        return SimpleNamespace(logits=self.logits[: input_ids.shape[1]].expand(len(input_ids), -1, -1))


def module(policy: Any, optimizer: Any = torch.optim.SGD, **values: Any) -> SupervisedFineTuning:
    return SupervisedFineTuning(policy, SETTINGS.model_copy(update=values), optimizer, total_steps=1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_minus_the_logprob_of_the_responses_tokens(kind: str, make_policy: MakeModel) -> None:
    policy = make_policy(kind)
    expected = 0.0
    for record in RECORDS:
        logprobs = torch.log_softmax(policy(torch.tensor([record.prompt_ids + record.response_ids])).logits[0], dim=-1)
        for step, token in enumerate(record.response_ids):
            expected -= logprobs[len(record.prompt_ids) + step - 1, token].item()
    (batch,) = batches(8)
    assert module(policy)(batch).item() == pytest.approx(expected, rel=1e-5)


def test_prompt_tokens_are_no_labels() -> None:
    deaf = module(Deaf())
    records = [EncodedDemonstration((5, 9, 7), (12, 30, 1))]
    loss = deaf(batches(1, records)[0]).item()
    assert deaf(batches(1, [EncodedDemonstration((44, 45, 46), (12, 30, 1))])[0]).item() == loss
    for response in ((13, 30, 1), (12, 31, 1), (12, 30, 2)):
        assert deaf(batches(1, [EncodedDemonstration((5, 9, 7), response)])[0]).item() != loss


def test_padding_is_no_label_even_if_it_is_eos(make_policy: MakeModel) -> None:
    policy = module(make_policy())
    alone = sum(policy(collate_demonstrations([record], 0, 1)).item() for record in RECORDS)
    for pad in (0, 1):
        assert policy(collate_demonstrations(RECORDS, pad, 1)).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [(torch.optim.SGD, 0.1), (partial(torch.optim.AdamW, eps=1e-5), 0.001)]
)
def test_the_micro_batch_size_does_not_change_the_update(
    optimizer: Any,
    learning_rate: float,
    kind: str,
    make_policy: MakeModel,
    fit: Any,
    stepping: Any,
    assert_same_weights: Any,
) -> None:
    fits = {}
    for size in (1, 2, 4, 8):
        steps = stepping(optimizer)
        trained = module(make_policy(kind), steps, learning_rate=learning_rate)
        fits[size] = fit(trained, steps, batches(size), accumulate=8 // size)
        assert len(steps.rates) == 1
    for size in (1, 2, 4):
        assert_same_weights(fits[size], fits[8])
    moved = [
        (fits[8].weights[f"policy.{name}"] - weight).abs().max()
        for name, weight in make_policy(kind).named_parameters()
    ]
    assert max(moved) > 1e-4


def test_the_step_goes_down_the_mean_over_response_tokens(make_policy: MakeModel, fit: Any, stepping: Any) -> None:
    policy, copy = make_policy(), make_policy()
    (module(copy)(batches(8)[0]) / TOKENS).backward()
    steps = stepping(torch.optim.SGD)
    trained = fit(module(policy, steps), steps, batches(2), accumulate=4)
    for name, weight in copy.named_parameters():
        assert weight.grad is not None
        expected = weight - 0.05 * weight.grad
        torch.testing.assert_close(trained.weights[f"policy.{name}"], expected.detach(), atol=1e-6, rtol=0)


def test_the_learning_rate_warms_up_and_falls_to_0(make_policy: MakeModel, fit: Any, stepping: Any) -> None:
    steps = stepping(torch.optim.SGD)
    settings = SETTINGS.model_copy(update={"warmup_fraction": 0.4, "learning_rate": 0.1})
    fit(SupervisedFineTuning(make_policy(), settings, steps, total_steps=5), steps, batches(8), epochs=5)
    # Two of five steps warm up, 1/3 and 2/3; then 3/3, 2/3 and 1/3.
    assert steps.rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.2 / 3, 0.1 / 3])


def test_what_is_logged_is_the_mean_over_response_tokens(make_policy: MakeModel, fit: Any, stepping: Any) -> None:
    steps = stepping(torch.optim.SGD)
    policy = make_policy()
    expected = module(policy)(batches(8)[0]).item() / TOKENS
    trained = fit(module(policy, steps), steps, batches(8))
    assert trained.recorder.series("sft/loss") == [pytest.approx(expected, rel=1e-5)]


def test_the_held_out_loss_is_the_mean_over_response_tokens(make_policy: MakeModel, fit: Any, stepping: Any) -> None:
    steps = stepping(torch.optim.SGD)
    policy = make_policy()
    # Micro-batches of very different numbers of tokens: the mean of their means is another number.
    trained = fit(module(policy, steps), steps, batches(8), held_out=batches(1))
    expected = module(policy)(batches(8)[0]).item() / TOKENS
    assert trained.metrics["sft/validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_imitation_makes_the_demonstrations_likely(make_policy: MakeModel, fit: Any, stepping: Any) -> None:
    steps = stepping(partial(torch.optim.AdamW, eps=1e-5))
    policy = make_policy(initializer_range=0.05)
    before = module(policy)(batches(8)[0]).item() / TOKENS
    settings = SETTINGS.model_copy(update={"learning_rate": 0.02})
    fit(SupervisedFineTuning(policy, settings, steps, total_steps=60), steps, batches(8), epochs=60)
    assert before > 3.5
    assert module(policy)(batches(8)[0]).item() / TOKENS < 0.5
