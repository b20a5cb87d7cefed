"""Learning-rate schedules, and the optimizer that the config names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import nn

from rlhf_lightning.algorithms.optimization import linear_decay, trainable_parameters, with_schedule
from rlhf_lightning.runs.compose import conf_directory
from rlhf_lightning.stages.targets import instantiate


def test_decay_is_linear_to_0() -> None:
    factor = linear_decay(4)
    assert [factor(step) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_warm_up_is_linear_and_wastes_no_step_on_0() -> None:
    factor = linear_decay(7, warmup_steps=3)
    assert [factor(step) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_the_schedule_multiplies_the_learning_rate_once_a_step() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    configured = with_schedule(optimizer, linear_decay(2))
    assert configured["optimizer"] is optimizer
    assert configured["lr_scheduler"]["interval"] == "step"
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.step()
    configured["lr_scheduler"]["scheduler"].step()
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_frozen_parameters_are_not_trained() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert trainable_parameters(module) == [module.weight]


def test_the_configs_optimizer_is_adam_with_an_eps_of_1e_5() -> None:
    config: dict[str, Any] = yaml.safe_load((conf_directory() / "optimizer" / "adamw.yaml").read_text())
    factory = instantiate({**config, "_partial_": True}, allow_targets=[])
    optimizer = factory([nn.Parameter(torch.ones(1))], lr=0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["eps"] == 1e-5
    assert optimizer.defaults["weight_decay"] == 0.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
