"""A whole PPO iteration of the package against the naive one, over the choices that PPO leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from naive_ppo import Choices, Naive, Tally
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import SeparateCritic
from rlhf_lightning.rollouts.buffer import Minibatch
from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]

NO_DROPOUT = {"gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, "llama": {}}
VALUE_HEAD = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)) / 4


def rule(response: SampledResponse) -> float:
    return response.response_ids[0] / 25.0 - 1.0


class Order(pl.Callback):
    """Which sequences made each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[int, ...]]] = [[]]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Minibatch, batch_idx: int
    ) -> None:
        del pl_module
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self.steps.append([])
        rollout = batch.rollout
        for ids, mask in zip(rollout.sequences, rollout.attention_mask.bool(), strict=True):
            self.steps[-1].append(tuple(ids[mask].tolist()))


def train(
    choices: Choices,
    kind: str,
    make_policy: MakeModel,
    fit_ppo: Callable[..., Any],
    make_kl: Callable[..., Any],
    *,
    separate: bool,
    **sizes: int,
) -> tuple[Any, list[list[tuple[int, ...]]]]:
    """The package's update."""
    order = Order()
    critic = SeparateCritic.from_policy(make_policy(kind, seed=2, **NO_DROPOUT[kind])) if separate else None
    if critic is not None:
        critic.head.linear.weight.data.copy_(VALUE_HEAD)
    place = "loss" if choices.in_loss else "reward"
    fit = fit_ppo(
        make_policy(kind, **NO_DROPOUT[kind]),
        rule,
        learning_rate=choices.learning_rate,
        critic_learning_rate=choices.critic_rate,
        lr_schedule="constant",
        clip_range=choices.clip,
        value_clip_range=choices.value_clip,
        value_coef=choices.value_coef,
        entropy_coef=choices.entropy_coef,
        missing_eos_penalty=choices.penalty,
        max_grad_norm=choices.max_grad_norm,
        value_head=None if separate else VALUE_HEAD,
        callbacks=[order],
        collecting={
            "reference": make_policy(kind, seed=1, **NO_DROPOUT[kind]),
            "critic": critic,
            "temperature": choices.temperature,
            "kl": make_kl("fixed", estimator=choices.estimator, apply_to=place, coef=choices.kl_coef),
            "gamma": choices.gamma,
            "gae_lambda": choices.gae_lambda,
            "whiten": choices.whiten,
            "whiten_rewards": choices.whiten_rewards,
            "chunk_size": 3,
        },
        **sizes,
    )
    return fit, order.steps


