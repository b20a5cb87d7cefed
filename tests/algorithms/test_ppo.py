"""Proximal policy optimization through real fits of a tiny policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import ActorCritic, SeparateCritic
from rlhf_lightning.models.loading import disable_dropout
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]
FitPpo = Callable[..., Any]

ADAM = partial(torch.optim.AdamW, eps=1e-5, weight_decay=0.0)
WANTED = 7


def presence(response: SampledResponse) -> float:
    """1 for a response that holds the wanted token, 0 for any other."""
    return float(WANTED in response.response_ids)


def first_token(response: SampledResponse) -> float:
    return response.response_ids[0] / 25.0 - 1.0


def entropy(fit: Any, policy: PreTrainedModel) -> float:
    """Of the first response token, on the prompts of a finished training's first rollout."""
    rollout = fit.collected[0].rollout
    outputs = ActorCritic(policy)(
        rollout.sequences, rollout.attention_mask, rollout.response_length, 1.0, with_entropy=True
    )
    assert outputs.entropies is not None
    return float(outputs.entropies[:, 0].mean().detach())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_before_the_first_step_the_ratio_is_1_and_nothing_is_clipped(
    kind: str, make_policy: MakeModel, fit_ppo: FitPpo
) -> None:
    dropout = {"llama": {"attention_dropout": 0.3}, "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3}}[kind]
    policy = disable_dropout(make_policy(kind, **dropout)).train()
    # One step an iteration: what is logged is what the first minibatch saw, in micro-batches padded like no rollout.
    metrics = fit_ppo(policy, first_token, micro_batch_size=2, collecting={"temperature": 0.7}).metrics
    assert metrics["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/clip_fraction"] == 0.0
    assert metrics["value/clip_fraction"] == 0.0
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    # Whitened advantages have mean 0, and so has -A * 1.
    assert metrics["policy/loss"] == pytest.approx(0.0, abs=1e-6)


def test_every_tokens_ratio_is_1_before_the_first_step(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    policy = make_policy()
    rollout = fit_ppo(policy, first_token, learning_rate=1e-30).collected[0].rollout
    for rows in ([0], [3, 1], [7, 6, 5, 4]):
        part = rollout.select(torch.tensor(rows))
        outputs = ActorCritic(policy)(part.sequences, part.attention_mask, part.response_length, 1.0)
        ratio = (outputs.logprobs - part.logprobs)[part.response_mask].exp()
        assert (ratio - 1.0).abs().max() < 1e-5
        assert (ratio - 1.0).mean().abs() < 1e-6


def test_optimizer_steps_are_iterations_times_epochs_times_minibatches(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(make_policy(), first_token, iterations=3, epochs=2, minibatches=4, micro_batch_size=2)
    assert len(fit.steps.rates) == 3 * 2 * 4
    assert fit.trainer.global_step == 3 * 2 * 4
    assert len(fit.collected) == 3


def test_the_learning_rates_fall_linearly_by_iterations_and_are_logged(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(make_policy(), first_token, iterations=2, minibatches=4, micro_batch_size=2, critic_learning_rate=0.5)
    # Iteration by iteration: four steps at the whole rate, four at half of it.
    left = [1.0] * 4 + [0.5] * 4
    assert fit.steps.rates == pytest.approx([0.01 * share for share in left])
    assert fit.steps.critic_rates == pytest.approx([0.5 * share for share in left])
    assert fit.recorder.series("learning_rate/policy") == pytest.approx(fit.steps.rates)
    assert fit.recorder.series("learning_rate/critic") == pytest.approx(fit.steps.critic_rates)


def test_each_part_is_trained_at_its_own_rate(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    slow, fast = (
        fit_ppo(make_policy(), first_token, critic_learning_rate=rate, lr_schedule="constant").weights
        for rate in (0.01, 0.03)
    )
    for name, weight in slow.items():
        times = 3.0 if "value_head" in name else 1.0
        torch.testing.assert_close(fast[name], times * weight, atol=1e-6, rtol=0)


def test_a_constant_learning_rate_stays(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(make_policy(), first_token, iterations=2, minibatches=2, micro_batch_size=4, lr_schedule="constant")
    assert fit.steps.rates == [0.01] * 4


@pytest.mark.parametrize(
    ("optimizer", "learning_rate", "kind"), [(torch.optim.SGD, 0.1, "llama"), (ADAM, 0.001, "gpt2")]
)
def test_the_micro_batch_size_does_not_change_the_update(
    optimizer: Any,
    learning_rate: float,
    kind: str,
    make_policy: MakeModel,
    fit_ppo: FitPpo,
    assert_same_weights: Callable[..., None],
) -> None:
    start = make_policy(kind)
    fits = {
        size: fit_ppo(
            make_policy(kind),
            first_token,
            optimizer=optimizer,
            learning_rate=learning_rate,
            micro_batch_size=size,
            entropy_coef=0.01,
        )
        for size in (1, 4, 8)
    }
    lengths = fits[8].collected[0].rollout.response_mask.sum(dim=1)
    assert len(lengths.unique()) > 1, "equal responses would hide a mean of means"
    for size in (1, 4):
        assert_same_weights(fits[size], fits[8])
        for name in ("policy/loss", "value/loss", "policy/entropy", "policy/approx_kl"):
            assert fits[size].metrics[name] == pytest.approx(fits[8].metrics[name], abs=1e-6), name
    moved = max(
        (fits[8].weights[f"actor_critic.policy.{name}"] - p).abs().max() for name, p in start.named_parameters()
    )
    assert moved > 1e-4


def test_the_reference_is_the_same_after_training(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    policy, start = make_policy(), FrozenReference(make_policy())
    fit = fit_ppo(policy, first_token, iterations=3, learning_rate=0.1)
    (callback,) = [entry for entry in fit.trainer.callbacks if hasattr(entry, "collector")]
    assert callback.collector.reference.fingerprint() == start.fingerprint()
    assert FrozenReference(policy).fingerprint() != start.fingerprint()
    assert [abs(seen.metrics["objective/kl"]) < 1e-5 for seen in fit.collected] == [True, False, False]


def test_gradients_are_clipped_and_their_norm_is_logged_before(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    start = ActorCritic(make_policy()).state_dict()

    def moved(fit: Any) -> float:
        """How far one step of SGD with learning rate 1 went."""
        pairs = [(weight, start[name.removeprefix("actor_critic.")]) for name, weight in fit.weights.items()]
        return float(torch.cat([(after - before).flatten() for after, before in pairs]).norm())

    free, clipped = (fit_ppo(make_policy(), first_token, learning_rate=1.0, max_grad_norm=norm) for norm in (1e6, 0.05))
    norm = free.metrics["optimizer/grad_norm"]
    assert norm > 0.1
    assert moved(free) == pytest.approx(norm, rel=1e-3)
    assert moved(clipped) == pytest.approx(0.05, rel=1e-3)
    assert clipped.metrics["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_entropy_bonus_raises_the_entropy(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    # Every response is worth the same: apart from the bonus there is nothing to learn.
    before = make_policy(initializer_range=0.5)
    after = {}
    for coef in (0.0, 1.0):
        policy = make_policy(initializer_range=0.5)
        fit = fit_ppo(
            policy,
            lambda _: 0.0,
            iterations=3,
            entropy_coef=coef,
            value_coef=0.0,
            optimizer=ADAM,
            collecting={"kl_coef": 0.0},
        )
        after[coef] = entropy(fit, policy)
        assert ("policy/entropy" in fit.metrics) is (coef > 0)
    start = entropy(fit, before)
    assert after[0.0] == pytest.approx(start, abs=1e-5)
    assert after[1.0] > start + 0.05


def test_without_advantages_and_bonus_the_policy_stays_where_it_is(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    policy = make_policy()
    fit_ppo(policy, lambda _: 0.0, iterations=2, value_coef=0.0, learning_rate=1.0, collecting={"kl_coef": 0.0})
    assert FrozenReference(policy).fingerprint() == FrozenReference(make_policy()).fingerprint()


def test_the_value_coefficient_weighs_the_critics_gradient(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    heads = {
        coef: fit_ppo(make_policy(), first_token, value_coef=coef).weights["actor_critic.value_head.linear.weight"]
        for coef in (0.0, 0.1, 0.2)
    }
    # The head starts at 0, and only the value loss reaches it: the step is proportional to the coefficient.
    assert not heads[0.0].any()
    torch.testing.assert_close(heads[0.2], 2.0 * heads[0.1])


def test_a_separate_critic_learns_without_touching_the_policy(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fits = {}
    for coef in (0.0, 1.0):
        critic = SeparateCritic.from_policy(make_policy())
        fits[coef] = fit_ppo(
            make_policy(), first_token, epochs=2, value_coef=coef, optimizer=ADAM, collecting={"critic": critic}
        )
    frozen, trained = fits[0.0].weights, fits[1.0].weights
    names = {
        part: [name for name in trained if name.startswith(f"actor_critic.{part}")] for part in ("policy", "critic")
    }
    assert len(names["policy"]) + len(names["critic"]) == len(trained)
    for name in names["policy"]:
        torch.testing.assert_close(frozen[name], trained[name], atol=1e-6, rtol=0)
    moved = {name: (frozen[name] - trained[name]).abs().max().item() for name in names["critic"]}
    assert moved["actor_critic.critic.head.linear.weight"] > 1e-3
    # The second step's gradient passes the head, which is no longer 0, and reaches the trunk.
    assert max(value for name, value in moved.items() if ".trunk." in name) > 1e-3


def test_the_critic_learns_to_explain_returns(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(
        make_policy(),
        lambda _: 2.0,
        iterations=7,
        epochs=4,
        learning_rate=0.03,
        value_clip_range=1.0,
        optimizer=ADAM,
        value_coef=1.0,
        batch_size=8,
    )
    values = fit.recorder.series("value/mean")
    assert values[0] == 0.0
    assert values[-1] == pytest.approx(2.0, abs=0.3)


@pytest.mark.slow
def test_ppo_learns_to_say_the_wanted_token(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(
        make_policy(initializer_range=0.05),
        presence,
        prompts=[(5,), (9, 6)],
        batch_size=32,
        micro_batch_size=32,
        iterations=25,
        epochs=4,
        learning_rate=0.01,
        optimizer=ADAM,
        collecting={"max_new_tokens": 3, "kl_coef": 0.0, "chunk_size": 32},
    )
    scores = [seen.metrics["objective/score"] for seen in fit.collected]
    # Three tokens of 50 hold the wanted one in about 6% of responses at first.
    assert scores[0] < 0.3
    assert sum(scores[-5:]) / 5 > 0.8


@pytest.mark.slow
def test_the_kl_penalty_holds_the_policy_back(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    final = {}
    for coef in (0.0, 0.5):
        fit = fit_ppo(
            make_policy(initializer_range=0.05),
            presence,
            prompts=[(5,), (9, 6)],
            batch_size=32,
            micro_batch_size=32,
            iterations=8,
            epochs=4,
            learning_rate=0.01,
            optimizer=ADAM,
            collecting={"max_new_tokens": 3, "kl_coef": coef, "chunk_size": 32},
        )
        final[coef] = fit.collected[-1].metrics["objective/kl"]
    assert final[0.5] < 0.5 * final[0.0]
