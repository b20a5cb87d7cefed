"""Each Lightning epoch is one iteration: fresh rollouts first, then the passes over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts, RolloutBufferCallback, RolloutCollector
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.models.actor_critic import ActorCritic
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.buffer import Minibatch, RolloutBuffer
from rlhf_lightning.rollouts.sampler import PromptStream

POOL = [EncodedPrompt(Prompt(f"w{token}"), (token,)) for token in range(3, 15)]


class Listener(pl.LightningModule):
    """Trains on the values of what it is given, and remembers it."""

    def __init__(self, actor_critic: ActorCritic) -> None:
        super().__init__()
        self.actor_critic = actor_critic
        self.heard: list[list[float]] = []

    def training_step(self, batch: Minibatch, _: int) -> Tensor:
        rollout = batch.rollout
        self.heard.append(rollout.scores.tolist())
        outputs = self.actor_critic(rollout.sequences, rollout.attention_mask, rollout.response_length, 1.0)
        loss: Tensor = -(outputs.logprobs * rollout.response_mask).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Run:
    """Three iterations of four rollouts, two passes in micro-batches of two."""

    def __init__(self, collector: RolloutCollector, make_trainer: Callable[..., pl.Trainer], **arguments: Any) -> None:
        self.seen: list[tuple[int, CollectedRollouts, float]] = []
        self.module = Listener(collector.actor_critic)
        buffer = RolloutBuffer(batch_size=4, epochs=2, minibatches=2, micro_batch_size=2, seed=0)
        callback = RolloutBufferCallback(collector, buffer, PromptStream(POOL, seed=0), [self.observe])
        self.trainer = make_trainer(callback, max_epochs=3, **arguments)
        torch.manual_seed(0)
        self.trainer.fit(self.module, DataLoader(buffer, batch_size=None))

    def observe(self, iteration: int, collected: CollectedRollouts) -> dict[str, float]:
        weight = next(self.module.actor_critic.policy.parameters())
        self.seen.append((iteration, collected, weight.detach().sum().item()))
        return {"objective/gold": 10.0 * iteration}


@pytest.fixture
def run(
    make_policy: Callable[..., PreTrainedModel],
    make_collector: Callable[..., RolloutCollector],
    make_trainer: Callable[..., pl.Trainer],
) -> Run:
    # The score says which prompt it was: each is asked once in these three iterations.
    collector = make_collector(make_policy(), lambda completion: float(completion.prompt_ids[0]))
    return Run(collector, make_trainer)


def test_each_iteration_trains_on_its_own_rollouts_only(run: Run) -> None:
    assert [iteration for iteration, _, _ in run.seen] == [0, 1, 2]
    assert len(run.module.heard) == 3 * 2 * 2
    for iteration, collected, _ in run.seen:
        heard = run.module.heard[4 * iteration : 4 * iteration + 4]
        scores = collected.rollout.scores.tolist()
        assert sorted(heard[0] + heard[1]) == sorted(heard[2] + heard[3]) == sorted(scores)
    asked = [score for _, collected, _ in run.seen for score in collected.rollout.scores.tolist()]
    assert sorted(asked) == list(range(3, 15))


def test_each_iteration_samples_the_policy_as_the_last_one_left_it(run: Run) -> None:
    assert len({weight for _, _, weight in run.seen}) == 3
    kl = [collected.metrics["objective/kl"] for _, collected, _ in run.seen]
    assert kl[0] == pytest.approx(0.0, abs=1e-5)
    assert abs(kl[1]) > 1e-3


def test_what_was_collected_and_observed_is_logged_at_the_epochs_end(run: Run) -> None:
    _, collected, _ = run.seen[-1]
    logged = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    for name, value in collected.metrics.items():
        assert logged[name] == pytest.approx(value), name
    assert logged["objective/gold"] == 20.0
    assert logged["rollout/episodes"] == 12.0
    assert logged["time/update"] > 0.0


def test_rollouts_are_made_in_the_trainings_precision(
    make_policy: Callable[..., PreTrainedModel],
    make_collector: Callable[..., RolloutCollector],
    make_trainer: Callable[..., pl.Trainer],
) -> None:
    collector = make_collector(make_policy(), lambda _: 0.0)
    heard: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    head: Any = collector.actor_critic.policy.get_output_embeddings()
    head.register_forward_hook(lambda _module, _in, output: heard[torch.is_grad_enabled()].add(output.dtype))
    Run(collector, make_trainer, precision="bf16-mixed")
    assert heard == {True: {torch.bfloat16}, False: {torch.bfloat16}}
