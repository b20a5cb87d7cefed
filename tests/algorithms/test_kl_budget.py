"""A run ends when its policy has gone too far, and leaves the last policy that had not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]
FitPpo = Callable[..., Any]


def first_token(response: SampledResponse) -> float:
    return response.response_ids[0] / 25.0 - 1.0


class Starts(pl.Callback):
    """The weights with which each iteration's rollouts were made."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer
        self.seen.append({name: weight.detach().clone() for name, weight in pl_module.named_parameters()})


def train(
    fit_ppo: FitPpo, policy: PreTrainedModel, budget: float | None, *callbacks: pl.Callback, iterations: int = 8
) -> Any:
    return fit_ppo(
        policy,
        first_token,
        iterations=iterations,
        epochs=4,
        learning_rate=0.01,
        optimizer=partial(torch.optim.AdamW, eps=1e-5),
        batch_size=16,
        micro_batch_size=16,
        kl_budget=budget,
        callbacks=callbacks,
    )


@pytest.mark.slow
def test_the_run_ends_with_the_last_policy_within_the_budget(
    make_policy: MakeModel, fit_ppo: FitPpo, caplog: pytest.LogCaptureFixture
) -> None:
    starts = Starts()
    free = train(fit_ppo, make_policy(), None, starts)
    kl = [seen.metrics["objective/kl"] for seen in free.collected]
    # A budget between the third measurement that is the largest so far, and all before it.
    records = [place for place in range(1, 8) if kl[place] > max(kl[:place])]
    over = records[2]
    budget = 0.5 * (kl[over] + max(kl[:over]))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        kept = train(fit_ppo, make_policy(), budget)
    assert [seen.metrics["objective/kl"] for seen in kept.collected] == pytest.approx(kl[: over + 1], abs=1e-6)
    # The policy that made the last rollouts within the budget, and no update on those beyond it.
    for name, weight in kept.weights.items():
        assert torch.equal(weight, starts.seen[over - 1][name]), name
    assert kept.trainer.global_step == 4 * over
    (warning,) = [
        entry.message for entry in caplog.records if entry.name == "rlhf_lightning.algorithms.rollout_callbacks"
    ]
    assert f"ppo.kl_budget={budget:g}" in warning
    # What was measured is logged all the same.
    assert kept.recorder.series("objective/kl")[-1] == pytest.approx(kl[over], abs=1e-6)
    assert kept.recorder.series("policy/optimizer_steps")[-1] == 0.0


def test_a_run_within_its_budget_is_as_without_one(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    free, kept = (train(fit_ppo, make_policy(), budget, iterations=2) for budget in (None, 1e6))
    assert all(torch.equal(weight, kept.weights[name]) for name, weight in free.weights.items())