CASES = {
    "k1 in the reward": (Choices(), {}),
    "k2 in the reward, no penalty for a missing end": (Choices(estimator="k2", penalty=None), {}),
    "k3 in the reward, whitened": (Choices(estimator="k3", whiten_rewards=True), {"epochs": 2}),
    "exact in the reward, raw advantages": (Choices(estimator="exact", whiten=False), {"epochs": 2}),
    "k1 in the loss": (Choices(estimator="k1", in_loss=True), {"epochs": 3}),
    "k2 in the loss": (Choices(estimator="k2", in_loss=True), {"epochs": 3}),
    "k3 in the loss": (Choices(estimator="k3", in_loss=True), {"epochs": 3}),
    "exact in the loss": (Choices(estimator="exact", in_loss=True), {"epochs": 3}),
    "a strong entropy bonus, hot sampling": (Choices(entropy_coef=0.5, temperature=1.6), {"epochs": 2}),
    "a wide value clip": (Choices(value_clip=10.0), {"epochs": 2}),
    "clipped gradients": (Choices(max_grad_norm=0.3), {"epochs": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_equals_the_naive_one(
    name: str, make_policy: MakeModel, fit_ppo: Callable[..., Any], make_kl: Callable[..., Any]
) -> None:
    choices, sizes = CASES[name]
    compare(choices, "llama", make_policy, fit_ppo, make_kl, separate=False, **sizes)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_so_it_does_with_a_critic_of_its_own(
    kind: str, make_policy: MakeModel, fit_ppo: Callable[..., Any], make_kl: Callable[..., Any]
) -> None:
    compare(Choices(), kind, make_policy, fit_ppo, make_kl, separate=True, epochs=3)


def test_and_with_learned_positions(
    make_policy: MakeModel, fit_ppo: Callable[..., Any], make_kl: Callable[..., Any]
) -> None:
    compare(Choices(), "gpt2", make_policy, fit_ppo, make_kl, separate=False, epochs=2, minibatches=2)


def compare(
    choices: Choices,
    kind: str,
    make_policy: MakeModel,
    fit_ppo: Callable[..., Any],
    make_kl: Callable[..., Any],
    *,
    separate: bool,
    epochs: int = 1,
    minibatches: int = 1,
) -> None:
    sizes = {"epochs": epochs, "minibatches": minibatches, "micro_batch_size": 4}
    fit, order = train(choices, kind, make_policy, fit_ppo, make_kl, separate=separate, **sizes)
    start, reference, critic = (make_policy(kind, seed=seed, **NO_DROPOUT[kind]) for seed in range(3))
    naive = Naive(choices, start, reference, VALUE_HEAD, critic if separate else None)
    responses = list(fit.collected[0].responses)
    assert {response.finished for response in responses} == {True, False}
    rows = naive.prepare(responses, rule)
    assert_same_rollout(fit.collected[0].rollout, rows)
    figures = fit.collected[0].metrics
    d = sum(token.logprob - token.reference for row in rows for token in row)
    assert figures["objective/kl"] == pytest.approx(d / len(rows), abs=1e-5)
    paid = sum(token.kl for row in rows for token in row)
    assert figures["objective/kl_penalized"] == pytest.approx(paid / len(rows), abs=1e-5)
    reward = sum(token.reward for row in rows for token in row)
    assert figures["objective/reward"] == pytest.approx(reward / len(rows), abs=1e-5)

    by_tokens = {(*done.prompt_ids, *done.response_ids): place for place, done in enumerate(responses)}
    assert len(order) == epochs * minibatches
    tallies = []
    for step in order:
        places = [by_tokens[tokens] for tokens in step]
        tallies.append(naive.step([responses[place] for place in places], [rows[place] for place in places]))
    assert_same_weights(fit.weights, naive.weights(), len(order))
    assert_same_figures(fit.metrics, tallies)
    start_weights = {f"actor_critic.policy.{name}": weight for name, weight in start.named_parameters()}
    assert (
        max(float((fit.weights[name] - weight).detach().abs().max()) for name, weight in start_weights.items()) > 0.01
    )
    # The first step clips nothing; later ones do, or their clipping would not have been tested.
    assert tallies[0].clipped == tallies[0].value_clipped == 0
    if epochs > 1:
        assert sum(tally.clipped for tally in tallies) > 0
        assert sum(tally.value_clipped for tally in tallies) > 0 or choices.value_clip > 1


def assert_same_rollout(rollout: Any, rows: list[list[Any]]) -> None:
    names = {"logprobs": "logprob", "reference_logprobs": "reference", "kl": "kl", "values": "value"}
    names |= {"rewards": "reward", "advantages": "advantage", "returns": "target"}
    for theirs, ours in names.items():
        expected = torch.tensor([getattr(token, ours) for row in rows for token in row])
        found = getattr(rollout, theirs)[rollout.response_mask].double()
        difference = found - expected.double()
        assert difference.abs().max() < 1e-4, theirs
        assert difference.mean().abs() < 1e-5, theirs


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, tuple[Tensor, float]], steps: int) -> None:
    """The difference of the weights is that of the gradients, times the learning rate and the number of steps."""
    assert found.keys() == expected.keys()
    differences = [((found[name].double() - weight) / (rate * steps)) for name, (weight, rate) in expected.items()]
    flat = torch.cat([difference.flatten() for difference in differences])
    assert flat.abs().max() < 1e-5
    assert flat.mean().abs() < 1e-7


def assert_same_figures(metrics: dict[str, float], tallies: list[Tally]) -> None:
    """What was logged are means over the tokens of all steps."""
    tokens = sum(tally.tokens for tally in tallies)
    for name, total in {
        "policy/loss": sum(tally.loss for tally in tallies),
        "policy/clip_fraction": sum(tally.clipped for tally in tallies),
        "policy/approx_kl": sum(tally.approx_kl for tally in tallies),
        "value/loss": sum(tally.value_loss for tally in tallies),
        "value/clip_fraction": sum(tally.value_clipped for tally in tallies),
    }.items():
        assert metrics[name] == pytest.approx(total / tokens, abs=1e-5), name
    assert metrics["optimizer/grad_norm"] == pytest.approx(tallies[-1].norm, rel=1e-4)
