"""Frozen blocks: shared with the reference, left as they were, and computed once instead of in each update."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.actor_critic import SeparateCritic
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.models.sharing import Branch
from rlhf_lightning.models.top_layers import top_layers, train_top_layers
from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]
FitPpo = Callable[..., Any]

UPDATES = {"iterations": 2, "epochs": 2, "minibatches": 1, "micro_batch_size": 4, "entropy_coef": 0.01}
"""Four optimizer steps, in two micro-batches each."""

HEAD = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))


def deep(make: MakeModel, kind: str = "llama", **values: Any) -> PreTrainedModel:
    """A model of three blocks."""
    return make(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 3}, **values)


def rule(done: SampledResponse) -> float:
    return done.response_ids[0] / 25.0 - 1.0


class Losses(pl.Callback):
    """The loss of each micro-batch, and how often each block of the policy ran in updates."""

    def __init__(self, path: str = "model.layers") -> None:
        self.path = path
        self.losses: list[float] = []
        self.runs: dict[str, int] = {}
        self._hooks: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        del trainer, batch, batch_idx
        for number, block in pl_module.actor_critic.policy.get_submodule(self.path).named_children():
            self.runs.setdefault(number, 0)
            self._hooks.append(block.register_forward_hook(lambda *_, number=number: self._count(number)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch, batch_idx
        self.losses.append(float(outputs["loss"]))
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _count(self, number: str) -> None:
        self.runs[number] += 1


def both(fit_ppo: FitPpo, make: Callable[[], PreTrainedModel], path: str, **choices: Any) -> tuple[Any, Any]:
    """A training that computes the frozen blocks in each update, and one that does not."""
    fits = []
    for reuse in (False, True):
        seen = Losses(path)
        collecting = {"top_layers": 1, "reuse_trunk": reuse, "chunk_size": 3, **choices.get("collecting", {})}
        fit = fit_ppo(
            make(), rule, value_head=HEAD, callbacks=[seen], **{**UPDATES, **choices, "collecting": collecting}
        )
        fit.seen = seen
        fits.append(fit)
    return fits[0], fits[1]


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ("k1 in the reward", "gpt2"),
        ("exact KL in the loss", "llama"),
        ("checkpointing", "gpt2"),
        ("tied embeddings", "llama"),
    ],
)
def test_the_same_losses_and_weights(
    kind: str,
    choice: str,
    make_policy: MakeModel,
    make_kl: Callable[..., Any],
    fit_ppo: FitPpo,
    assert_same_weights: Callable[[Any, Any], None],
) -> None:
    every_choice: dict[str, dict[str, Any]] = {
        "k1 in the reward": {},
        "exact KL in the loss": {"collecting": {"kl": make_kl(estimator="exact", apply_to="loss")}},
        "checkpointing": {"checkpointing": True},
        "tied embeddings": {},
    }
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    path = {"llama": "model.layers", "gpt2": "transformer.h"}[kind]
    computing, reusing = both(
        fit_ppo,
        lambda: deep(make_policy, kind, tie_word_embeddings=choice == "tied embeddings", **off),
        path,
        **every_choice[choice],
    )
    assert len(reusing.seen.losses) == 8
    assert reusing.seen.losses == pytest.approx(computing.seen.losses, abs=1e-5)
    assert_same_weights(computing, reusing)
    for name in ("policy/loss", "value/loss", "policy/approx_kl", "objective/kl", "objective/score"):
        assert reusing.recorder.series(name) == pytest.approx(computing.recorder.series(name), abs=1e-5), name
    # Recomputing activations in the backward pass runs a block twice, but the frozen ones have no gradient.
    assert [computing.seen.runs[str(block)] for block in range(2)] == [8, 8]
    assert [reusing.seen.runs[str(block)] for block in range(2)] == [0, 0]
    assert reusing.seen.runs["2"] == 8
    assert {seen.rollout.trunk_states.shape[-1] for seen in reusing.collected} == {16}
    assert {seen.rollout.trunk_states for seen in computing.collected} == {None}
    # And it learned.
    start = dict(deep(make_policy, kind, tie_word_embeddings=choice == "tied embeddings").named_parameters())
    moved = {
        name: (weight - start[name.removeprefix("actor_critic.policy.")]).abs().max()
        for name, weight in reusing.weights.items()
        if ".policy." in name
    }
    assert max(moved.values()) > 1e-3


def test_a_critic_of_its_own_on_the_same_trunk(
    make_policy: MakeModel, fit_ppo: FitPpo, assert_same_weights: Callable[[Any, Any], None]
) -> None:
    fits = []
    for reusing in (False, True):
        policy = deep(make_policy)
        train_top_layers(policy, 1)
        critic = SeparateCritic.from_policy(policy)
        nn.init.normal_(critic.head.linear.weight, generator=torch.Generator().manual_seed(3))
        if reusing:
            critic.branch = Branch.of(critic.trunk, 1)
        collecting = {"top_layers": 1, "reuse_trunk": reusing, "critic": critic}
        fits.append(fit_ppo(policy, rule, **UPDATES, collecting=collecting))
    assert_same_weights(*fits)
    assert fits[0].recorder.series("value/loss") == pytest.approx(fits[1].recorder.series("value/loss"), abs=1e-5)


def fingerprint(model: PreTrainedModel, *, frozen: bool) -> str:
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad != frozen:
            digest.update(name.encode())
            digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("reuse", [False, True])
def test_frozen_weights_are_what_they_were(reuse: bool, make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    policy = deep(make_policy)
    train_top_layers(policy, 2)
    before = [fingerprint(policy, frozen=frozen) for frozen in (True, False)]
    fit_ppo(policy, rule, **UPDATES, collecting={"top_layers": 2, "reuse_trunk": reuse})
    after = [fingerprint(policy, frozen=frozen) for frozen in (True, False)]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("reuse", [False, True])
def test_a_reference_on_the_policys_trunk_is_a_frozen_copy_bit_for_bit(
    reuse: bool, make_policy: MakeModel, fit_ppo: FitPpo
) -> None:
    policy = deep(make_policy)
    copied = FrozenReference(deep(make_policy))
    fit = fit_ppo(policy, rule, **UPDATES, collecting={"top_layers": 1, "reuse_trunk": reuse})
    (callback,) = [entry for entry in fit.trainer.callbacks if hasattr(entry, "collector")]
    reference = callback.collector.reference
    sequences = torch.arange(3, 33).view(3, 10)
    mask = torch.ones_like(sequences)
    assert torch.equal(reference.logits(sequences, mask, 4), copied.logits(sequences, mask, 4))
    states: Tensor | None = callback.collector.actor_critic.trunk_states(sequences, mask)
    assert (states is not None) == reuse
    assert torch.equal(reference.logits(sequences, mask, 4, states), copied.logits(sequences, mask, 4))
    assert reference.fingerprint() == copied.fingerprint() != FrozenReference(policy).fingerprint()
    own = {id(weight) for weight in policy.parameters()}
    apart = {name for name, weight in reference.model.named_parameters() if id(weight) not in own}
    trained = tuple(f"{name}." for name in top_layers(policy, 1))
    assert apart == {name for name, _ in policy.named_parameters() if name.startswith(trained)}
