"""When the frozen blocks are computed once a rollout, and what the log says where they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel
from tuned import peft

from rlhf_lightning.models.settings import PeftSettings
from rlhf_lightning.stages.actors import branch_below_trained_layers
from rlhf_lightning.stages.run_settings import RunSettings

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize(
    ("tuning", "strategy", "point", "said"),
    [
        (peft("none"), "single", None, ""),
        (peft("lora"), "single", None, ""),
        (peft("top_layers", layers=1, reuse_trunk=False), "single", None, ""),
        (peft("top_layers", layers=1, reuse_trunk=True), "single", 2, "an update costs 1 of 3 blocks"),
        (peft("top_layers", layers=2, reuse_trunk=True), "ddp", 1, "an update costs 2 of 3 blocks"),
        (peft("top_layers", layers=3, reuse_trunk=True), "single", None, "All 3 blocks are trained"),
        (peft("top_layers", layers=1, reuse_trunk=True), "fsdp", None, "trainer=fsdp runs whole models only"),
    ],
)
def test_when_the_trunk_is_reused(
    tuning: PeftSettings,
    strategy: str,
    point: int | None,
    said: str,
    make_policy: MakeModel,
    composed: Callable[..., RunSettings],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="rlhf_lightning")
    plain = composed()
    trainer = plain.trainer.model_copy(update={"strategy": strategy})
    settings = plain.model_copy(update={"peft": tuning, "trainer": trainer})
    branch = branch_below_trained_layers(settings, make_policy(num_hidden_layers=3))
    assert (branch.point if branch is not None else None) == point
    assert said in caplog.text
    assert bool(caplog.records) == bool(said)
