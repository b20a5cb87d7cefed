"""When the frozen blocks are computed once a rollout, and what the log says where they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.preflight import check_run
from rlhf_lightning.experiment.trunk_reuse import reused_below
from rlhf_lightning.models.branching import Branch

MakeModel = Callable[..., PreTrainedModel]


def decided(policy: PreTrainedModel, *overrides: str) -> Branch | None:
    settings = check_run(ConfigTree.load(), overrides).settings
    assert settings is not None
    return reused_below(settings, policy)


@pytest.mark.parametrize(
    ("overrides", "point", "said"),
    [
        (("peft=none",), None, ""),
        (("peft=lora",), None, ""),
        (("peft=top_layers", "peft.layers=1", "peft.reuse_trunk=false"), None, ""),
        (("peft=top_layers", "peft.layers=1"), 2, "an update costs 1 of 3 blocks"),
        (("peft=top_layers", "peft.layers=2"), 1, "an update costs 2 of 3 blocks"),
        (("peft=top_layers", "peft.layers=3"), None, "All 3 blocks are trained"),
        (
            ("peft=top_layers", "peft.layers=1", "trainer=fsdp", "trainer.accelerator=cpu"),
            None,
            "trainer=fsdp runs whole models only",
        ),
    ],
)
def test_when_the_trunk_is_reused(
    overrides: tuple[str, ...],
    point: int | None,
    said: str,
    make_policy: MakeModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="rlhf_lightning")
    branch = decided(make_policy(num_hidden_layers=3), *overrides)
    assert (branch.point if branch is not None else None) == point
    assert said in caplog.text
    assert bool(caplog.records) == bool(said)
