"""Steps of whole batches, weighted by their tokens, in an order that only seed and epoch decide."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.batches import DemonstrationBatch, PreferenceBatch
from rlhf_lightning.data.batching import MicroBatch, PassSampler, StepSampler, Weight
from rlhf_lightning.data.datamodules import DemonstrationDataModule, PreferenceDataModule
from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration, Preference, Prompt

WEIGHTS = [Weight(loss=number + 1, length=100 - number) for number in range(11)]


def sampler(**values: Any) -> StepSampler:
    arguments = {"batch_size": 4, "micro_batch_size": 2, "seed": 0, "ranks": 1, "rank": 0, **values}
    return StepSampler(WEIGHTS, **arguments)


def steps(micro_batches: list[MicroBatch], each: int) -> list[list[MicroBatch]]:
    return [micro_batches[start : start + each] for start in range(0, len(micro_batches), each)]


def test_every_step_is_complete_and_carries_its_total() -> None:
    epoch = list(sampler())
    # 11 records make 2 steps of 4, each of 2 micro-batches; 3 records are left over.
    assert len(epoch) == len(sampler()) == 4
    used = [index for micro_batch in epoch for index in micro_batch.indices]
    assert len(used) == len(set(used)) == 8
    for step in steps(epoch, 2):
        indices = [index for micro_batch in step for index in micro_batch.indices]
        assert {micro_batch.step_weight for micro_batch in step} == {sum(index + 1 for index in indices)}
        # Sorted by length, which falls with the index here.
        assert indices == sorted(indices, reverse=True)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    one, same, other = sampler(), sampler(), sampler(seed=1)
    first = list(one)
    assert list(one) == first
    one.set_epoch(1)
    other.set_epoch(0)
    same.set_epoch(1)
    assert list(one) == list(same) != first
    assert list(other) not in (first, list(one))
    left_out = set()
    for epoch in range(10):
        one.set_epoch(epoch)
        left_out |= set(range(11)) - {index for micro_batch in one for index in micro_batch.indices}
    # 3 of 11 are left out of each epoch; that ten epochs leave out the same is practically impossible.
    assert len(left_out) > 6


def test_ranks_share_every_step() -> None:
    whole = list(sampler(micro_batch_size=1))
    shares = [list(sampler(micro_batch_size=1, ranks=2, rank=rank)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == len(sampler(micro_batch_size=1, ranks=2)) == 4
    for whole_step, first, second in zip(steps(whole, 4), steps(shares[0], 2), steps(shares[1], 2), strict=True):
        assert sorted([*first, *second], key=lambda each: each.indices) == sorted(
            whole_step, key=lambda each: each.indices
        )


def test_evaluation_passes_over_every_record_once() -> None:
    passes = [list(PassSampler(WEIGHTS, micro_batch_size=4, ranks=2, rank=rank)) for rank in (0, 1)]
    # Three micro-batches would do, but two ranks need an even number; each is a quarter of the pass.
    assert [len(micro_batch.indices) for micro_batch in passes[0] + passes[1]] == [3, 3, 3, 2]
    indices = [index for share in passes for micro_batch in share for index in micro_batch.indices]
    assert sorted(indices) == list(range(11))
    # 1 + 2 + ... + 11 = 66
    assert {micro_batch.step_weight for micro_batch in passes[0] + passes[1]} == {66}


def test_steps_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(DataError, match="11 training records, which is less than one optimizer step of 12") as caught:
        sampler(batch_size=12)
    assert "batch_size to at most 11" in (caught.value.fix or "")
    with pytest.raises(DataError, match="does not divide"):
        sampler(ranks=3)


@pytest.fixture
def encoder(make_tokenizer: Callable[..., PreTrainedTokenizerFast], make_lengths: Callable[..., Any]) -> Encoder:
    # The padding token is the end-of-sequence token.
    return Encoder(make_tokenizer(pad=None), make_lengths())


DEMONSTRATIONS = [Demonstration(Prompt(f"question {number}"), "x" * (number % 7)) for number in range(50)]


def demonstrations(encoder: Encoder, **values: Any) -> DemonstrationDataModule:
    arguments = {"batch_size": 8, "micro_batch_size": 2, "validation_fraction": 0.2, "seed": 0, **values}
    return DemonstrationDataModule(encoder, DEMONSTRATIONS, **arguments)


def test_micro_batches_of_demonstrations(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        module = demonstrations(encoder)
    train, held_out = module.train_report.kept, module.held_out_report.kept
    assert train + held_out == 50
    assert held_out > 0
    assert module.steps_per_epoch == train // 8
    assert module.micro_batches_per_step == 4
    assert f"{train % 8} of {train} training records do not fill an optimizer step of 8" in caplog.text
    batches = list(module.train_dataloader())
    assert len(batches) == module.steps_per_epoch * 4
    for start in range(0, len(batches), 4):
        step = batches[start : start + 4]
        assert {batch.step_weight for batch in step} == {sum(int(batch.loss_mask.sum()) for batch in step)}
    validation = list(module.val_dataloader())
    assert sum(len(batch) for batch in validation) == held_out
    assert demonstrations(encoder, validation_fraction=0.0).val_dataloader() == []


def test_loading_draws_nothing_from_the_global_generator(encoder: Encoder) -> None:
    module = demonstrations(encoder)
    before = torch.get_rng_state()
    list(module.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_micro_batches_of_preferences(encoder: Encoder) -> None:
    pairs = [Preference(Prompt(f"question {number}"), "good", "bad", margin=float(number)) for number in range(9)]
    module = PreferenceDataModule(encoder, pairs[:6], pairs[6:], batch_size=4, micro_batch_size=2, seed=0)
    batches = list(module.train_dataloader())
    assert [(len(batch), batch.step_weight) for batch in batches] == [(2, 4), (2, 4)]
    held_out = list(module.val_dataloader())
    assert [(len(batch), batch.step_weight) for batch in held_out] == [(2, 3), (1, 3)]
    assert isinstance(held_out[0], PreferenceBatch)
    assert torch.cat([batch.margin for batch in held_out]).tolist() == [6.0, 7.0, 8.0]


class Recorder(pl.LightningModule):
    """Learns the mean of the loss tokens' ids, and records what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: DemonstrationBatch, _: int) -> torch.Tensor:
        self.seen.append(batch.input_ids.tolist())
        losses = (self.mean - batch.input_ids[batch.loss_mask].float()) ** 2 / 2
        return losses.sum() / batch.step_weight * self.trainer.accumulate_grad_batches

    def validation_step(self, batch: DemonstrationBatch, _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def trainer(path: Path, module: DemonstrationDataModule, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=path,
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=module.micro_batches_per_step,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_a_step_of_micro_batches_is_the_step_of_the_whole_batch(encoder: Encoder, tmp_path: Path) -> None:
    means = []
    for micro_batch_size in (1, 2, 8):
        module = demonstrations(encoder, micro_batch_size=micro_batch_size, validation_fraction=0.0)
        learner = Recorder()
        trainer(tmp_path, module, epochs=1).fit(learner, module)
        means.append(learner.mean.item())
    # A gradient step of rate 1 on half the squared distance ends on the mean of the last step's loss tokens.
    module = demonstrations(encoder, micro_batch_size=8, validation_fraction=0.0)
    last = list(module.train_dataloader())[-1]
    expected = float(last.input_ids[last.loss_mask].float().mean())
    assert means == pytest.approx([expected] * 3, rel=1e-5)


def test_lightning_redraws_the_order_each_epoch_and_a_resumed_run_draws_the_same(
    encoder: Encoder, tmp_path: Path
) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    module = demonstrations(encoder, validation_fraction=0.0)
    trainer(tmp_path, module, epochs=3).fit(whole, module)
    interrupted = trainer(tmp_path, module, epochs=1)
    interrupted.fit(first, module)
    interrupted.save_checkpoint(tmp_path / "last.ckpt")
    resumed = demonstrations(encoder, validation_fraction=0.0)
    trainer(tmp_path, resumed, epochs=3).fit(second, resumed, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert len(whole.seen) == 3 * 6 * 4
    assert whole.seen[:24] != whole.seen[24:48]
    assert first.seen + second.seen == whole.seen
    assert float(second.mean) == float(whole.mean)
