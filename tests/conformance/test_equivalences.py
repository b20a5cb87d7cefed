"""What must not change a run, and what a run must be equal to; through the command line where it can be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ppo_runs import PpoRun, composed, run_config, run_ppo
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.rollouts.buffer import Minibatch
from rlhf_lightning.rollouts.sampler import SampledResponse

MakeModel = Callable[..., PreTrainedModel]
FitPpo = Callable[..., Any]


def test_the_reference_is_what_it_was(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    policy = make_policy()
    before = FrozenReference(make_policy())
    fit = fit_ppo(policy, lambda done: done.response_ids[0] / 25.0 - 1.0, iterations=3, learning_rate=0.1)
    (callback,) = [entry for entry in fit.trainer.callbacks if hasattr(entry, "collector")]
    reference = callback.collector.reference
    sequences = torch.arange(3, 23).view(2, 10)
    answers = [one.logits(sequences, torch.ones_like(sequences), 4) for one in (before, reference)]
    assert torch.equal(*answers)
    assert reference.fingerprint() == before.fingerprint() != FrozenReference(policy).fingerprint()
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    # Of the first rollouts the KL is 0, and afterwards it is not.
    assert [abs(seen.metrics["objective/kl"]) < 1e-5 for seen in fit.collected] == [True, False, False]


def test_a_constant_reward_is_logged_as_it_is(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    fit = fit_ppo(make_policy(), lambda _: 3.7, iterations=2, missing_eos_penalty=None, collecting={"kl_coef": 0.0})
    constant = float(torch.tensor(3.7))
    assert fit.recorder.series("objective/score") == [constant] * 2
    assert fit.recorder.series("objective/raw_score") == [constant] * 2
    assert fit.recorder.series("objective/reward") == pytest.approx([constant] * 2)
    assert fit.recorder.series("objective/score_std") == [0.0] * 2


def test_with_gamma_and_lambda_1_returns_are_rewards_to_go(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    head = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    fit = fit_ppo(
        make_policy(),
        lambda done: done.response_ids[0] / 25.0 - 1.0,
        value_head=head,
        collecting={"reference": make_policy(seed=1), "gae_lambda": 1.0, "whiten": False},
    )
    rollout = fit.collected[0].rollout
    to_go: Tensor = rollout.rewards.flip(1).cumsum(1).flip(1) * rollout.response_mask
    torch.testing.assert_close(rollout.returns, to_go, atol=1e-5, rtol=1e-5)
    advantages = (to_go - rollout.values) * rollout.response_mask
    torch.testing.assert_close(rollout.advantages, advantages, atol=1e-5, rtol=1e-5)


class Order(pl.Callback):
    """The order of the rollouts in each epoch of each iteration, by their tokens."""

    def __init__(self) -> None:
        self.iterations: list[list[tuple[int, ...]]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Minibatch, batch_idx: int
    ) -> None:
        del trainer, pl_module
        if batch_idx == 0:
            self.iterations.append([])
        rollout = batch.rollout
        for ids, mask in zip(rollout.sequences, rollout.attention_mask.bool(), strict=True):
            self.iterations[-1].append(tuple(ids[mask].tolist()))


def test_the_order_is_redrawn_in_every_epoch(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    order = Order()
    fit = fit_ppo(
        make_policy(initializer_range=0.02),
        lambda _: 0.0,
        iterations=2,
        epochs=3,
        minibatches=2,
        micro_batch_size=2,
        callbacks=[order],
    )
    for seen, collected in zip(order.iterations, fit.collected, strict=True):
        everything = [(*done.prompt_ids, *done.response_ids) for done in collected.responses]
        epochs = [seen[start : start + 8] for start in (0, 8, 16)]
        assert all(sorted(epoch) == sorted(everything) for epoch in epochs)
        places = [tuple(everything.index(tokens) for tokens in epoch) for epoch in epochs]
        assert len({tuple(range(8)), *places}) == 4


def test_responses_do_not_depend_on_the_state_of_the_generator(make_policy: MakeModel, fit_ppo: FitPpo) -> None:
    responses: list[tuple[SampledResponse, ...]] = []
    for state in (0, 1):
        torch.manual_seed(state)
        responses.append(fit_ppo(make_policy(), lambda _: 0.0).collected[0].responses)
    assert responses[0] == responses[1]


@pytest.fixture(scope="module")
def baseline(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> PpoRun:
    """Two iterations of two epochs of two minibatches, in micro-batches of four, rollouts in one chunk of eight."""
    return run_ppo(artifacts, tmp_path_factory.mktemp("baseline"))


@pytest.fixture(scope="module")
def plain(artifacts: Path) -> dict[str, Any]:
    """The config of that run."""
    return composed(artifacts)


@pytest.fixture
def run(plain: dict[str, Any], tmp_path: Path) -> Callable[..., PpoRun]:
    """The baseline with other values in a section or two."""

    def changed(**sections: dict[str, Any]) -> PpoRun:
        return run_config(plain | {name: plain[name] | values for name, values in sections.items()}, tmp_path / "run")

    return changed


def assert_equal_runs(one: PpoRun, other: PpoRun, *, exactly: bool = False) -> None:
    """Weights and every figure, but for how long anything took."""
    assert one.distance(other) <= (0.0 if exactly else 1e-5)
    assert one.drift(other) <= (0.0 if exactly else 1e-7)
    assert one.figures.keys() == other.figures.keys()
    for name, values in one.figures.items():
        expected = values if exactly else pytest.approx(values, abs=1e-4, rel=1e-4)
        assert other.figures[name] == expected, name


def test_the_same_command_gives_the_same_run(baseline: PpoRun, artifacts: Path, tmp_path: Path) -> None:
    assert_equal_runs(baseline, run_ppo(artifacts, tmp_path), exactly=True)


@pytest.mark.parametrize(
    "sections",
    [
        {"ppo": {"micro_batch_size": 2}},
        {"rollout": {"chunk_size": 3}},
        {"model": {"gradient_checkpointing": True}},
    ],
    ids=["micro-batches", "chunks of rollouts", "gradient checkpointing"],
)
def test_what_only_saves_memory(
    sections: dict[str, dict[str, Any]], baseline: PpoRun, run: Callable[..., PpoRun]
) -> None:
    assert_equal_runs(baseline, run(**sections))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_in_a_models_config_is_off(
    checkpointing: bool, baseline: PpoRun, artifacts: Path, tmp_path: Path, run: Callable[..., PpoRun]
) -> None:
    # The same weights under a config that asks for dropout, in training mode where gradient checkpointing needs it.
    named = {}
    for model in ("policy", "reward"):
        (tmp_path / model).mkdir()
        for file in (artifacts / model).iterdir():
            (tmp_path / model / file.name).write_bytes(file.read_bytes())
        config = json.loads((tmp_path / model / "config.json").read_text())
        (tmp_path / model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
        named[f"{model}_from"] = str(tmp_path / model)
    with_dropout = run(ppo=named, model={"gradient_checkpointing": checkpointing})
    assert_equal_runs(baseline, with_dropout, exactly=not checkpointing)


def test_before_the_first_step_nothing_differs(run: Callable[..., PpoRun]) -> None:
    seen = run(
        ppo={"iterations": 1, "epochs": 1, "minibatches": 1, "micro_batch_size": 2},
        rollout={"temperature": 0.7, "chunk_size": 3},
    )
    # What is logged of an iteration of one step is what its only minibatch saw.
    assert seen.history["policy/ratio"] == pytest.approx([1.0], abs=1e-6)
    assert seen.history["policy/approx_kl"] == pytest.approx([0.0], abs=1e-7)
    assert seen.history["policy/clip_fraction"] == seen.history["value/clip_fraction"] == [0.0]
    assert seen.history["objective/kl"] == pytest.approx([0.0], abs=1e-5)
    assert seen.history["objective/kl_penalized"] == pytest.approx([0.0], abs=1e-5)
    assert seen.history["rollout/logprob_mismatch"] == pytest.approx([0.0], abs=1e-6)
    # Whitened advantages have mean 0, and so has -A * 1.
    assert seen.history["policy/loss"] == pytest.approx([0.0], abs=1e-6)


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Every step of every optimizer on weights; the count of its memory takes one on tensors without data."""
    count = [0]

    def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        count[0] += not optimizer.param_groups[0]["params"][0].is_meta

    handle = register_optimizer_step_pre_hook(step)
    try:
        yield count
    finally:
        handle.remove()


def test_optimizer_steps_are_epochs_times_minibatches(run: Callable[..., PpoRun]) -> None:
    with counted_steps() as count:
        seen = run(ppo={"epochs": 3, "minibatches": 2, "micro_batch_size": 2})
    assert count == [2 * 3 * 2]
    assert seen.history["policy/optimizer_steps"] == [6.0, 6.0]
    assert seen.history["learning_rate/policy"] == pytest.approx([0.01, 0.005])
