"""What ends an update early, keeps the policy still, or saves memory, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import SeparateCritic
from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]
FitPpo = Callable[..., Any]

ADAM = partial(torch.optim.AdamW, eps=1e-5, weight_decay=0.01)


def first_token(response: SampledResponse) -> float:
    return response.response_ids[0] / 25.0 - 1.0


class Weights(pl.Callback):
    """Remembers the weights at the start of training and after each iteration."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def _remember(self, pl_module: pl.LightningModule) -> None:
        self.seen.append({name: weight.detach().clone() for name, weight in pl_module.named_parameters()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer
        self._remember(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer
        self._remember(pl_module)

    def moved(self, iteration: int, part: str) -> float:
        """The furthest that a weight of a part went in an iteration."""
        before, after = self.seen[iteration], self.seen[iteration + 1]
        names = [name for name in before if name.startswith(f"actor_critic.{part}")]
        return max(float((after[name] - before[name]).abs().max()) for name in names)


def test_an_update_ends_after_the_step_that_measured_too_much_kl(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    common: dict[str, Any] = {"iterations": 2, "epochs": 3, "minibatches": 2, "optimizer": ADAM, "learning_rate": 0.02}
    free, loose = (
        fit_ppo(make_policy(), first_token, target_kl=target, micro_batch_size=4, **common) for target in (None, 1e6)
    )
    assert free.recorder.series("policy/optimizer_steps") == [6.0] * 2
    assert loose.recorder.series("policy/optimizer_steps") == [6.0] * 2
    assert all(torch.equal(weight, loose.weights[name]) for name, weight in free.weights.items())
    for micro_batch_size in (4, 1):
        tight = fit_ppo(make_policy(), first_token, target_kl=1e-6, micro_batch_size=micro_batch_size, **common)
        # The first step sees the policy that sampled, whose KL is 0 but for rounding; the second one sees it moved.
        assert tight.recorder.series("policy/optimizer_steps") == [2.0] * 2
        assert tight.trainer.global_step == len(tight.steps.rates) == 4
        # Every iteration had its rollouts and its share of the learning-rate schedule.
        assert len(tight.collected) == 2
        assert tight.steps.rates == pytest.approx([0.02 * left for left in (1, 1, 1 / 2, 1 / 2)])


def test_the_kl_of_an_optimizer_step_is_measured_over_its_tokens(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    # The limit between the largest KL that a whole run without one measures, and a little less than that.
    common: dict[str, Any] = {"epochs": 4, "learning_rate": 0.05, "optimizer": ADAM}
    kl = []
    for epochs in range(1, 5):
        metrics = fit_ppo(make_policy(), first_token, **{**common, "epochs": epochs}).metrics
        kl.append(epochs * metrics["policy/approx_kl"] - sum(kl))
    place = next(step for step in range(1, 4) if kl[step] > max(kl[:step]))
    over = 0.5 * (max(kl[:place]) + kl[place])
    for micro_batch_size in (8, 2):
        fit = fit_ppo(make_policy(), first_token, micro_batch_size=micro_batch_size, target_kl=over, **common)
        assert fit.trainer.global_step == place + 1


@pytest.mark.parametrize("separate", [False, True])
def test_only_the_critic_learns_during_its_warm_up(separate: bool, make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    weights = Weights()
    critic = SeparateCritic.from_policy(make_policy()) if separate else None
    fit = fit_ppo(
        make_policy(),
        first_token,
        iterations=4,
        epochs=2,
        critic_warmup=2,
        optimizer=ADAM,
        collecting={"critic": critic},
        callbacks=[weights],
    )
    part = "critic" if separate else "value_head"
    assert [weights.moved(iteration, "policy") > 0 for iteration in range(4)] == [False, False, True, True]
    assert all(weights.moved(iteration, part) > 1e-4 for iteration in range(4))
    # Four iterations of two steps were taken by the critic, and two by the policy: its moments saw no others.
    (optimizer,) = fit.trainer.optimizers
    counts = [{int(optimizer.state[weight]["step"]) for weight in group["params"]} for group in optimizer.param_groups]
    assert counts == [{4}, {8}]
    assert fit.recorder.series("policy/approx_kl")[:2] == pytest.approx([0.0, 0.0], abs=1e-7)
    assert fit.recorder.series("policy/optimizer_steps") == [2.0] * 4


def test_gradient_checkpointing_recomputes_and_changes_nothing(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    for kind, layers in (("llama", "model.layers"), ("gpt2", "transformer.h")):
        fits, passes = {}, {}
        for checkpointing in (False, True):
            policy = make_policy(
                kind, **({"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0} if kind == "gpt2" else {})
            )
            count = [0]
            layer: Any = policy.get_submodule(layers)[0].mlp

            def counted(_module: Any, _inputs: Any, count: list[int] = count) -> None:
                count[0] += torch.is_grad_enabled()

            layer.register_forward_pre_hook(counted)
            fits[checkpointing] = fit_ppo(
                policy, first_token, epochs=2, micro_batch_size=4, checkpointing=checkpointing
            )
            passes[checkpointing] = count[0]
        # Two epochs of two micro-batches; with checkpoints every backward pass goes through the layer again.
        assert passes == {False: 4, True: 8}
        assert fits[True].collected[0].responses == fits[False].collected[0].responses
        for name, weight in fits[False].weights.items():
            torch.testing.assert_close(fits[True].weights[name], weight, atol=1e-7, rtol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_a_penalty_in_the_loss_is_weighed_by_its_coefficient_and_kept_out_of_the_reward(
    estimator: str, make_policy: MakeModel, fit_ppo: FitPpo, make_kl: Callable[..., Any]
) -> None:
    def fit(coef: float) -> Any:
        # Nothing but the penalty to learn from: with one step, the update is the coefficient times its gradient.
        kl = make_kl("fixed", estimator=estimator, apply_to="loss", coef=coef)
        collecting = {"kl": kl, "reference": make_policy(seed=1), "whiten": False}
        return fit_ppo(make_policy(), lambda _: 0.0, value_coef=0.0, collecting=collecting)

    fits = {coef: fit(coef) for coef in (0.0, 0.5, 1.0)}
    start = dict(make_policy().named_parameters())
    moves = {
        coef: {
            name: fits[coef].weights[f"actor_critic.policy.{name}"] - weight.detach() for name, weight in start.items()
        }
        for coef in fits
    }
    assert max(move.abs().max() for move in moves[0.0].values()) == 0.0
    assert max(move.abs().max() for move in moves[1.0].values()) > 1e-3
    for name, move in moves[0.5].items():
        torch.testing.assert_close(2.0 * move, moves[1.0][name], atol=1e-6, rtol=1e-4)
    metrics = fits[1.0].metrics
    assert metrics["objective/reward"] == 0.0
    rollout = fits[1.0].collected[0].rollout
    paid = rollout.kl[rollout.response_mask].mean().item()
    assert metrics["policy/kl_loss"] == pytest.approx(paid, rel=1e-4)


@pytest.mark.slow
def test_a_penalty_in_the_loss_brings_the_policy_back(
    make_policy: MakeModel, fit_ppo: FitPpo, make_kl: Callable[..., Any]
) -> None:
    # On every token k2 has the gradient of k3.
    for estimator in ("k1", "k3", "exact"):
        fit = fit_ppo(
            make_policy(),
            lambda _: 0.0,
            batch_size=32,
            micro_batch_size=32,
            iterations=6,
            epochs=2,
            value_coef=0.0,
            optimizer=ADAM,
            learning_rate=0.02,
            collecting={
                "kl": make_kl("fixed", estimator=estimator, apply_to="loss", coef=1.0),
                "reference": make_policy(seed=1),
                "chunk_size": 32,
                "whiten": False,
            },
        )
        kl = fit.recorder.series("objective/kl")
        assert sum(kl[-3:]) / 3 < 0.75 * kl[0], estimator
